"""Run methods x tasks x seeds, a few at a time; start it again to continue where it stopped.

    python benchmark/sweep.py --methods bc ta_qf ta:1 bc_reg_decay:5 --seeds 1 2 3 --scale 0.02 --output runs

At its end it draws `curves.png` in --output. You can add options to a method after commas: ta_qf,beta:5. Methods that
clone alike start from one clone for each task, teacher and seed: a run of its own makes it first, and their runs take
it over with --pretrained. Each run has a folder under --output, and a `.log` beside it with what it prints. Flags after
`--` go to all runs. SIGTERM and Ctrl-C reach the runs, which save and end.

With --ray-address every run is a task of a Ray cluster: start the sweep in a folder that all nodes see under the same
path, with this checkout and --output, and install requirements.txt and requirements-ray.txt on every node. When a node
is lost, its runs continue on other nodes from their checkpoints. For any other scheduler, --print writes the commands.
"""

import concurrent.futures
import contextlib
import ctypes
import functools
import importlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import methods
import plot
import runs
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

import gbrl_d4pg  # noqa: E402
from common import UserError, envs, files, launch  # noqa: E402

SET_HERE = {"--env-id", "--teacher", "--seed", "--scale", "--num-cycles", "--pretrained", "--run-dir", "--resume"}
STARTED: list[subprocess.Popen] = []  # the runs on this machine, also those that have ended
MAX_LOSSES = 10  # of nodes during one run, before the sweep gives the run up [ours]


@dataclass
class Args:
    """The runs of a sweep."""

    methods: list[str]
    """methods of the table, each with its options: bc, bc_reg, bc_reg_decay:R, between:R, ta:R, ta_qf, tg:R"""
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
    """runs at once on this machine"""
    results: Path | None = None
    """folder that keeps a small file of each finished run; a run whose file is there isn't run again, so give runs with
    other flags after `--` another folder"""
    ray_address: str | None = None
    """address of a Ray cluster that runs them, or "auto" for the one of this machine"""
    cpus_per_run: int = 1
    """processors of each run on a cluster"""
    gpus_per_run: float = 0.0
    """GPUs of each run on a Ray cluster; several runs can share one"""
    print: bool = False
    """run nothing; print the command of each unfinished run. The first block, the clones, must be finished before you
    start the second"""


def refuse_other(words: list[str], saved: dict[str, Any], where: Path) -> None:
    """Raise UserError if `words` would run something else than the flags `saved`, with which a run was made."""
    script, *flags = words
    module = importlib.import_module(Path(script).stem)
    args = launch.checked(tyro.cli(module.Args, args=flags))
    if found := launch.difference(module.resolve(args, envs.spec(args.env_id)), saved, launch.FREE_FLAGS):
        flag, wanted, there = found
        raise UserError(f"{where} was run with {flag} {there}, not {wanted}; give another --output or --results.")


def command(words: list[str], folder: Path) -> list[str]:
    """Turn the words of `methods.command`, plus more flags, into a command that starts or continues a run."""
    script, *flags = words
    return [str(ROOT / script), *flags, "--run-dir", str(folder)]


def run(words: list[str], folder: Path, clone: Any = None, **options: Any) -> int:
    """Start or continue one run if its clone's run has succeeded; returns its exit status, or else the clone's.

    `clone` is the clone's status or its future. `options` go to `subprocess.Popen`.
    """
    status = clone.result() if isinstance(clone, concurrent.futures.Future) else clone
    if status or (folder / "report.json").exists():
        return status or 0
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.log", "a") as log:
        words = [sys.executable, *command(words, folder)]
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, **options)
        STARTED.append(process)
        return process.wait()


def end_runs(number: int, frame: FrameType | None) -> None:
    """Pass a signal on to the runs on this machine, and end once they have."""
    for process in STARTED:
        process.send_signal(number)
    sys.exit(128 + number)


def run_on_node(here: str, *job: Any) -> int:
    """`run` as a task of a Ray cluster, in the folder `here`. The run ends when the task does, however that ends."""
    os.chdir(here)
    libc, die_with_parent = ctypes.CDLL(None), 1  # PR_SET_PDEATHSIG, which only Linux has
    options = {"preexec_fn": lambda: libc.prctl(die_with_parent, signal.SIGKILL)} if sys.platform == "linux" else {}
    return run(*job, **options)


def on_ray(args: Args) -> Callable[..., Any]:
    """`run` as a function that begins a task of the cluster; its `clone` may be another task's result.

    Raises:
        UserError: Ray isn't installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray-address needs Ray: pip install -r requirements-ray.txt") from error
    try:
        ray.init(args.ray_address, logging_level="warning", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:  # none there, or of another version
        raise UserError(f"--ray-address {args.ray_address}: {error}") from error
    needs = {"num_cpus": args.cpus_per_run, "num_gpus": args.gpus_per_run, "max_retries": MAX_LOSSES}
    return functools.partial(ray.remote(run_on_node).options(**needs).remote, os.getcwd())


def processors(root: Path = Path("/")) -> int:
    """Processors that this process may use: by its affinity, its control groups' quotas and its Slurm job."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    if (share := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():
        limits.append(int(share))
    own = root / "proc/self/cgroup"
    group = Path(own.read_text().rpartition(":")[2].strip().lstrip("/")) if own.exists() else Path()
    for path in (group, *group.parents):  # all quotas apply; in a container only the last may be there
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            quota, period = map(int, (root / "sys/fs/cgroup" / path / "cpu.max").read_text().split())
            limits.append(quota // period)
    return max(1, min(limits))


def clone_of(name: str) -> str:
    """The method that makes the clone of `name`: bc, with those options of `name` that `--pretrained` compares."""
    cloning = vars(gbrl_d4pg.Args()).keys() - launch.INHERITED - launch.CYCLES_AND_BUDGET
    options = name.split(",")[1:]
    return ",".join(["bc", *(o for o in options if o.partition(":")[0].replace("-", "_") in cloning)])


def main(args: Args, more: list[str]) -> None:
    """Run everything, report failures, and exit with status 1 if a run failed. Raises UserError for bad input."""
    if args.parallel < 1 or args.cpus_per_run < 1:
        raise UserError("--parallel and --cpus-per-run must be at least 1.")
    flags = {word.partition("=")[0].replace("_", "-") for word in more}
    if taken := sorted(flags & SET_HERE):
        raise UserError(f"{taken[0]} after `--`: the sweep sets it for each run.")
    clones: dict[Path, list[str]] = {}
    finished: list[Path] = []
    jobs: dict[Path, list[str]] = {}
    clone_by_job: dict[Path, Path] = {}
    # All methods of a seed run before the next seed, so that an early end leaves whole comparisons.
    for seed, env_id, cycles, method in itertools.product(args.seeds, args.env_ids, args.num_cycles, args.methods):
        clone, ending = clone_of(method), (f"{args.scale:g}", str(seed))
        task, by = (Path(flag).name.replace(":", "-") for flag in (env_id, args.teacher))  # may be files
        name = "__".join([task, method.replace(":", "-"), by, str(cycles), *ending])
        folder = args.output / "__".join(["clone", task, clone.replace(":", "-"), by, *ending])
        shared = ["--env-id", env_id, "--teacher", args.teacher, "--seed", str(seed), *more, "--scale", str(args.scale)]
        words = [*methods.command(method), *shared, "--num-cycles", str(cycles), "--pretrained", str(folder)]
        kept = args.results and args.results / f"{name}.json"
        if kept and kept.exists():
            refuse_other(words, runs.load(kept).resolved, kept)
            finished.append(kept)
            continue
        episode = str(envs.spec(env_id).episode_length)  # one episode, the least that a run may have
        short = ["--num-cycles", "1", "--actor-steps", episode, "--learner-steps", "1"]
        if not (args.output / name / "report.json").exists():  # else nobody needs its clone
            clones[folder] = [*methods.command(clone), *shared, *short]
        if jobs.get(args.output / name, words) != words:  # two files of one name
            raise UserError(f"two different runs would be {args.output / name}: give another name to a file.")
        jobs[args.output / name], clone_by_job[args.output / name] = words, folder
    for folder, words in (clones | jobs).items():
        if (folder / "report.json").exists():  # here, because tyro isn't thread-safe
            refuse_other(words, files.load_json(folder / "args.json", "arguments")["args"], folder)

    if "--num-workers" not in flags:
        here = not args.print and args.ray_address is None
        # A run's learner and its workers share its processors; a clone's episodes run while nothing learns.
        for block, learner in ((clones, 0), (jobs, 1)):
            share = processors() // min(args.parallel, len(block) or 1) if here else args.cpus_per_run
            for words in block.values():
                words += ["--num-workers", str(max(0, share - learner))]

    if args.print:
        for block in (clones, jobs):
            todo = [command(words, folder) for folder, words in block.items() if not (folder / "report.json").exists()]
            print(*(shlex.join(["python", *words]) for words in todo), "", sep="\n")
        return

    failed = []
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        submit = functools.partial(pool.submit, run) if args.ray_address is None else on_ray(args)
        cloning = {folder: submit(words, folder) for folder, words in clones.items()}
        started = {folder: submit(words, folder, cloning.get(clone_by_job[folder])) for folder, words in jobs.items()}
        futures = {job if args.ray_address is None else job.future(): folder for folder, job in started.items()}
        try:
            for future in tqdm(concurrent.futures.as_completed(futures), total=len(futures), unit="run", disable=None):
                folder = futures[future]
                if (error := future.exception()) or future.result() != 0:
                    failed.append(folder)
                    reason = f" ({type(error).__name__}: {error})" if error else ""
                    tqdm.write(f"failed: {folder}{reason}, see {folder}.log and its clone's")
                elif args.results is not None:
                    try:
                        runs.save(folder, args.results / f"{folder.name}.json")
                    except UserError as error:
                        failed.append(folder)
                        tqdm.write(f"not kept: {error}")
        except BaseException:  # such as Ctrl-C, which reaches the runs too: begin no others
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        sys.exit(f"{len(failed)} of {len(jobs)} runs failed; start this again to continue them.")
    plot.main(plot.Args(runs=(*finished, *jobs), output=args.output))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end_runs)
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    try:
        main(tyro.cli(Args, args=own, description=__doc__), sys.argv[len(own) + 2 :])
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
