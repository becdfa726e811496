"""Run rows of the table x tasks x seeds, a few at a time; start it again to go on where it was ended.

    python benchmark/sweep.py --rows bc ta_qf ta:1 bc_reg_decay:5 --seeds 1 2 3 --scale 0.02 --output runs

It ends with a picture, `curves.png` in --output. A row may carry readings behind commas: ta_qf,beta:5. All rows of a
task, teacher and seed start from one clone, which is made first, in a run of its own, and taken over with --pretrained.
Each run has a folder under --output, with what it prints in a `.log` beside it. Flags behind `--` go to all runs. On a
cluster, give each job one row and one seed instead, with --run-dir, and requeue it.
"""

import concurrent.futures
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plot
import rows
import runs
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

import gbrl_d4pg  # noqa: E402
from common import UserError, envs, files, launch  # noqa: E402


@dataclass
class Args:
    """Which runs."""

    rows: list[str]
    """rows of the table: bc, bc_reg, bc_reg_decay:R, between:R, ta:R, ta_qf, tg:R"""
    output: Path
    """folder of the run folders and of the picture"""
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
    results: Path | None = None
    """folder that keeps a small file of each finished run; a run whose file is there isn't run again, so give runs with
    other flags behind `--` another folder"""


def refuse_other(words: list[str], saved: dict[str, Any], where: Path) -> None:
    """Raise UserError if what was run with the flags `saved` isn't what `words` would run."""
    script, *flags = words
    module = importlib.import_module(Path(script).stem)
    args = launch.checked(tyro.cli(module.Args, args=flags))
    if found := launch.difference(module.resolve(args, envs.spec(args.env_id)), saved, launch.FREE_FLAGS):
        flag, wanted, there = found
        raise UserError(f"{where} was run with {flag} {there}, not {wanted}; give another --output or --results.")


def run(words: list[str], folder: Path) -> int:
    """Start or continue one run; returns its exit status."""
    if (folder / "report.json").exists():
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    script, *flags = words
    with open(folder.parent / f"{folder.name}.log", "a") as log:
        words = [sys.executable, str(ROOT / script), *flags, "--run-dir", str(folder)]
        return subprocess.run(words, stdout=log, stderr=subprocess.STDOUT).returncode


def clone_of(row: str) -> str:
    """`row`'s readings that `--pretrained` compares, so that rows with the same ones share a clone."""
    cloning = vars(gbrl_d4pg.Args()).keys() - launch.INHERITED - launch.CYCLES_AND_BUDGET
    readings = row.split(",")[1:]
    return ",".join(["bc", *(r for r in readings if r.partition(":")[0].replace("-", "_") in cloning)])


def main(args: Args, more: list[str]) -> None:
    """Run all, report each that ends, and exit with status 1 if one failed. Raises UserError for what can't be run."""
    if args.parallel < 1:
        raise UserError("--parallel must be at least 1.")
    clones: dict[Path, list[str]] = {}
    finished: list[Path] = []
    jobs: dict[Path, tuple[Path, list[str]]] = {}
    for seed in args.seeds:  # all rows of a seed before the next seed: an early end leaves whole comparisons
        for env_id in args.env_ids:
            for cycles in args.num_cycles:
                for row in args.rows:
                    budget = (f"{args.scale:g}", str(seed))
                    task, by = (Path(flag).name.replace(":", "-") for flag in (env_id, args.teacher))  # may be files
                    name = "__".join([task, row.replace(":", "-"), by, str(cycles), *budget])
                    shared = ["--env-id", env_id, "--teacher", args.teacher, "--seed", str(seed), *more]
                    shared += ["--scale", str(args.scale)]
                    clone = clone_of(row)
                    folder = args.output / "__".join(["clone", task, clone.replace(":", "-"), by, *budget])
                    episode = str(envs.spec(env_id).episode_length)  # one, the least that a run may have
                    short = ["--num-cycles", "1", "--actor-steps", episode, "--learner-steps", "1"]
                    words = [*rows.command(row), *shared, "--num-cycles", str(cycles), "--pretrained", str(folder)]
                    kept = args.results and args.results / f"{name}.json"
                    if kept and kept.exists():
                        refuse_other(words, runs.load(kept).resolved, kept)
                        finished.append(kept)
                        continue
                    clones[folder] = [*rows.command(clone), *shared, *short]
                    jobs[args.output / name] = (folder, words)
    for folder, words in (clones | {folder: words for folder, (_, words) in jobs.items()}).items():
        if (folder / "report.json").exists():  # here, not as a thread comes to it: tyro isn't made for threads
            refuse_other(words, files.load_json(folder / "args.json", "arguments")["args"], folder)

    if not any(word.startswith("--num-workers") for word in more):  # a run's learner and workers share its processors
        processors = os.cpu_count() or 1
        for _, words in jobs.values():
            words += ["--num-workers", str(max(0, processors // args.parallel - 1))]
        # A clone runs its episodes while nothing learns, and often there is only one.
        share = processors // min(args.parallel, len(clones) or 1)
        for words in clones.values():
            words += ["--num-workers", str(share if share > 1 else 0)]

    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        cloning = {folder: pool.submit(run, words, folder) for folder, words in clones.items()}

        def start(clone: Path, words: list[str], folder: Path) -> int:
            status = cloning[clone].result() or run(words, folder)
            if status == 0 and args.results is not None:
                runs.save(folder, args.results / f"{folder.name}.json")
            return status

        futures = {pool.submit(start, *job, folder): folder for folder, job in jobs.items()}
        failed = []
        try:
            for future in tqdm(concurrent.futures.as_completed(futures), total=len(futures), unit="run", disable=None):
                if future.result() != 0:
                    failed.append(futures[future])
                    tqdm.write(f"failed: {futures[future]}, see {futures[future]}.log and its clone's")
        except BaseException:  # such as Ctrl-C, which reaches the runs too: no other is begun
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        sys.exit(f"{len(failed)} of {len(jobs)} runs failed; start this again to continue them.")
    plot.main(plot.Args(runs=(*finished, *jobs), output=args.output))


if __name__ == "__main__":
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    try:
        main(tyro.cli(Args, args=own, description=__doc__), sys.argv[len(own) + 2 :])
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
