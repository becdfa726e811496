"""Kill runs of all four scripts with SIGKILL at random moments, resume each time, and compare each end, bit for bit.

    python benchmark/kills.py --kills 100

Each of the rows ta:1, bc, bc_reg_decay:5 and tg:1 is run once alone and then under its share of the kills. A run that
is quicker than its killers is compared and started again. Exits with status 1 if an end differs.
"""

import collections
import multiprocessing
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from small import ROWS, SMALL, differences, kill_somewhere, phase, result, script  # noqa: E402


@dataclass
class Args:
    """How many kills, and of what."""

    kills: int = 100
    """SIGKILLs over all rows"""
    rows: tuple[str, ...] = ("ta:1", "bc", "bc_reg_decay:5", "tg:1")
    """rows of the README's table, one of each script"""
    env_id: str = "cartpole-swingup"
    """task"""
    num_workers: int = 0
    """worker processes of each run"""
    seed: int | None = None
    """seed of the moments; default: a random one, which is printed"""


def start(row: str, args: Args, folder: Path, checkpoint_every: int) -> multiprocessing.Process:
    """Start or continue a run in a forked process, which needs no new imports."""
    name, own = ROWS[row]
    flags = SMALL | own | {"env_id": args.env_id, "num_workers": args.num_workers, "checkpoint_every": checkpoint_every}
    run_args = script(name).Args(run_dir=str(folder), demo_dir=str(folder.parent / "demos"), **flags)
    child = multiprocessing.get_context("fork").Process(target=script(name).main, args=(run_args,))
    child.start()
    return child


def torment(row: str, args: Args, kills: int, rng: random.Random, folder: Path) -> tuple[collections.Counter, int, int]:
    """Kill runs of one row `kills` times; returns the kills per phase, the runs, and how many of them were equal."""
    alone = start(row, args, folder / "alone", 15)
    alone.join()
    if alone.exitcode != 0:
        sys.exit(f"{row}: the run that was left alone failed")
    expected, phases, runs, equal = result(folder / "alone"), collections.Counter(), 0, 0
    while phases.total() < kills:
        run_dir = folder / f"killed_{runs}"
        runs += 1
        while True:
            child = start(row, args, run_dir, 2)
            if phases.total() == kills:
                child.join()
            if child.exitcode is not None or not kill_somewhere(child, run_dir, rng):
                break
            phases[phase(run_dir)] += 1
        if child.exitcode != 0:
            sys.exit(f"{row}: a resumed run failed with status {child.exitcode}")
        different = differences(result(run_dir), expected)
        equal += not different
        print(f"{row}: run {runs} after {phases.total()} kills: {different if different else 'bit-equal'}")
    return phases, runs, equal


def main(args: Args) -> None:
    """Print the seed, each end, and the kills per phase."""
    seed = random.randrange(10**6) if args.seed is None else args.seed
    rng, phases, runs, equal = random.Random(seed), collections.Counter(), 0, 0
    print(f"seed {seed}")
    torch.set_num_threads(1)
    for i, row in enumerate(args.rows):
        share = (i + 1) * args.kills // len(args.rows) - i * args.kills // len(args.rows)
        with tempfile.TemporaryDirectory() as folder:
            new = torment(row, args, share, rng, Path(folder))
        phases, runs, equal = phases + new[0], runs + new[1], equal + new[2]
    print(f"{phases.total()} kills: " + ", ".join(f"{count} in {name}" for name, count in sorted(phases.items())))
    print(f"{equal} of {runs} ends are bit-equal to the run that was left alone")
    sys.exit(equal != runs)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
