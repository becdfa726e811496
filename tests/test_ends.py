"""Runs that end early: a full disk, numbers that aren't finite, workers that die, signals, processes left behind."""

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small import CPU, ROOT, SMALL, TOY, differences, equal, own, result, run_method, script, words

from common import UserError, envs, files, launch, teachers
from common.replay import Replay
from common.run import Run
from common.workers import Workers

SPEC = envs.spec(TOY["env_id"])


# ---- errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_room(alone, tmp_path, monkeypatch):
    folder, tries, sentences = tmp_path / "run", collections.Counter(), []

    def replace(source, target, honest=os.replace):
        tries[Path(target).name] += 1
        if tries[Path(target).name] in (1, 3, 5):
            raise OSError(28, "No space left on device")
        honest(source, target)

    def deploy(run, *rest, honest=Run.deploy):
        tries["deploy"] += 1
        if tries["deploy"] == 3:
            run._metrics._file = open("/dev/full", "ab")  # noqa: SIM115
        return honest(run, *rest)

    expected = result(alone("ta:1"))
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Run, "deploy", deploy)
    while True:
        try:
            run_method("ta:1", folder, tmp_path / "demos", **TOY)
            break
        except UserError as error:
            sentences.append(str(error))
        assert not [*tmp_path.rglob(".*.tmp")], "something half-written lies about"
    assert all(str(tmp_path) in s and "(No space left" in s and "--resume" in s for s in sentences)
    names = {Path(sentence.split()[0]).name for sentence in sentences}
    assert {"args.json", "checkpoint.pt", "batch.npz", "snapshot.pt", "evaluation.json", "metrics.jsonl"} <= names
    assert differences(result(folder), expected) == []


@pytest.mark.parametrize(
    ("sample", "said", "good"),
    [
        (5, "policy has parameters that aren't finite in cycle 0 at step 15", None),
        (59, "critic has parameters that aren't finite in cycle 1 at step 0|cycle 0 at step 60", (0, 45)),
        (76, "of cycle 1 isn't finite at step 20|Policy returned entries of size nan", (1, 15)),
    ],
)
def test_what_is_not_finite_is_named_and_never_saved(sample, said, good, alone, tmp_path, demo_dir, monkeypatch):
    path, honest, taken = tmp_path / "run" / "checkpoint.pt", Replay.sample, []

    def bad(self, *arguments):
        taken.append(honest(self, *arguments))
        return taken[-1] | ({"obs": taken[-1]["obs"] * np.nan} if len(taken) == sample + 1 else {})

    with monkeypatch.context() as patch, pytest.raises(UserError, match=said):
        patch.setattr(Replay, "sample", bad)
        run_method("ta:1", tmp_path / "run", demo_dir, **TOY)
    if good:
        content = files.load_torch(path, "checkpoint")
        assert (content["cycle"], content["step"]) == good
        assert all(value.isfinite().all() for value in content["state"]["parts"]["policy"].values())
    run_method("ta:1", tmp_path / "run", demo_dir, **TOY)
    assert differences(result(tmp_path / "run"), result(alone("ta:1"))) == []


# ---- workers and processes

CODE = """
class Dies(Pusher):
    def action(self, obs):
        if len(obs) == 10 and len(glob.glob(f"{HERE}/died *")) < 4:
            open(f"{HERE}/died {time.time_ns()}", "w").close()
            os.kill(os.getpid(), 9)
        return super().action(obs)


class HalfSent(Pusher):
    def action(self, obs):
        if len(obs) == 10 and not os.path.exists(f"{HERE}/died"):
            open(f"{HERE}/died", "w").close()
            frame = sys._getframe()
            while "result_queue" not in frame.f_locals:
                frame = frame.f_back
            queue = frame.f_locals["result_queue"]
            queue._wlock.acquire()
            os.write(queue._writer.fileno(), bytes([0, 0, 1, 0, 7]))  # a message's length, 256, and its first byte
            os.kill(os.getpid(), 9)
        return super().action(obs)


class Raises(Pusher):
    def action(self, obs):
        if len(obs) == 10:
            raise RuntimeError("in the worker")
        return super().action(obs)


class Begins(Point):
    def step(self, action):
        open(f"{HERE}/began {os.getpid()}", "w").close()
        return super().step(action)
"""


def test_a_lost_worker_changes_nothing_and_a_block_that_loses_three_is_an_error(tmp_path, capfd):
    """The first four times that a block begins, its worker dies."""
    teacher = teachers.load(own(tmp_path, "Dies", CODE), SPEC, "actions", CPU)
    one, pool = Workers(SPEC, 1), Workers(SPEC, 2)
    with pytest.raises(UserError, match=r"episodes 0-9 .* workers died 3 times meanwhile, the last: Broken"):
        one.episodes(teacher.action, 0.3, (7,), range(40), "dies")
    there = pool.episodes(teacher.action, 0.3, (7,), range(50), "busy")
    told = capfd.readouterr().err
    assert len(re.findall(r"a worker was lost in episodes \d+-\d+ of stream \(7,\).*running it again", told)) >= 3
    os.kill(next(iter(pool._pool._processes)), signal.SIGKILL)  # idle
    there += pool.episodes(teacher.action, 0.3, (7,), range(50, 60), "idle")
    one.close()
    pool.close()
    assert equal(there, Workers(SPEC, 0).episodes(teacher.action, 0.3, (7,), range(60), "here"))


def test_a_worker_that_dies_while_it_sends_is_a_lost_worker(tmp_path, capfd):
    teacher = teachers.load(own(tmp_path, "HalfSent", CODE), SPEC, "actions", CPU)
    pool = Workers(SPEC, 2)
    there = pool.episodes(teacher.action, 0.3, (7,), range(40), "half sent")
    pool.close()
    assert "a worker was lost in episodes 0-9" in capfd.readouterr().err
    assert equal(there, Workers(SPEC, 0).episodes(teacher.action, 0.3, (7,), range(40), "here"))


def of(mark):
    """Ids of the processes that inherited this mark in their environment: the run and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone, or not ours
            found += [path.parent.name] if f"MARK={mark}".encode() in path.read_bytes() else []
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("end", ("killed", "Ctrl-C", "error"))
def test_no_process_is_left_behind(end, tmp_path):
    mark, flags = f"{os.getpid()}-{end}", SMALL | TOY | {"num_workers": 2, "demo_dir": tmp_path}
    endless = {"teacher": "none", "actor_steps": 10**6, "learner_steps": 10**7, "env_id": own(tmp_path, "Begins", CODE)}
    flags |= {"teacher": own(tmp_path, "Raises", CODE)} if end == "error" else endless
    command = [sys.executable, script("gbrl_d4pg").__file__, *words(flags | {"run_dir": tmp_path / "run"})]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, env=os.environ | {"MARK": mark}, **pipes) as child:
        try:
            while end != "error" and len([*tmp_path.glob("began *")]) < 2:  # both workers are busy
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.1)
            if end != "error":
                os.killpg(child.pid, signal.SIGINT) if end == "Ctrl-C" else child.kill()  # Ctrl-C reaches the workers
            said = child.communicate(timeout=60)[1]
            while of(mark):  # a second or two
                time.sleep(0.2)
        finally:
            child.kill()  # where an assertion failed
    assert child.returncode == {"error": 1, "Ctrl-C": 128 + signal.SIGINT, "killed": -signal.SIGKILL}[end]
    assert (b"in the worker" in said) == (end == "error") and (end == "error" or b"Traceback" not in said)


def test_episodes_are_the_same_in_workers_and_beside_a_learner_with_more_threads():
    pool, policy = Workers(envs.spec("cartpole-balance"), 2), script("gbrl_d4pg").Policy(5, 1)
    there = pool.episodes(policy, 0.3, (7,), range(9, 12), "in workers")
    pool.close()
    torch.set_num_threads(2)
    here = Workers(envs.spec("cartpole-balance"), 0).episodes(policy, 0.3, (7,), range(9, 12), "here")
    assert torch.get_num_threads() == 2 and equal(there, here)
    torch.set_num_threads(1)


def test_workers_that_cannot_start_say_why(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    flags = SMALL | TOY | {"num_workers": 1, "demo_dir": tmp_path, "run_dir": tmp_path / "run"}
    command = [sys.executable, str(ROOT / "gbrl_d4pg.py"), *words(flags)]
    done = subprocess.run(command, env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"error: worker processes can't start \(.*too long.*TMPDIR .*--num-workers 0", done.stderr)


def test_a_sweep_that_is_ended_lets_its_runs_save_and_end(tmp_path):
    own = [f"--env-ids={TOY['env_id']}", f"--teacher={TOY['teacher']}", "--seeds=1", f"--output={tmp_path}"]
    command = [sys.executable, str(ROOT / "benchmark" / "sweep.py"), "--methods=bc", *own, "--", "--bc-steps=1_000_000"]
    with subprocess.Popen(command) as sweep:
        while not (logs := [*tmp_path.glob("clone__*.log")]) or "pretrain step 1000:" not in logs[0].read_text():
            assert sweep.poll() is None
            time.sleep(0.1)
        sweep.terminate()
    assert sweep.returncode == 128 + signal.SIGTERM and "interrupted by SIGTERM" in logs[0].read_text()
    assert logs[0].with_suffix("").joinpath("checkpoint.pt").exists()


# ---- signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


@pytest.fixture
def interrupt():
    """The signals are handled as in a terminal, whatever these tests were started with."""
    before, interrupt = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}, launch.Interrupt("go on")
    yield interrupt
    interrupt.stop()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_run_but_not_a_second_one_or_where_it_can_end_at_once(number, interrupt):
    sentence = f"interrupted by {number.name}; go on"
    interrupt.start()
    assert not interrupt
    signal.raise_signal(number)
    assert interrupt
    with pytest.raises(KeyboardInterrupt, match=sentence) as raised, interrupt.at_once():
        raise AssertionError
    assert raised.value.args[1] == number
    with pytest.raises(KeyboardInterrupt, match=sentence):
        signal.raise_signal(number)
    interrupt._number = 0
    with pytest.raises(KeyboardInterrupt, match=sentence), interrupt.at_once():
        signal.raise_signal(number)
    interrupt.stop()
    assert signal.getsignal(number) is signal.SIG_DFL


def test_under_nohup_a_hangup_stays_ignored(interrupt):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt.start()
    signal.raise_signal(signal.SIGHUP)
    assert not interrupt and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
