"""Kill runs of all four scripts with SIGKILL at random moments, resume each time, and compare each result, bit for bit.

    python benchmark/kills.py --kills 100

Each case of `CASES` runs once undisturbed, then under its share of the kills; one case is tracked (offline), one has
--keep-every 3. If a run finishes before the kills are used up, we compare it and start another. The exit status is 1 if
a result differs. The tests kill at every file and at chosen steps instead, so that they don't depend on a clock.
"""

import collections
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from small import differences, make_args, result, run_method  # noqa: E402

from common import UserError, files  # noqa: E402

CASES = (
    ("ta:1", {}),
    ("bc", {"keep_every": 3, "num_cycles": 4}),
    ("bc_reg_decay:5", {"track": True}),
    ("tg:1", {}),
)  # method and flags


@dataclass
class Args:
    """Number and timing of the kills."""

    kills: int = 100
    """SIGKILLs over all cases"""
    seed: int | None = None
    """seed of the kill times; default: a random one, which is printed"""


def phase(run_dir: Path) -> str:
    """The cycle of a run's last checkpoint, in words."""
    try:
        return f"cycle {files.load_torch(run_dir / 'checkpoint.pt', 'checkpoint')['cycle']}"
    except UserError:
        return "the start"


def kill_runs(
    method: str, flags: dict[str, object], kills: int, rng: random.Random, folder: Path
) -> tuple[collections.Counter, int, int]:
    """Kill runs of one case `kills` times; returns the kills per cycle, the runs, and how many runs were bit-equal."""
    began = time.perf_counter()
    alone = run_method(method, folder / "alone", folder / "demos", **(flags | {"track": False}))
    longest, expected = (time.perf_counter() - began) / 4, result(alone)
    phases, runs, equal = collections.Counter(), 0, 0
    while phases.total() < kills:
        run_dir = folder / f"killed_{runs}"
        module, args = make_args(method, run_dir, folder / "demos", **flags, checkpoint_every=2)
        runs += 1
        child = None
        while child is None or child.exitcode == -signal.SIGKILL:
            # Each attempt is a forked process, which needs no new imports, and lasts up to a quarter of a run's time.
            child = multiprocessing.get_context("fork").Process(target=module.main, args=(args,))
            child.start()
            child.join(longest * rng.random() if phases.total() < kills else None)
            if child.exitcode is None:
                child.kill()
                child.join()
                phases[phase(run_dir)] += 1
        if child.exitcode != 0:
            sys.exit(f"{method}: a resumed run failed with status {child.exitcode}")
        different = differences(result(run_dir), expected)
        equal += not different
        print(f"{method}, {flags}: run {runs} after {phases.total()} kills: {different if different else 'bit-equal'}")
    return phases, runs, equal


def main(args: Args) -> None:
    """Print the seed, each result, and the kills per cycle."""
    seed = random.randrange(10**6) if args.seed is None else args.seed
    rng, phases, runs, equal = random.Random(seed), collections.Counter(), 0, 0
    print(f"seed {seed}")
    torch.set_num_threads(1)
    os.environ.setdefault("WANDB_MODE", "offline")
    for i, (method, flags) in enumerate(CASES):
        share = (i + 1) * args.kills // len(CASES) - i * args.kills // len(CASES)
        with tempfile.TemporaryDirectory() as folder:
            new = kill_runs(method, flags, share, rng, Path(folder))
        phases, runs, equal = phases + new[0], runs + new[1], equal + new[2]
    print(f"{phases.total()} kills: " + ", ".join(f"{count} in {name}" for name, count in sorted(phases.items())))
    print(f"{equal} of {runs} results are bit-equal to the undisturbed run")
    sys.exit(equal != runs)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
