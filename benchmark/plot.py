"""Average finished runs: learning curves as in the paper's figures 4-7, and statistics over runs and tasks.

    python benchmark/plot.py runs/cheetah-run__* runs/walker-run__* --output figures
    python benchmark/plot.py --alpha

A run counts as one score per task, the mean of its final report episodes / 1000. The statistics are those of rliable
(Agarwal et al. 2021): interquartile mean, probability of improvement, and 95 % intervals from a bootstrap of the runs
within each task. They are written out here because rliable 1.2.0 takes a minute for one such probability and can't be
imported beside pandas 3.
"""

import csv
import io
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, files, report

RESAMPLES = 10_000  # of a bootstrap [ours]
METHODS = ("bc", "bc_reg", "bc_reg_decay", "between", "ta", "ta_qf", "tg")  # the order of rows in figures
COLOURS = ("0.35", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8A900")  # after Okabe and Ito
FINAL, DIP = "IQM of final return / 1000", "IQM of dip / 1000"
IMPROVEMENT = "probability of improvement over bc"


@dataclass
class Args:
    """Average runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """folders of finished runs"""
    output: Path = Path("figures")
    """folder for figures and CSV files"""
    alpha: bool = False
    """also draw Figure 2: alpha against learner steps for decay rates 1, 2 and 5"""


class Run(NamedTuple):
    """What is averaged of one run. `steps` and `returns` are those of its n evaluations, (n,)."""

    row: str
    num_cycles: int
    env_id: str
    seed: int
    teacher: str
    steps: np.ndarray
    returns: np.ndarray
    report: dict[str, Any]


def load_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: it isn't one, or a file of it is damaged.
    """
    if not (folder / "report.json").is_file():
        raise UserError(f"{folder} is no folder of a finished run: it has no report.json.")
    resolved = files.load_json(folder / "args.json", "arguments")["resolved"]
    content = files.load_json(folder / "report.json", "report")
    steps, returns = report.curve(report.read_metrics(folder / "metrics.csv"))
    if len(steps) == 0:
        raise UserError(f"{folder} has no evaluations in its metrics.csv, so it has no curve.")
    row = content["row"] if resolved["teacher"] != "none" else f"{content['row']}, no teacher"
    key = (row, resolved["num_cycles"], resolved["env_id"], resolved["seed"], resolved["teacher"])
    return Run(*key, steps, returns, content)


def group_runs(runs: list[Run]) -> dict[int, dict[str, list[Run]]]:
    """Runs by number of cycles and row, in the order of figures.

    Raises:
        UserError: they can't be compared: a run is there twice, teachers are mixed, or a row lacks tasks of another.
    """
    panels: dict[int, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    teachers: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: (run.num_cycles, *_place(run.row), run.env_id, run.seed)):
        same = panels[run.num_cycles][run.row]
        if any((other.env_id, other.seed) == (run.env_id, run.seed) for other in same):
            name = f"{run.row}, {run.env_id}, {run.num_cycles} cycles, seed {run.seed}"
            raise UserError(f"two runs are both {name}; give one of them.")
        if run.teacher != "none" and teachers.setdefault(run.env_id, run.teacher) != run.teacher:
            both = f"{teachers[run.env_id]} and {run.teacher}"
            raise UserError(f"runs on {run.env_id} have different teachers, {both}; plot them apart.")
        same.append(run)
    for num_cycles, rows in panels.items():
        tasks = {row: sorted({run.env_id for run in members}) for row, members in rows.items()}
        for (row, has), (other, needs) in itertools.permutations(tasks.items(), 2):
            if missing := set(needs) - set(has):
                names = ", ".join(sorted(missing))
                raise UserError(f"with {num_cycles} cycles, {other} has runs on {names} and {row} has none.")
    return panels


def _place(row: str) -> tuple[int, str]:
    method = row.partition(":")[0]
    return METHODS.index(method) if method in METHODS else len(METHODS), row


def average_curves(panels: dict[int, dict[str, list[Run]]]) -> tuple[str, dict[tuple[int, str], np.ndarray]]:
    """Mean and standard deviation (divided by n) over tasks and seeds, as the paper shades it.

    Curves are averaged at the evaluations' learner steps where all runs have the same ones, else, interpolated
    linearly, at 201 points of the learner steps, or of their fraction of the total where totals differ.

    Returns:
        the name of x, and for each (number of cycles, row) x, mean and standard deviation, (3, points).
    """
    runs = [run for rows in panels.values() for members in rows.values() for run in members]
    grid, total = runs[0].steps, runs[0].steps[-1]
    same_total = all(run.steps[-1] == total for run in runs)
    if not all(np.array_equal(run.steps, grid) for run in runs):
        grid = np.linspace(0, total if same_total else 1, 201)
    curves = {}
    for num_cycles, rows in panels.items():
        for row, members in rows.items():
            scales = [1 if same_total else run.steps[-1] for run in members]
            pairs = zip(members, scales, strict=True)
            values = np.stack([np.interp(grid, run.steps / scale, run.returns) for run, scale in pairs])
            curves[num_cycles, row] = np.stack([grid, values.mean(0), values.std(0)])
    return "learner steps" if same_total else "learner steps / total", curves


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of what is left of all runs x tasks scores without the lowest and highest quarter: (..., R, T) -> (...)."""
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), -1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def improvement(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """P(scores > baseline) + P(equal) / 2 over pairs of runs, averaged over tasks.

    Args:
        scores, baseline: (..., R, T) and (..., S, T), giving (...).
    """
    difference = scores[..., :, None, :] - baseline[..., None, :, :]
    return (np.sign(difference) / 2 + 0.5).mean((-3, -2, -1))


def estimate(statistic: Callable[..., np.ndarray], *scores: np.ndarray) -> tuple[float, float, float]:
    """`statistic` of score matrices (R, T) and its 95 % percentile interval when each task's runs are drawn anew.

    One run says nothing about the spread of runs: the interval is then NaN.
    """
    point = float(statistic(*scores))
    if min(len(matrix) for matrix in scores) < 2:
        return point, float("nan"), float("nan")
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(matrix), size=(RESAMPLES, *matrix.shape)) for matrix in scores]
    pairs = zip(scores, drawn, strict=True)
    resampled = [np.take_along_axis(matrix[None], index, axis=1) for matrix, index in pairs]
    low, high = np.quantile(statistic(*resampled), [0.025, 0.975])
    return point, float(low), float(high)


def score_matrix(members: list[Run], score: Callable[[Run], float]) -> np.ndarray:
    """Scores of a row's runs, (runs, tasks). Tasks with more runs than others lose those with the highest seeds."""
    of_task = defaultdict(list)
    for run in members:
        of_task[run.env_id].append(score(run))
    fewest = min(len(scores) for scores in of_task.values())
    return np.array([scores[:fewest] for scores in of_task.values()]).T


def summarise(panels: dict[int, dict[str, list[Run]]]) -> list[dict[str, Any]]:
    """One dict for each number of cycles, row and measure, with the estimate and its 95 % interval."""
    lines = []
    for num_cycles, rows in panels.items():
        finals = {
            row: score_matrix(members, lambda run: run.report["final"]["return"]["mean"] / 1000)
            for row, members in rows.items()
        }
        for row, members in rows.items():
            counts = {sum(run.env_id == env_id for run in members) for env_id in {run.env_id for run in members}}
            if len(counts) > 1:
                few, many = min(counts), max(counts)
                text = f"{row}, {num_cycles} cycles: tasks have {few} to {many} runs; statistics use {few} of each."
                print(text, file=sys.stderr)
            measures = {FINAL: estimate(interquartile_mean, finals[row])}
            if all(run.report["dip"] for run in members):
                dips = score_matrix(members, lambda run: run.report["dip"]["depth"] / 1000)
                measures[DIP] = estimate(interquartile_mean, dips)
            if row != "bc" and "bc" in finals:
                measures[IMPROVEMENT] = estimate(improvement, finals[row], finals["bc"])
            size = {"tasks": finals[row].shape[1], "runs_per_task": finals[row].shape[0]}
            for measure, (point, low, high) in measures.items():
                line = {"num_cycles": num_cycles, "row": row, **size, "measure": measure}
                lines.append(line | {"estimate": point, "low": low, "high": high})
    return lines


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write dicts with the same keys as a CSV file; NaN becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value != value else value for key, value in line.items()} for line in lines)
    files.write_atomically(path, text.getvalue().encode())


def load_pyplot() -> Any:
    """matplotlib's pyplot without a screen, in the look of the project's figures."""
    import matplotlib  # here, because it is slow to import and mistakes should be told at once

    matplotlib.use("Agg")
    from matplotlib import pyplot

    look = {"font.size": 8, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False}
    pyplot.rcParams.update(look | {"axes.linewidth": 0.6})
    return pyplot


def _look(rows: list[str]) -> dict[str, dict[str, Any]]:
    styles = [(style, colour) for style in ("-", "-.", ":") for colour in COLOURS]
    return {row: {"color": colour, "linestyle": style} for row, (style, colour) in zip(rows, styles, strict=False)}


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the up to `window - 1` values before it, (n,) -> (n,)."""
    total = np.cumsum(values)
    total[window:] = total[window:] - total[:-window]
    return total / np.minimum(np.arange(1, len(values) + 1), window)


def draw_curves(path: Path, panels: dict[int, dict[str, list[Run]]]) -> None:
    """Draw one panel for each number of cycles, and write `curves.csv` beside the figure.

    More than 100 points are drawn as their mean of the last 10, because lines would hide each other; the CSV file has
    them as they are.
    """
    pyplot = load_pyplot()
    from matplotlib.ticker import EngFormatter

    x_name, curves = average_curves(panels)
    look = _look(sorted({row for _, row in curves}, key=_place))
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = {"figsize": (6.5, 0.6 + (2.6 if columns < 3 else 2.1) * lines), "sharex": True, "sharey": True}
    figure, grid = pyplot.subplots(lines, columns, squeeze=False, layout="constrained", **size)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    for i, (axes, (num_cycles, rows)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        for row in rows:
            x, mean, deviation = curves[num_cycles, row]
            if len(x) > 100:
                mean, deviation = trailing_mean(mean, 10), trailing_mean(deviation, 10)
            axes.fill_between(x, mean - deviation, mean + deviation, color=look[row]["color"], alpha=0.12, linewidth=0)
            handles[row] = axes.plot(x, mean, linewidth=1, **look[row])[0]
        taught = defaultdict(list)
        for run in itertools.chain.from_iterable(rows.values()):
            if run.report["teacher"]:
                taught[run.env_id].append(run.report["teacher"]["return"]["mean"])
        if taught:
            level = np.mean([np.mean(means) for means in taught.values()])
            handles["teacher"] = axes.axhline(level, color="black", linestyle="--", linewidth=1)
        axes.set(title=f"{num_cycles} cycle{'s' * (num_cycles > 1)}", xlim=(x[0], x[-1]))
        if x[-1] > 1:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.locator_params(axis="x", nbins=5)
        if i + columns >= len(panels):  # there is no panel below
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(x_name)
        if i % columns == 0:
            axes.set_ylabel("episodic return")
    names = sorted(handles, key=_place)
    columns = -(-len(names) // -(-len(names) // 5))  # lines of equal length, at most 5 names each
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)
    lines = []
    for (num_cycles, row), values in curves.items():
        same = {"num_cycles": num_cycles, "row": row, "runs": len(panels[num_cycles][row])}
        lines += [same | {"x": x, "mean": mean, "std": deviation} for x, mean, deviation in values.T.tolist()]
    write_csv(path.with_suffix(".csv"), lines)


def draw_summary(path: Path, lines: list[dict[str, Any]]) -> None:
    """Draw each measure with its interval, one line of panels for each number of cycles."""
    pyplot = load_pyplot()
    rows = sorted({line["row"] for line in lines}, key=_place)
    all_cycles = sorted({line["num_cycles"] for line in lines})
    measures = [name for name in (FINAL, DIP, IMPROVEMENT) if any(line["measure"] == name for line in lines)]
    size = {"figsize": (6.5, 0.5 + len(all_cycles) * (0.25 + 0.17 * len(rows))), "sharex": "col", "sharey": True}
    figure, grid = pyplot.subplots(len(all_cycles), len(measures), squeeze=False, layout="constrained", **size)
    look = _look(rows)
    for (i, num_cycles), (j, measure) in itertools.product(enumerate(all_cycles), enumerate(measures)):
        axes = grid[i, j]
        for line in lines:
            if (line["num_cycles"], line["measure"]) == (num_cycles, measure):
                y, colour = rows.index(line["row"]), look[line["row"]]["color"]
                axes.plot([line["low"], line["high"]], [y, y], color=colour, linewidth=1.5)
                axes.plot(line["estimate"], y, "o", color=colour, markersize=4)
        if measure == IMPROVEMENT:
            axes.axvline(0.5, color="0.8", linewidth=0.8, zorder=0)
            axes.set_xlim(-0.03, 1.03)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        if i == len(all_cycles) - 1:
            axes.set_xlabel(measure, fontsize=7)
        if j == 0:
            axes.set_title(f"{num_cycles} cycle{'s' * (num_cycles > 1)}", loc="left")
    figure.savefig(path, dpi=200)
    pyplot.close(figure)


def draw_alpha(path: Path) -> None:
    """Draw alpha against learner steps, as Figure 2 does."""
    import gbrl_bc_reg  # here, because only this figure needs it

    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(3.2, 2.2), layout="constrained")
    progress = torch.linspace(0, 1, 201)
    for rate, colour in zip((1.0, 2.0, 5.0), COLOURS[1:], strict=False):
        alpha = [float(gbrl_bc_reg.Args().alpha(at, rate)) for at in progress]
        axes.plot(progress.tolist(), alpha, color=colour, label=f"rate {rate:g}")
    axes.set(xlabel="learner steps / total", ylabel="α", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)


def main(args: Args) -> None:
    """Write figures and CSV files. Raises UserError for what the user can put right."""
    if not args.runs and not args.alpha:
        raise UserError("there is nothing to draw: give folders of finished runs, or --alpha.")
    runs = [load_run(folder) for folder in tqdm(args.runs, "reading runs", disable=None, leave=False)]
    args.output.mkdir(parents=True, exist_ok=True)
    if runs:
        panels = group_runs(runs)
        draw_curves(args.output / "curves.png", panels)
        lines = summarise(panels)
        write_csv(args.output / "summary.csv", lines)
        draw_summary(args.output / "summary.png", lines)
    if args.alpha:
        draw_alpha(args.output / "alpha.png")
    print(f"wrote figures to {args.output}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except UserError as error:
        sys.exit(f"error: {error}")
