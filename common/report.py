"""A finished run as numbers and as a picture: `report.json` and `learning_curve.png`."""

import collections
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common import files
from common.rollouts import unpack

DIP_EVALUATIONS = 10  # consecutive evaluations in a dip's moving mean [ours: one episode is too noisy]
RESAMPLES = 10_000  # of a bootstrap [ours]
MAX_CYCLE_LINES = 20  # more cycles would be too close together in the picture [ours]


def resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of bootstrap resamples of `values`, (n,) -> (RESAMPLES,). Always the same resamples for the same n."""
    rng, n, chunk = np.random.default_rng(seed), len(values), 100  # in chunks, so that memory stays small for any n
    return np.concatenate([values[rng.integers(n, size=(chunk, n))].mean(1) for _ in range(RESAMPLES // chunk)])


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`, (n,)."""
    low, high = np.quantile(resampled_means(values), [0.025, 0.975])
    return float(low), float(high)


def summarise(returns: np.ndarray) -> dict[str, Any]:
    """Mean, its 95 % bootstrap interval, standard deviation (divided by n, not n - 1) and number of `returns`, (n,)."""
    interval = list(bootstrap_interval(returns))
    return {"mean": float(returns.mean()), "ci95": interval, "std": float(returns.std()), "episodes": len(returns)}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`. Raises UserError if it is missing, or damaged; the message names the line."""
    return files.read(path, "metrics", files.RESTORE, lambda lines: json.loads(b"[" + b",".join(lines) + b"]"))


def curve(lines: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Learner steps (n,) and noise-free returns (n,) of the n evaluations in `lines`."""
    evaluated = [line for line in lines if "eval/episodic_return" in line]
    steps = np.array([line["learner_step"] for line in evaluated], np.int64)
    return steps, np.array([line["eval/episodic_return"] for line in evaluated])


def moving_means(returns: np.ndarray) -> np.ndarray:
    """Moving mean M of ten evaluations' returns, or of all where there are fewer: (n,) -> (n - min(10, n) + 1,)."""
    window = min(DIP_EVALUATIONS, len(returns))
    return np.lib.stride_tricks.sliding_window_view(returns, window).mean(1)


def dip(steps: np.ndarray, returns: np.ndarray, clone_mean: float) -> dict[str, Any] | None:
    """How far a run falls below its clone.

    With w = min(10, n) and m_j = mean(returns[j-w+1..j]), depth = max(0, clone_mean - min_j m_j), and the learner step
    is that of the first evaluation j with the lowest m_j.

    Args:
        steps, returns: (n,), of the run's evaluations. None is returned for n = 0.
    """
    if len(returns) == 0:
        return None
    means = moving_means(returns)
    window, lowest = len(returns) - len(means) + 1, int(means.argmin())
    return {
        "depth": max(0.0, clone_mean - float(means[lowest])),
        "learner_step": int(steps[lowest + window - 1]),
        "mean_of_10": float(means[lowest]),
        "evaluations": window,
    }


def falls(returns: list[np.ndarray], paired: bool) -> dict[str, int]:
    """Falls between consecutive cycles with returns R_k (n,), `paired` if all cycles have the same n start seeds.

    count = #{k: mean(R_k) < mean(R_{k-1})}; significant = #{k: the 95 % bootstrap interval of mean(R_k) - mean(R_{k-1})
    lies entirely below 0}. Unpaired returns are resampled independently.
    """
    pairs = list(itertools.pairwise(returns))
    changes = [resampled_means(b - a) if paired else resampled_means(b, 1) - resampled_means(a) for a, b in pairs]
    significant = sum(bool(np.quantile(change, 0.975) < 0) for change in changes)
    return {"count": sum(bool(b.mean() < a.mean()) for a, b in pairs), "significant": significant}


def by_cycle(run_dir: Path, name: str) -> dict[int, Path]:
    """The files of this name in a run's cycle folders, in the order of the cycles."""
    return dict(sorted((int(path.parent.name[6:]), path) for path in run_dir.glob(f"cycle_*/{name}")))


def _returns(path: Path) -> np.ndarray:
    """Returns of an evaluation, (n,)."""
    return np.array(files.load_json(path, "evaluation", files.REMAKE)["returns"], np.float64)


def make_report(run_dir: Path, queries: dict[str, int], seconds: dict[str, float]) -> dict[str, Any]:
    """Compute `report.json` from the raw files of a run folder, write it and return it.

    regret = sum over deployed episodes of (teacher's mean return - episodic return). The functions of the same name
    define `dip` and `falls`. Without a simulator there are no evaluations: returns and falls then come from
    deployments, and the teacher's return from its recorded episodes. If a run keeps only some cycles, the deployed
    episodes of a kept cycle are all those since the kept cycle before it.

    Args:
        queries: number of teacher queries by purpose; the metrics `teacher/..._queries` hold the others.
        seconds: seconds per phase.

    Raises:
        UserError: a raw file is missing or damaged.
    """
    content = files.load_json(run_dir / "args.json", "arguments")
    lines, batches = read_metrics(run_dir / "metrics.jsonl"), by_cycle(run_dir, "batch.npz")
    batches.pop(0, None)  # it has the demonstrations of your own teacher
    episodes = {cycle: unpack(files.load_arrays(path, "batch")) for cycle, path in batches.items()}
    deployed = {cycle: [episode.episodic_return for episode in batch] for cycle, batch in episodes.items()}
    evaluations = {cycle: _returns(path) for cycle, path in by_cycle(run_dir, "evaluation.json").items()}
    all_deployed = np.concatenate([*deployed.values(), []])
    args, has_clone, asked = content["args"], content["args"]["teacher"] != "none", collections.Counter(queries)
    for name, value in (item for line in lines for item in line.items()):
        if name.startswith("teacher/") and name.endswith("_queries"):
            asked[name.removeprefix("teacher/")] += int(value)

    teacher, regret = None, None
    if has_clone:
        returns = summarise(_returns(run_dir / "teacher.json"))
        teacher = {"name": args["teacher"], "sha256": content["teacher_sha256"], "return": returns}
        regret = float((teacher["return"]["mean"] - all_deployed).sum())
    start = summarise(evaluations[0]) if evaluations else None
    kept = sorted(evaluations or {0, *deployed})
    cycles, groups = [], []
    for previous, cycle in itertools.pairwise(kept):
        group = np.concatenate([[], *(deployed.get(k, []) for k in range(previous + 1, cycle + 1))])
        step = max((int(line["learner_step"]) for line in lines if line["cycle"] == cycle), default=None)
        groups += [group] if len(group) else []
        cycles.append(
            {
                "cycle": cycle,
                "learner_step": step,
                "deployed": summarise(group) if len(group) else None,
                "after_learning": summarise(evaluations[cycle]) if evaluations else None,
            }
        )
    report = {
        "name": content["name"],
        "env_id": args["env_id"],
        "seed": args["seed"],
        "script": content["script"],
        "teacher": teacher,
        "returns": "noise-free evaluations" if evaluations else "deployments, for nothing could be evaluated",
        "clone": {"return": start, "from": args["pretrained"]} if has_clone and evaluations else None,
        "final": {"return": summarise(list(evaluations.values())[-1]) if evaluations else cycles[-1]["deployed"]},
        "cycles": cycles,
        "dip": dip(*curve(lines), start["mean"]) if has_clone and evaluations else None,
        "falls": falls(list(evaluations.values()) or groups, paired=bool(evaluations)),
        "regret": regret,
        "regret_per_episode": regret / len(all_deployed) if teacher and len(all_deployed) else None,
        "teacher_queries": dict(asked),
        "changes": files.load_json(run_dir / "versions.json", "versions")["changes"],
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "wall_s": lines[-1]["wall_s"] if lines else None,
    }
    files.save_json(run_dir / "report.json", report)
    return report


@contextmanager
def plain_figure(**size: Any) -> Iterator[Any]:
    """A matplotlib `Figure` in this project's style, whatever MPLBACKEND or a matplotlibrc says; draw inside the block.

    It leaves pyplot and its back ends alone. Arguments are those of `Figure`.
    """
    backend = os.environ.pop("MPLBACKEND", None)  # the import fails on a notebook's back end that isn't installed
    try:
        import matplotlib.figure  # here, because it is slow to import and a run draws once
        import matplotlib.style
    finally:
        os.environ.update({} if backend is None else {"MPLBACKEND": backend})
    look = {"font.size": 8, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.style.context(look | {"axes.linewidth": 0.6}, after_reset=True):
        yield matplotlib.figure.Figure(layout="constrained", **size)


def draw_learning_curve(run_dir: Path) -> Path | None:
    """Draw `learning_curve.png` for a run folder with a `report.json`, and return its path.

    The picture shows noise-free evaluations against learner steps, their moving mean over 10 as in `dip`, the deployed
    returns at the step where their cycle starts, and the mean returns of teacher and clone. If matplotlib fails, print
    that on stderr and return None, because the run is finished all the same.
    """
    report = files.load_json(run_dir / "report.json", "report")
    steps, returns = curve(read_metrics(run_dir / "metrics.jsonl"))
    picture = io.BytesIO()
    try:
        with plain_figure(figsize=(6.5, 3.6)) as figure:
            _draw(figure, report, steps, returns)
            figure.savefig(picture, dpi=200)
    except Exception as error:
        print(f"{run_dir} has no learning_curve.png, because matplotlib failed: {error!r}", file=sys.stderr)
        return None
    files.write_atomically(run_dir / "learning_curve.png", picture.getvalue())
    return run_dir / "learning_curve.png"


def _draw(figure: Any, report: dict[str, Any], steps: np.ndarray, returns: np.ndarray) -> None:
    """Draw what `draw_learning_curve` describes."""
    kept = [cycle for cycle in report["cycles"] if cycle["learner_step"] is not None]
    ends = [0] + [cycle["learner_step"] for cycle in kept]
    last, few = max([1, *steps.tolist(), *ends]), not kept or kept[-1]["cycle"] <= MAX_CYCLE_LINES
    colours = {"teacher": "black", "clone": "#009E73", "one": "#56B4E9", "ten": "#0072B2", "deployed": "#D55E00"}
    axes = figure.subplots()
    if len(returns) > 0:
        axes.plot(steps, returns, color=colours["one"], linewidth=0.5, alpha=0.7, label="evaluation, no noise")
    if len(returns) > DIP_EVALUATIONS:
        mean, label = moving_means(returns), f"mean of {DIP_EVALUATIONS} evaluations"
        axes.plot(steps[DIP_EVALUATIONS - 1 :], mean, color=colours["ten"], linewidth=1.4, label=label)
    groups = [(x, cycle["deployed"]) for x, cycle in zip(ends, kept, strict=False) if cycle["deployed"]]
    if groups:
        x, y, error = zip(*[(x, group["mean"], group["std"]) for x, group in groups], strict=True)
        look = {"markersize": 3.5, "elinewidth": 0.9, "capsize": 2} if few else {"markersize": 2, "elinewidth": 0.5}
        label = "deployed, with noise (± standard deviation)"
        axes.errorbar(x, y, error, fmt="o", color=colours["deployed"], zorder=4, label=label, **look)
    for who, style in (("clone", "-"), ("teacher", "--")):  # you see both where they coincide
        if report[who]:
            level = report[who]["return"]["mean"]
            axes.axhline(level, color=colours[who], linestyle=style, linewidth=1, label=f"{who} {level:.0f}")
    low, high = axes.get_ylim()
    room = 0.02 * (high - min(low, 0))  # keeps a curve at 0 visible above the axis
    axes.set(xlim=(-0.015 * last, last), ylim=(-room if returns.min(initial=0) >= 0 else low, high))
    above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "color": "0.4", "fontsize": 7}
    for start, end, cycle in zip(ends, ends[1:], kept if few else [], strict=False):
        axes.axvline(end, color="0.85", linewidth=0.6, zorder=0)
        name = f"cycle {cycle['cycle']}" if start == 0 or len(kept) <= 8 else str(cycle["cycle"])
        axes.annotate(name, ((start + end) / 2, 1), xycoords=axes.get_xaxis_transform(), **above)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="learner steps", ylabel="episodic return")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    figure.suptitle(f"{report['env_id']}, {report['name']}, seed {report['seed']}", fontsize=8)
