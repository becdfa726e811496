"""Runs that end badly: a full disk, a folder that became read-only, workers that hang, processes left behind."""

import ctypes
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL, differences, result, run_row, script

from common import UserError, envs, files, rollouts, run, teachers

ROOT = Path(__file__).resolve().parent.parent
TASK = "cartpole-swingup"
FLAGS = {"env_id": TASK, "checkpoint_every": 7}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, demo_dir):
    """The run that is left alone."""
    return run_row("ta:1", tmp_path_factory.mktemp("alone") / "run", demo_dir, **FLAGS)


@functools.cache
def why_no_mounts():
    """None where this process may mount a tmpfs in a namespace of its own, else the reason."""
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"mounting in a namespace isn't allowed here: {done.stderr.strip()}"


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


def in_namespace(function):
    """Run `function` in a forked process whose mounts nobody else sees and which end with it."""

    def child():
        assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS; os.unshare needs Python 3.12
        mount("--make-rprivate", "/")
        function()

    if (reason := why_no_mounts()) is not None:
        pytest.skip(reason)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(300)
    assert process.exitcode == 0


def assert_resumable(run_dir):
    """The last good checkpoint can be read, and nothing half-written lies about."""
    names = [run_dir / name for name in ("checkpoint.pt", "checkpoint_previous.pt")]
    for path in [path for path in names if path.exists()]:
        files.load_torch(path, "checkpoint")
    assert list(run_dir.rglob(".*.tmp")) == []


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_room(alone, tmp_path, demo_dir):
    disk = tmp_path / "disk"
    disk.mkdir()

    def child():
        size, sentences = 1000, []  # KiB
        mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk)
        while True:
            try:
                run_row("ta:1", disk / "run", demo_dir, **FLAGS)
                break
            except UserError as error:
                sentences.append(str(error))
            assert_resumable(disk / "run")
            assert (disk / "run" / "checkpoint_previous.pt").exists() or size < 12_000
            size += 2000  # a checkpoint has 4,700 KiB, a snapshot 1,100
            mount("-o", f"remount,size={size}k", disk)
        assert len(sentences) >= 5 and size < 40_000, sentences
        assert all("No space left on device" in s and f"{disk}/run/" in s and "--resume" in s for s in sentences)
        assert len({s.split()[0] for s in sentences}) >= 3, "it should have run full in different files"
        assert differences(result(disk / "run"), result(alone)) == []

    in_namespace(child)


def test_a_folder_that_becomes_read_only_is_a_sentence(alone, tmp_path, demo_dir, monkeypatch):
    folder, module = tmp_path / "run", script("gbrl_teacher_action")
    honest = module.critic_loss

    def child():
        with pytest.raises(UserError, match=f"{folder}/checkpoint.pt can't be written .Read-only file system."):
            run_row("ta:1", folder, demo_dir, **FLAGS)
        with pytest.raises(UserError, match="Read-only file system"):
            run_row("ta:1", folder, demo_dir, **FLAGS)  # not even its lock
        subprocess.run(["umount", folder], check=True)
        assert files.load_torch(folder / "checkpoint.pt", "checkpoint")["step"] == 14
        monkeypatch.setattr(module, "critic_loss", honest)
        run_row("ta:1", folder, demo_dir, **FLAGS)
        assert differences(result(folder), result(alone)) == []

    calls = 0

    def mounting(*arguments):
        nonlocal calls
        calls += 1
        if calls == SMALL["critic_steps"] + 17:  # files that are open stay writable, as after an error of the disk
            mount("--bind", folder, folder)
            mount("-o", "remount,bind,ro", folder)
        return honest(*arguments)

    monkeypatch.setattr(module, "critic_loss", mounting)
    in_namespace(child)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_row_of_metrics_that_cannot_be_written_is_a_sentence(alone, tmp_path, demo_dir, monkeypatch):
    honest = run.Run.deploy

    def deploy(self, cycle, *rest):
        if cycle == 2:
            self._metrics.close()
            self._metrics = open("/dev/full", "ab")  # noqa: SIM115
        return honest(self, cycle, *rest)

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"metrics\.csv can't be written .No space left"),
    ):
        patch.setattr(run.Run, "deploy", deploy)
        run_row("ta:1", tmp_path / "run", demo_dir, **FLAGS)
    run_row("ta:1", tmp_path / "run", demo_dir, **FLAGS)
    assert differences(result(tmp_path / "run"), result(alone)) == []


def test_leftovers_of_a_kill_are_removed_when_the_run_goes_on(tmp_path, demo_dir):
    folder = run_row("bc", tmp_path / "run", demo_dir, env_id=TASK)
    left = [folder / ".checkpoint.pt.x1.tmp", folder / "cycle_0001" / ".batch.npz.x2.tmp"]
    kept = folder / "cycle_0001" / "notes.tmp"
    for path in [*left, kept]:
        path.write_text("half")
    run_row("bc", folder, demo_dir, env_id=TASK)
    assert not any(path.exists() for path in left) and kept.exists()


# ---- processes


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


TEACHERS = """
import os, time, torch
class Raises:
    def __init__(self, env_id, device): pass
    def action(self, obs):
        if len(obs) == 10:
            raise RuntimeError("in the worker")
        return torch.zeros(len(obs), 1)
class Hangs:
    def __init__(self, env_id, device): pass
    def action(self, obs):
        if len(obs) == 10 and len(os.listdir(HANGS)) < TIMES:
            open(f"{HANGS}/{time.time()}", "w").close()
            time.sleep(1000)
        return torch.zeros(len(obs), 1)
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("end", ("killed", "killed at its start", "SIGTERM", "error", "normal"))
def test_no_process_is_left_behind(end, tmp_path, demo_dir):
    (tmp_path / "mine.py").write_text(TEACHERS)
    flags = SMALL | {"num_workers": 2, "env_id": TASK, "teacher": "none", "demo_dir": demo_dir}
    flags |= {"normal": {}, "error": {"teacher": f"{tmp_path}/mine.py:Raises", "demo_dir": tmp_path}}.get(
        end, {"actor_steps": 1_000_000, "num_cycles": 1}
    )
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    mark = f"{os.getpid()}-{end.replace(' ', '-')}"
    child = subprocess.Popen(
        [sys.executable, "gbrl_d4pg.py", *words, f"--run-dir={tmp_path}/run"],
        cwd=ROOT, env=os.environ | {"MARK": mark}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        if end not in (
            "normal",
            "error",
        ):  # in the middle of deploying, with the tracker, the fork server and two workers
            while len(of(mark)) < (3 if "start" in end else 5):
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.1)
            time.sleep(0.0 if "start" in end else 1.5)
            child.send_signal(signal.SIGTERM if end == "SIGTERM" else signal.SIGKILL)
            # It stays a zombie until it is waited for, and a zombie must not pass for a run that lives.
        elif end == "normal":
            assert child.wait(200) == 0, child.stderr.read()
        else:
            assert child.wait(200) == 1 and "in the worker" in child.stderr.read()
        deadline = time.monotonic() + 60  # a second or two, or until the fork server's imports are done
        while (left := of(mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == [], [Path(f"/proc/{process}/cmdline").read_bytes() for process in left]
        assert child.wait(1) == {"normal": 0, "error": 1, "SIGTERM": 128 + signal.SIGTERM}.get(end, -signal.SIGKILL)
    finally:
        child.kill()  # where an assertion failed
        child.wait()
        child.stderr.close()


@pytest.mark.parametrize("times", (1, 9))
def test_a_worker_that_hangs_is_ended_and_its_block_run_again(times, tmp_path, capfd):
    (tmp_path / "hangs").mkdir()
    (tmp_path / "mine.py").write_text(f"HANGS, TIMES = {str(tmp_path / 'hangs')!r}, {times}\n{TEACHERS}")
    teacher = teachers.load(f"{tmp_path}/mine.py:Hangs", envs.spec(TASK), "demonstrations", torch.device("cpu"))
    workers = rollouts.Workers(1, block_timeout=20.0 if times == 1 else 2.0)
    try:
        if times > rollouts.MAX_TRIES:
            with pytest.raises(UserError, match=r"episodes 0-1 .* lost its worker 3 times.*Task timeout.*2\.0"):
                workers.collect(TASK, teacher.action, 0.0, (7,), range(2))
        else:
            there = workers.collect(TASK, teacher.action, 0.0, (7,), range(2))
            here = rollouts.run_block(TASK, teacher.action, 0.0, (7,), range(2))
            assert all(
                np.array_equal(x, y) for a, b in zip(here, there, strict=True) for x, y in zip(a, b, strict=True)
            )
    finally:
        workers.close()
    lines = [line for line in capfd.readouterr().err.splitlines() if "running it again" in line]
    assert len(lines) == min(times, rollouts.MAX_TRIES - 1) and all("episodes 0-1" in line for line in lines)


# ---- the same bits


@pytest.mark.parametrize("threads", (1, 2))
def test_deterministic_for_any_number_of_workers_at_this_number_of_threads(threads, tmp_path, demo_dir):
    flags = {"env_id": TASK, "torch_threads": threads, "batch_size": 256}  # enough rows to be split among threads
    try:
        first, second = (
            run_row("ta:1", tmp_path / str(workers), demo_dir, num_workers=workers, **flags) for workers in (0, 2)
        )
        assert torch.get_num_threads() == threads and torch.are_deterministic_algorithms_enabled()
        assert differences(result(first), result(second)) == []
    finally:
        torch.set_num_threads(1)
