"""Runs that are small but real: real dm_control, shipped teachers, every phase, two cycles."""

import csv
import importlib
import json
import os
import signal
from pathlib import Path

import numpy as np

from common import UserError, files

ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = ("gbrl_d4pg", "gbrl_bc_reg", "gbrl_teacher_action", "gbrl_teacher_grad")
ROWS = {
    "bc": ("gbrl_d4pg", {}),
    "bc_reg": ("gbrl_bc_reg", {"method": "bc_reg", "bc_weight": 0.5}),
    "bc_reg_decay:5": ("gbrl_bc_reg", {"method": "bc_reg_decay", "decay_rate": 5.0}),
    "between:1": ("gbrl_bc_reg", {"method": "between", "decay_rate": 1.0}),
    "ta:1": ("gbrl_teacher_action", {"method": "ta", "decay_rate": 1.0}),
    "ta_qf": ("gbrl_teacher_action", {"method": "ta_qf"}),
    "tg:1": ("gbrl_teacher_grad", {"decay_rate": 1.0}),
}
SMALL = {
    "actor_steps": 3_000, "learner_steps": 61, "num_cycles": 2, "batch_size": 32, "demo_episodes": 2, "bc_steps": 40,
    "critic_steps": 20, "eval_every": 20, "report_episodes": 2, "num_workers": 0, "checkpoint_every": 15,
}  # fmt: skip


def script(name):
    return importlib.import_module(name)


def run_row(row, run_dir, demo_dir, **flags):
    """Run a row of the table in this process; returns its folder."""
    name, own = ROWS[row]
    args = script(name).Args(run_dir=str(run_dir), demo_dir=str(demo_dir), **(SMALL | own | flags))
    return script(name).main(args)


def metrics(run_dir):
    """metrics.csv as a list of dicts of floats, without empty cells."""
    with open(Path(run_dir) / "metrics.csv") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def report(run_dir):
    return json.loads((Path(run_dir) / "report.json").read_text())


TIMES = ("wall_s", "charts/SPS", "charts/UPS")


def result(run_dir):
    """All of a run that must be bit-equal: weights, deployed data, metrics and report without times."""
    run_dir = Path(run_dir)
    content = {}
    for path in sorted(run_dir.glob("cycle_*/batch.npz")):
        with np.load(path) as arrays:
            content |= {f"{path.parent.name}/{k}": v.tobytes() for k, v in arrays.items() if k != "run"}
    for path in sorted(run_dir.glob("cycle_*/snapshot.pt")):
        snapshot = files.load_torch(path, "snapshot")
        for network in ("policy", "critic"):
            content |= {f"{path.parent.name}/{network}/{k}": v.numpy().tobytes() for k, v in snapshot[network].items()}
    content["metrics"] = [{k: v for k, v in row.items() if k not in TIMES} for row in metrics(run_dir)]
    content["report"] = {k: v for k, v in report(run_dir).items() if k not in ("seconds", "wall_s", "sha256")}
    return content


def differences(a, b):
    """The names under which two results differ."""
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def kill_somewhere(child, run_dir, rng):
    """SIGKILL a run a few checkpoints after its start and a moment later; returns whether it was still running.

    Counting checkpoints rather than seconds reaches every phase on a machine of any speed.
    """
    path, last, left = Path(run_dir) / "checkpoint.pt", None, rng.randrange(6)
    moment = rng.random() * (0.15 if left > 0 else 1.0)  # seconds; reading what a run goes on from takes most of one
    while left > 0 and child.exitcode is None:
        child.join(0.005)
        written = path.stat().st_mtime_ns if path.exists() else last
        left, last = left - (last is not None and written != last), written
    child.join(moment)
    if child.exitcode is not None:
        return False
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return True


def phase(run_dir):
    """The phase that a run was in at its last checkpoint."""
    for name in ("checkpoint.pt", "checkpoint_previous.pt"):
        try:
            return files.load_torch(Path(run_dir) / name, "checkpoint")["phase"]
        except UserError:
            continue
    return "before its first checkpoint"
