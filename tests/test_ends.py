"""Runs that end badly: a full disk, numbers that aren't finite, workers that die or hang, processes left behind."""

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
from small import SMALL, TOY, differences, equal, own, result, run_method, script

from common import UserError, envs, files, teachers, workers
from common.replay import Replay
from common.run import Run
from common.workers import Workers

CPU = torch.device("cpu")


# ---- a full disk


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_room(alone, tmp_path, monkeypatch):
    folder, tries, honest, expected = tmp_path / "run", collections.Counter(), os.fsync, result(alone("ta:1"))

    def fsync(handle):
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name.rpartition(".tmp")[0].rpartition(".")[0]
        tries[name] += 1
        if tries[name] in (1, 3, 5):
            raise OSError(28, "No space left on device")
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    sentences = []
    while True:
        try:
            run_method("ta:1", folder, tmp_path / "demos", **TOY)
            break
        except UserError as error:
            sentences.append(str(error))
        assert not [*tmp_path.rglob(".*.tmp")], "something half-written lies about"
        for path in folder.glob("checkpoint*.pt"):
            files.load_torch(path, "checkpoint")
    assert all(str(tmp_path) in s and "(No space left on device)" in s and "--resume" in s for s in sentences)
    names = {Path(sentence.split()[0]).name for sentence in sentences}
    assert {"args.json", "checkpoint.pt", "batch.npz", "snapshot.pt", "evaluation.json", "learning_curve.png"} <= names
    assert differences(result(folder), expected) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_line_of_metrics_that_cannot_be_written_is_a_sentence(alone, tmp_path, demo_dir, monkeypatch):
    honest = Run.deploy

    def deploy(self, *rest):
        if self.cycle == 2:
            self._metrics._file = open("/dev/full", "ab")  # noqa: SIM115
        return honest(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "deploy", deploy)
        with pytest.raises(UserError, match=r"metrics\.jsonl can't be written .No space left"):
            run_method("ta:1", tmp_path / "run", demo_dir, **TOY)
    run_method("ta:1", tmp_path / "run", demo_dir, **TOY)
    assert differences(result(tmp_path / "run"), result(alone("ta:1"))) == []


# ---- numbers that aren't finite


@pytest.mark.parametrize(
    ("sample", "said", "good"),
    [
        (5, "policy has parameters that aren't finite in cycle 0 at step 15", None),
        (39, "policy has parameters that aren't finite in cycle 0 at step 45", (0, 30)),
        (59, "critic has parameters that aren't finite in cycle 1 at step 0|cycle 0 at step 60", (0, 45)),
        (60, "policy has parameters that aren't finite in cycle 1 at step 15", (1, 0)),
        (76, "of cycle 1 isn't finite at step 20|Policy returned entries of size nan", (1, 15)),
    ],
)
def test_what_is_not_finite_is_named_and_never_saved(sample, said, good, alone, tmp_path, demo_dir, monkeypatch):
    path, honest, taken = tmp_path / "run" / "checkpoint.pt", Replay.sample, []

    def bad(self, *arguments):
        taken.append(honest(self, *arguments))
        return taken[-1] | ({"obs": taken[-1]["obs"] * np.nan} if len(taken) == sample + 1 else {})

    with monkeypatch.context() as patch:
        patch.setattr(Replay, "sample", bad)
        with pytest.raises(UserError, match=said):
            run_method("ta:1", tmp_path / "run", demo_dir, **TOY)
    if good:
        content = files.load_torch(path, "checkpoint")
        assert (content["cycle"], content["step"]) == good
        assert all(value.isfinite().all() for value in content["state"]["parts"]["policy"].values())
    run_method("ta:1", tmp_path / "run", demo_dir, **TOY)
    assert differences(result(tmp_path / "run"), result(alone("ta:1"))) == []


def test_an_observation_that_is_not_finite_is_named(tmp_path, demo_dir, monkeypatch):
    honest = envs.GymEnv.step

    def step(env, action, obs):
        answer = honest(env, action, obs)
        if (tmp_path / "run" / "cycle_0000" / "snapshot.pt").exists():  # deploying
            obs[0] = np.nan
        return answer

    monkeypatch.setattr(envs.GymEnv, "step", step)
    with pytest.raises(UserError, match=r"toy\.py:Point returned an observation that isn't finite: .*nan"):
        run_method("bc", tmp_path / "run", demo_dir, **TOY)


# ---- workers and processes

TEACHERS = """
class Dies(Pusher):
    def action(self, obs):
        if len(obs) == 10 and not os.path.exists(f"{HERE}/died"):
            open(f"{HERE}/died", "w").close()
            os.kill(os.getpid(), 9)
        return super().action(obs)


class Hangs(Pusher):
    def action(self, obs):
        if len(obs) == 10:
            open(f"{HERE}/hung {os.getpid()}", "w").close()
            time.sleep(10_000)
        return super().action(obs)


class AlwaysDies(Pusher):
    def action(self, obs):
        if len(obs) == 10:
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


@pytest.mark.parametrize("num_workers", (1, 2))
def test_a_lost_worker_changes_nothing(num_workers, tmp_path, capfd):
    spec = envs.spec(TOY["env_id"])
    teacher = teachers.load(own(tmp_path, "Dies", TEACHERS), spec, "demonstrations", CPU)
    pool = Workers(spec, num_workers)
    there = pool.episodes(teacher.action, 0.3, (7,), range(50), "busy")
    told = capfd.readouterr().err
    assert re.search(r"a worker was lost in episodes \d+-\d+ of stream \(7,\).*running it again", told)
    os.kill(next(iter(pool._pool._processes)), signal.SIGKILL)  # idle
    there += pool.episodes(teacher.action, 0.3, (7,), range(50, 60), "idle")
    pool.close()
    assert equal(there, Workers(spec, 0).episodes(teacher.action, 0.3, (7,), range(60), "here"))


def test_a_worker_that_always_dies_becomes_an_error(tmp_path, capfd):
    spec = envs.spec(TOY["env_id"])
    teacher = teachers.load(own(tmp_path, "AlwaysDies", TEACHERS), spec, "demonstrations", CPU)
    pool = Workers(spec, 1)
    with pytest.raises(
        UserError, match=r"episodes 0-9 .* workers died 3 times meanwhile, at last by: BrokenProcessPool"
    ):
        pool.episodes(teacher.action, 0.0, (7,), range(40), "dies")
    pool.close()
    assert capfd.readouterr().err.count("running it again") == workers.MAX_TRIES - 1


def test_a_hung_worker_is_ended_with_the_pool(tmp_path):
    spec = envs.spec(TOY["env_id"])
    teacher = teachers.load(own(tmp_path, "Hangs", TEACHERS), spec, "demonstrations", CPU)
    pool = Workers(spec, 2)
    for start in range(0, 60, 10):
        pool.submit(teacher.action, 0.0, (7,), range(start, start + 10))
    while len([*tmp_path.glob("hung *")]) < 2:
        time.sleep(0.1)
    processes, began = list(pool._pool._processes.values()), time.monotonic()
    pool.close()
    assert time.monotonic() - began < 5 and not any(process.is_alive() for process in processes)


class Two(Exception):
    """An exception that can be pickled but not unpickled."""

    def __init__(self, first, second):
        super().__init__(first + second)


def raise_two(obs):
    raise Two("in the", " worker")


def test_an_exception_that_cannot_be_sent_is_told_and_is_no_lost_worker():
    told = pytest.raises(RuntimeError, match=r"running episodes on .* raised Two\('in the worker'\)")
    with contextlib.closing(Workers(envs.spec(TOY["env_id"]), 1)) as pool, told:
        pool.episodes(raise_two, 0.0, (7,), range(2), "raises")


def test_workers_that_cannot_start_say_why(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    flags = SMALL | TOY | {"num_workers": 1, "demo_dir": tmp_path, "run_dir": tmp_path / "run"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    command = [sys.executable, script("gbrl_d4pg").__file__, *words]
    done = subprocess.run(command, env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"error: worker processes can't start \(.*too long.*TMPDIR .*--num-workers 0", done.stderr)


def of(mark):
    """Process ids that inherited this mark in their environment: the run and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # gone, or not ours
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("end", ("killed", "killed at its start", "SIGTERM", "Ctrl-C", "error"))
def test_no_process_is_left_behind(end, tmp_path):
    mark, flags = f"{os.getpid()}-{end.replace(' ', '-')}", SMALL | TOY | {"num_workers": 2, "demo_dir": tmp_path}
    endless = {"teacher": "none", "actor_steps": 10**6, "learner_steps": 10**7}
    flags |= {"teacher": own(tmp_path, "Raises", TEACHERS)} if end == "error" else endless
    if end == "Ctrl-C":
        flags["env_id"] = own(tmp_path, "Begins", TEACHERS)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    command = [sys.executable, script("gbrl_d4pg").__file__, *words, f"--run-dir={tmp_path}/run"]
    environment = os.environ | {"MARK": mark}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        try:
            if end != "error":  # the run deploys, with a resource tracker, a fork server and two workers
                while len(of(mark)) < (3 if "start" in end else 5):
                    assert child.poll() is None, child.stderr.read()
                    time.sleep(0.1)
                if end == "Ctrl-C":
                    while len([*tmp_path.glob("began *")]) < 2:
                        assert child.poll() is None, child.stderr.read()
                        time.sleep(0.1)
                    os.killpg(child.pid, signal.SIGINT)  # it reaches the workers too
                else:
                    child.send_signal(signal.SIGTERM if end == "SIGTERM" else signal.SIGKILL)
            elif child.wait() != 1 or b"in the worker" not in child.stderr.read():
                pytest.fail("it should have ended by itself")
            while left := of(mark):  # a second or two, or until the fork server's imports are done
                print("still there:", left)
                time.sleep(0.2)
            statuses = {"error": 1, "SIGTERM": 128 + signal.SIGTERM, "Ctrl-C": 128 + signal.SIGINT}
            assert child.wait() == statuses.get(end, -signal.SIGKILL)
            if end == "Ctrl-C":
                assert b"Traceback" not in child.stderr.read()
        finally:
            child.kill()  # where an assertion failed


# ---- the same bits


def test_the_suites_episodes_are_the_same_in_workers_and_beside_a_learner_with_more_threads():
    spec, policy = envs.spec("cartpole-balance"), script("gbrl_d4pg").Policy(5, 1)
    pool = Workers(spec, 2)
    there = pool.episodes(policy, 0.3, (7,), range(9, 12), "in workers")
    pool.close()
    torch.set_num_threads(2)
    here = Workers(spec, 0).episodes(policy, 0.3, (7,), range(9, 12), "here")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert equal(there, here)
