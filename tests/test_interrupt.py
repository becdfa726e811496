"""Signals: which are taken, when they end a run, and that they are given back."""

import signal
import threading

import pytest

from common import Interrupted
from common.launch import Interrupt

TAKEN = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


@pytest.fixture
def interrupt():
    interrupt = Interrupt("go on")
    yield interrupt
    interrupt.stop()


@pytest.fixture
def hangup():
    """SIGHUP's handler as in a terminal, whatever these tests were started with."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", TAKEN)
def test_a_second_signal_ends_at_once_what_a_first_one_lets_finish(number, interrupt, hangup):
    before = signal.getsignal(number)  # a shell's background job, such as these tests may be, ignores SIGINT
    interrupt.start()
    with interrupt.later():
        signal.raise_signal(number)
        assert interrupt
        with pytest.raises(Interrupted, match=f"interrupted by {number.name}; go on") as raised:
            signal.raise_signal(number)
    assert raised.value.args[1] == number
    interrupt.stop()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", TAKEN)
def test_outside_a_step_the_first_signal_ends_the_run(number, interrupt, hangup):
    interrupt.start()
    with pytest.raises(Interrupted, match=number.name):
        signal.raise_signal(number)


def test_under_nohup_a_hangup_stays_ignored(interrupt, hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt.start()
    signal.raise_signal(signal.SIGHUP)
    assert not interrupt and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_in_another_thread_no_signal_is_taken(interrupt):
    before, errors = [signal.getsignal(number) for number in TAKEN], []

    def live():
        try:
            interrupt.start()
            assert [signal.getsignal(number) for number in TAKEN] == before
            interrupt.check()
            interrupt.stop()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=live)
    thread.start()
    thread.join()
    assert errors == []


def test_where_there_is_no_sigusr1_and_no_sighup_the_other_two_are_taken(interrupt, hangup, monkeypatch):
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.delattr(signal, "SIGUSR1")
    monkeypatch.delattr(signal, "SIGHUP")
    interrupt.start()
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGUSR1) is before
    with pytest.raises(Interrupted, match="SIGTERM"):
        signal.raise_signal(signal.SIGTERM)
