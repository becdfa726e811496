"""The small file that we keep of a finished run, for figures and verdicts: its command, report and curve."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from common import UserError, files, launch, report

DEPLOYMENT = ("cycle", "learner_step", "deploy/episodic_return", "losses/overestimation", "teacher/dqda_cosine")


class Budget(NamedTuple):
    """Environment steps and updates of a run, over all cycles."""

    actor_steps: int
    learner_steps: int

    @property
    def scale(self) -> float | None:
        """The --scale that gives this budget, or None where none does."""
        scale = self.actor_steps / PAPER.actor_steps
        return scale if scale == self.learner_steps / PAPER.learner_steps else None

    @property
    def title(self) -> str:
        """The budget in words."""
        if self.scale is None:
            return f"{self.actor_steps:,} environment steps and {self.learner_steps:,} updates"
        return "the paper's budget" if self.scale == 1 else f"{100 * self.scale:g} % of the paper's budget"


PAPER = Budget(2_000_000, 250_000)  # [paper A.2]


class Run(NamedTuple):
    """The parts of a run that figures need. `steps` and `returns` are those of its n evaluations, (n,)."""

    method: str
    env_id: str
    seed: int
    teacher: str
    num_cycles: int
    budget: Budget
    steps: np.ndarray
    returns: np.ndarray
    report: dict[str, Any]
    resolved: dict[str, Any]  # every flag

    @property
    def setting(self) -> str:
        """What runs of different methods, tasks and seeds must have in common to be compared, in words."""
        return f"{self.num_cycles} cycles, teacher {self.teacher}, {self.budget.title}"


def task_weights(members: list[Run]) -> np.ndarray:
    """Each run's weight in a mean where every task counts the same, however many runs it has: (runs,), sum 1."""
    runs_of = Counter(run.env_id for run in members)
    return np.array([1 / (len(runs_of) * runs_of[run.env_id]) for run in members])


def estimate(statistic: Callable[..., np.ndarray], *scores: list[np.ndarray]) -> tuple[float, float, float]:
    """`statistic` of scores and its 95 % percentile interval from a bootstrap of the runs within each task.

    Each of `scores` has an array (R,) for each task, or (RESAMPLES, R) in the bootstrap. If a task has only one run,
    the spread is unknown and the interval is NaN.
    """
    point = float(statistic(*scores))
    if min(len(of_task) for tasks in scores for of_task in tasks) < 2:
        return point, float("nan"), float("nan")
    rng, size = np.random.default_rng(0), report.RESAMPLES
    drawn = [[of_task[rng.integers(len(of_task), size=(size, len(of_task)))] for of_task in tasks] for tasks in scores]
    low, high = np.quantile(statistic(*drawn), [0.025, 0.975])
    return point, float(low), float(high)


def extract(folder: Path) -> dict[str, Any]:
    """What we keep of the finished run in `folder`: no arrays or networks, and returns rounded to hundredths.

    Raises:
        UserError: it isn't a finished run, or one of its files is damaged.
    """
    if not (folder / "report.json").is_file():
        raise UserError(f"{folder} isn't a finished run: it has no report.json.")
    arguments = files.load_json(folder / "args.json", "arguments")
    versions = files.load_json(folder / "versions.json", "versions")
    content = files.load_json(folder / "report.json", "report")
    lines = report.read_metrics(folder / "metrics.jsonl")
    steps, returns = report.curve(lines)
    if len(steps) == 0:
        raise UserError(f"{folder} has no evaluations in its metrics.jsonl, so it has no curve.")
    deployments = [{k: line[k] for k in DEPLOYMENT if k in line} for line in lines if "deploy/episodic_return" in line]
    last = files.load_torch(sorted(folder.glob("cycle_*/snapshot.pt"))[-1], "snapshot")
    return {
        "command": last["metadata"]["command"],
        "resolved": {name: value for name, value in arguments["args"].items() if name not in launch.NOT_IN_COMMAND},
        "versions": versions,
        "report": content,
        "deployments": deployments,
        "curve": {"learner_step": steps.tolist(), "return": [round(value, 2) for value in returns.tolist()]},
    }


def save(folder: Path, path: Path) -> None:
    """Keep the finished run in `folder` as the file `path`, one line for each part."""
    parts = [f"{json.dumps(name)}: {json.dumps(part)}" for name, part in extract(folder).items()]
    files.write_atomically(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def load(path: Path) -> Run:
    """Read a finished run from its folder or from the file that `save` wrote. Raises UserError as `extract` does."""
    try:
        content = extract(path) if path.suffix != ".json" else json.loads(path.read_text())
        resolved, summary, curve = (content[name] for name in ("resolved", "report", "curve"))
        name = summary["name"]
        key = (name, *(resolved[name] for name in ("env_id", "seed", "teacher", "num_cycles")))
        budget = Budget(resolved["actor_steps"], resolved["learner_steps"])
        return Run(*key, budget, np.array(curve["learner_step"]), np.array(curve["return"]), summary, resolved)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read as the kept file of a run: {error!r}.") from error


def find(paths: Iterable[Path]) -> list[Path]:
    """The finished runs that `paths` name: run folders, kept files, and folders of kept files.

    You can give `runs/*` as it is: we skip what sweep.py leaves beside its run folders, which is logs, figures and the
    clones that its methods share. We also skip a folder without a finished run, and print that on stderr.
    """
    found = []
    for path in paths:
        if path.suffix == ".json" or (path / "report.json").is_file():
            found += [] if path.name.startswith("clone__") else [path]
        elif kept := sorted(path.glob("*__*.json")):  # as sweep.py names them
            found += kept
        elif path.suffix not in (".log", ".csv", ".png"):
            print(f"{path} is left out: it isn't a finished run, it has no report.json.", file=sys.stderr)
    return found


def load_all(paths: Iterable[Path]) -> list[Run]:
    """Read all finished runs that `find` finds in `paths`.

    Raises:
        UserError: a file is damaged, a run is there twice, or a method's seeds were run with different flags.
    """
    loaded = [load(path) for path in tqdm(find(paths), "reading runs", disable=None, leave=False)]
    by_name: dict[str, dict[int, Run]] = {}
    for run in loaded:
        name = f"{run.method}, {run.env_id}, {run.setting}"
        seeds = by_name.setdefault(name, {})
        if run.seed in seeds:
            raise UserError(f"two runs are both {name}, seed {run.seed}; give one of them.")
        seeds[run.seed] = run
        other = next(iter(seeds.values()))
        for flag in sorted(run.resolved.keys() & other.resolved.keys() - launch.FREE_FLAGS - {"seed"}):
            if (theirs := other.resolved[flag]) != (mine := run.resolved[flag]):
                flag = "--" + flag.replace("_", "-")
                raise UserError(
                    f"two runs are both {name}, but one has {flag} {theirs} and one {mine}; give one of them."
                )
    return loaded
