"""Run rows of the table x tasks x seeds, a few at a time; start it again to go on where it was ended.

    python benchmark/sweep.py --rows bc ta_qf ta:1 bc_reg_decay:5 --seeds 1 2 3 --scale 0.02 --output runs

Each run has a folder of its own under --output, with what it prints in a `.log` beside it. Flags behind `--` go to all
runs. On a cluster, give each job one row and one seed instead, with --run-dir, and requeue it.
"""

import concurrent.futures
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Args:
    """Which runs."""

    rows: list[str]
    """rows of the README's table: bc, bc_reg, bc_reg_decay:R, between:R, ta:R, ta_qf, tg:R"""
    output: Path
    """folder of the run folders"""
    env_ids: tuple[str, ...] = ("cartpole-swingup",)
    """tasks"""
    teacher: str = "expert"
    """teacher of every run"""
    num_cycles: tuple[int, ...] = (4,)
    """numbers of cycles"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """seeds [paper: 5 per task]"""
    scale: float = 1.0
    """fraction of the paper's budget"""
    parallel: int = 2
    """runs at once"""


def command(row: str) -> list[str]:
    """The script and flags that run `row`. Raises ValueError for a row that isn't in the table."""
    name, _, rate = row.partition(":")
    if name in ("bc", "ta_qf", "bc_reg") and not rate:
        script = {"bc": "gbrl_d4pg.py", "ta_qf": "gbrl_teacher_action.py", "bc_reg": "gbrl_bc_reg.py"}[name]
        return [script] + ([] if name == "bc" else ["--method", name])
    if name == "tg" and rate:
        return ["gbrl_teacher_grad.py", "--decay-rate", rate]
    if name in ("ta", "between", "bc_reg_decay") and rate:
        script = "gbrl_teacher_action.py" if name == "ta" else "gbrl_bc_reg.py"
        return [script, "--method", name, "--decay-rate", rate]
    raise ValueError(f"{row} is no row of the table: bc, bc_reg, bc_reg_decay:R, between:R, ta:R, ta_qf, tg:R")


def run(words: list[str], folder: Path) -> int:
    """Start or continue one run; returns its exit status."""
    if (folder / "report.json").exists():
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    script, *flags = words
    with open(folder.parent / f"{folder.name}.log", "a") as log:
        words = [sys.executable, str(ROOT / script), *flags, "--run-dir", str(folder)]
        return subprocess.run(words, stdout=log, stderr=subprocess.STDOUT).returncode


def main(args: Args, more: list[str]) -> None:
    """Run all, report each that ends, and exit with status 1 if one failed."""
    jobs = {}
    for seed in args.seeds:  # all rows of a seed before the next seed: an early end leaves whole comparisons
        for env_id in args.env_ids:
            for cycles in args.num_cycles:
                for row in args.rows:
                    folder = args.output / f"{env_id}__{row.replace(':', '-')}__{args.teacher}__{cycles}__{seed}"
                    words = [*command(row), "--env-id", env_id, "--teacher", args.teacher, "--seed", str(seed)]
                    jobs[folder] = [*words, "--num-cycles", str(cycles), "--scale", str(args.scale), *more]
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        futures = {pool.submit(run, words, folder): folder for folder, words in jobs.items()}
        failed = []
        for future in tqdm(concurrent.futures.as_completed(futures), total=len(futures), unit="run", disable=None):
            if future.result() != 0:
                failed.append(futures[future])
                tqdm.write(f"failed: {futures[future]}, see {futures[future]}.log")
    if failed:
        sys.exit(f"{len(failed)} of {len(jobs)} runs failed; start this again to continue them.")


if __name__ == "__main__":
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    try:
        main(tyro.cli(Args, args=own), sys.argv[len(own) + 2 :])
    except ValueError as error:
        sys.exit(f"error: {error}")
