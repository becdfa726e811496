"""Runs that are small but real: real dm_control, shipped teachers, every part of a run, two cycles."""

import dataclasses
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
from multiprocessing import forkserver
from pathlib import Path

import methods
import numpy as np
import torch

from common import files
from common.run import Run

ROOT, CPU = Path(__file__).resolve().parent.parent, torch.device("cpu")
SMALL = {
    "actor_steps": 4_000, "learner_steps": 61, "num_cycles": 2, "batch_size": 32, "demo_episodes": 2, "bc_steps": 40,
    "critic_steps": 20, "eval_every": 20, "report_episodes": 2, "num_workers": 0, "checkpoint_every": 15,
}  # fmt: skip
FILE = Path(__file__).with_name("toy.py")
TOY = {"env_id": f"{FILE}:Point", "teacher": f"{FILE}:Pusher", "actor_steps": 400}  # with these it takes a second
LINE = TOY["env_id"].replace("Point", "Line")  # its episodes never end early
RATES = {"bc_reg_decay": 5}  # where it isn't 1
METHODS = tuple(f"{name}:{RATES.get(name, 1)}" if method.decays else name for name, method in methods.METHODS.items())
SCRIPTS = tuple(dict.fromkeys(method.script.removesuffix(".py") for method in methods.METHODS.values()))


def own(folder, name, code):
    """The reference of a class in a file of its own, which has `toy.py` and `code`, and `HERE`, its folder."""
    names = f"import glob, os, sys, time, torch\nHERE = {str(folder)!r}\n"
    (folder / "mine.py").write_text(f"{names}{FILE.read_text()}\n{code}")
    return f"{folder}/mine.py:{name}"


def words(flags):
    """Flags as the words of a command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


def script(name):
    return importlib.import_module(name)


def make_args(method, run_dir, demo_dir, **flags):
    """The script of a method of the table, and the flags of its small run."""
    module, args = methods.load(method)
    return module, dataclasses.replace(args, run_dir=str(run_dir), demo_dir=str(demo_dir), **(SMALL | flags))


def run_method(method, run_dir, demo_dir, **flags):
    """Run a method of the table in this process; returns its folder."""
    module, args = make_args(method, run_dir, demo_dir, **flags)
    return module.main(args)


def keep_replays(module, monkeypatch):
    """The replays that a script's runs will make, in order: the growing batch, then the demonstrations."""
    replays = []

    class Kept(module.Replay):
        def __init__(self, *sizes):
            replays.append(self)
            super().__init__(*sizes)

    monkeypatch.setattr(module, "Replay", Kept)
    return replays


def metrics(run_dir):
    """metrics.jsonl as a list of dicts."""
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def report(run_dir):
    return json.loads((Path(run_dir) / "report.json").read_text())


def result(run_dir):
    """Everything of a run that must be bit-equal: weights, deployed data, metrics and report without times."""
    content = {}
    for path in sorted(Path(run_dir).glob("cycle_*/*")):
        if path.name == "batch.npz":
            arrays = files.load_arrays(path, "batch")
            content |= {f"{path.parent.name}/{name}": array.tobytes() for name, array in arrays.items()}
        elif path.name == "snapshot.pt":
            snapshot = files.load_torch(path, "snapshot")
            parts = [(f"{name}/{k}", v) for name in ("policy", "critic") for k, v in snapshot[name].items()]
            content |= {f"{path.parent.name}/{name}": value.numpy().tobytes() for name, value in parts}
    times = ("wall_s", "charts/SPS", "charts/UPS")
    content["metrics"] = [{k: v for k, v in line.items() if k not in times} for line in metrics(run_dir)]
    content["report"] = {k: v for k, v in report(run_dir).items() if k not in ("seconds", "wall_s")}
    (content["report"]["clone"] or {}).pop("from", None)  # a taken-over clone is as one that was made
    return content


def differences(a, b):
    """The names under which two results differ."""
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def live(method, args, steps=(), renames=False, seen=(), number=signal.SIGKILL):
    """Start or resume a run in a forked process, and send it a signal at the first moment that isn't in `seen`.

    Moments don't depend on a clock. They are the ends of `steps`, which are pairs of cycle and step, and with `renames`
    also the moment just before each rename of a temporary file into its place.

    Returns:
        The moment, or None if there was none and the run ended by itself.
    """
    module, pipe, place, arrived = methods.load(method)[0], multiprocessing.Pipe(duplex=False), [None], []

    def arrive(*moment):
        if moment not in seen and not arrived:
            arrived.append(moment)
            pipe[1].send(moment)
            os.kill(os.getpid(), number)

    def count(run, first, last, desc, honest=Run.steps):
        for step in honest(run, first, last, desc):
            yield step
            if (run.cycle, step) in steps:
                arrive(run.cycle, step)

    def save(run, honest=Run._save_checkpoint):
        place[0] = run.cycle, run.step
        honest(run)
        place[0] = None

    def replace(source, target, honest=os.replace):
        if renames:
            arrive(str(target), place[0])
        honest(source, target)

    def child():
        forkserver._forkserver.__init__()  # the parent's can start no workers here
        Run.steps, Run._save_checkpoint, os.replace = count, save, replace
        try:
            module.main(args)
        except KeyboardInterrupt as stop:
            os._exit(128 + stop.args[1])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    moment = pipe[0].recv() if pipe[0].poll() else None
    assert process.exitcode in ((0,) if moment is None else (-number, 128 + number)), (process.exitcode, moment)
    return moment


def equal(first, second):
    """Whether episodes have the same bits."""
    pairs = zip(first, second, strict=True)
    return all(np.array_equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))


def kill_at(command, words, folder):
    """Run a command in `folder` and kill it once it has printed a line with `words`."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while words not in process.stdout.readline():
            assert process.poll() is None, command
        process.kill()
