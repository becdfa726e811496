"""Signals: which are taken, when they end a run, and that they are given back."""

import signal

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
def test_a_signal_lets_a_step_finish_and_a_second_one_ends_at_once(number, interrupt, hangup):
    before = signal.getsignal(number)  # a shell's background job, such as these tests may be, ignores SIGINT
    interrupt.start()
    with interrupt.later():
        signal.raise_signal(number)
        assert interrupt
        with pytest.raises(Interrupted, match=f"interrupted by {number.name}; go on") as raised:
            signal.raise_signal(number)
    assert raised.value.args[1] == number
    with pytest.raises(Interrupted, match=number.name):  # outside of a step
        signal.raise_signal(number)
    interrupt.stop()
    assert signal.getsignal(number) is before


def test_under_nohup_a_hangup_stays_ignored(interrupt, hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt.start()
    signal.raise_signal(signal.SIGHUP)
    assert not interrupt and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
