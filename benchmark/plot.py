"""Average finished runs: learning curves as in the paper's figures 4-7, and statistics over runs and tasks.

    python benchmark/plot.py runs/* --output figures
    python benchmark/plot.py study/results/campaign --paper --output figures
    python benchmark/plot.py --alpha

A run is given as its folder, as the small file that sweep.py keeps of it, or as a folder of such files. Runs of other
budgets, teachers or numbers of cycles get panels of their own. A panel averages over the tasks that all its rows have.

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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import runs
import torch
import tyro
from runs import Budget, Run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, files
from common.report import DIP_EVALUATIONS, MAX_CYCLE_LINES, RESAMPLES

FINAL, DIP = "IQM of final return / 1000", "IQM of dip / 1000"
IMPROVEMENT = "probability of improvement over bc"
COLOURS = {  # of each row, in the order of figures: a hue for a method, lighter for rate 5; after Okabe and Ito
    "bc": "0.35",
    "bc_reg": "#E69F00",
    "bc_reg_decay:1": "#0072B2",
    "bc_reg_decay:5": "#56B4E9",
    "between:1": "#7A5230",
    "between:5": "#C29A6B",
    "ta:1": "#C23B00",
    "ta:5": "#F28148",
    "ta_qf": "#9B4F96",
    "tg:1": "#007D5C",
    "tg:5": "#4DB88A",
}
OTHER_COLOUR = "#B8A900"  # of rows that aren't in the list
OTHER_STYLES = (":", "-.", (0, (3, 1, 1, 1, 1, 1)))  # of other readings of a row, which have its colour


class Figure(NamedTuple):
    """What a figure of the paper shows: one panel for each number of cycles."""

    teacher: str
    num_cycles: tuple[int, ...]
    rows: tuple[str, ...]


DECAY, ACTIONS, GRADIENTS = ("bc_reg_decay:1", "bc_reg_decay:5"), ("ta:1", "ta:5"), ("tg:1", "tg:5")
FIGURES = {
    "4": Figure("expert", (4, 8), ("bc", "bc_reg")),
    "5": Figure("expert", (4, 8), ("bc", *DECAY)),
    "6a": Figure("expert", (4,), (*DECAY, *ACTIONS, "ta_qf")),
    "6b": Figure("expert", (4,), (*DECAY, *ACTIONS, *GRADIENTS)),
    "7": Figure("mid", (4,), ("bc", *DECAY, *ACTIONS, "ta_qf", *GRADIENTS)),
}


@dataclass
class Args:
    """Average runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """folders of finished runs, kept files of runs, or folders of kept files"""
    output: Path = Path("figures")
    """folder for figures and CSV files"""
    paper: bool = False
    """draw the paper's figures 4 to 7 and one figure of all tasks for each budget, instead of one figure of all runs"""
    alpha: bool = False
    """also draw Figure 2: alpha against learner steps for decay rates 1, 2 and 5"""


class Panel(NamedTuple):
    """What the runs of one panel have in common."""

    budget: Budget
    teacher: str
    num_cycles: int


Rows = dict[str, list[Run]]  # the runs of each row, in the order of figures


def group_runs(loaded: Iterable[Run]) -> dict[Panel, Rows]:
    """Runs by panel and row, in the order of figures."""
    panels: dict[Panel, Rows] = defaultdict(lambda: defaultdict(list))
    for run in sorted(loaded, key=lambda run: (run.budget, run.teacher, run.num_cycles, *_place(run.row), run[1:3])):
        panels[Panel(run.budget, run.teacher, run.num_cycles)][run.row].append(run)
    return panels


def _place(row: str) -> tuple[int, str]:
    base = row.partition(",")[0]
    return list(COLOURS).index(base) if base in COLOURS else len(COLOURS), row


def on_common_tasks(name: str, panels: dict[Any, Rows]) -> dict[Any, Rows]:
    """`panels` without the tasks that not all their rows have, which are told on stderr; empty if no task is left."""
    tasks = [{run.env_id for run in members} for rows in panels.values() for members in rows.values()]
    common = set.intersection(*tasks)
    if left_out := set.union(*tasks) - common:
        kept = f"only {', '.join(sorted(common))}" if common else "left out"
        print(f"{name}: {kept}; not all rows have runs on {', '.join(sorted(left_out))}.", file=sys.stderr)
    return {
        panel: {row: [run for run in members if run.env_id in common] for row, members in rows.items()}
        for panel, rows in panels.items()
        if common
    }


def average_curves(rows: Rows) -> dict[str, np.ndarray]:
    """Mean and standard deviation (divided by n) over tasks and seeds, as the paper shades it.

    Every task counts the same, however many seeds it has. Curves are averaged at the evaluations' learner steps where
    all runs have the same ones, else, interpolated linearly, at 201 points.

    Returns:
        for each row learner steps, mean and standard deviation, (3, points).
    """
    loaded = list(itertools.chain.from_iterable(rows.values()))
    grid = loaded[0].steps
    if not all(np.array_equal(run.steps, grid) for run in loaded):
        grid = np.linspace(0, grid[-1], 201)
    curves = {}
    for row, members in rows.items():
        values = np.stack([np.interp(grid, run.steps, run.returns) for run in members])
        weights = runs.task_weights(members)
        mean = np.average(values, axis=0, weights=weights)
        deviation = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
        curves[row] = np.stack([grid, mean, deviation])
    return curves


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


def summarise(panels: dict[Panel, Rows]) -> list[dict[str, Any]]:
    """One dict for each panel, row and measure, with the estimate and its 95 % interval."""
    lines = []
    for panel, rows in panels.items():
        finals = {
            row: score_matrix(members, lambda run: run.report["final"]["return"]["mean"] / 1000)
            for row, members in rows.items()
        }
        for row, members in rows.items():
            counts = {sum(run.env_id == env_id for run in members) for env_id in {run.env_id for run in members}}
            if len(counts) > 1:
                few, many = min(counts), max(counts)
                text = f"{row}, {title(panel)}: tasks have {few} to {many} runs; statistics use {few} of each."
                print(text, file=sys.stderr)
            measures = {FINAL: estimate(interquartile_mean, finals[row])}
            if all(run.report["dip"] for run in members):
                dips = score_matrix(members, lambda run: run.report["dip"]["depth"] / 1000)
                measures[DIP] = estimate(interquartile_mean, dips)
            if row != "bc" and "bc" in finals:
                measures[IMPROVEMENT] = estimate(improvement, finals[row], finals["bc"])
            size = {"tasks": finals[row].shape[1], "runs_per_task": finals[row].shape[0]}
            for measure, (point, low, high) in measures.items():
                line = {**columns(panel), "row": row, **size, "measure": measure}
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


def looks(rows: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of each row: those of the paper look the same in every figure, rate 5 is dashed."""
    look, others = {}, defaultdict(lambda: itertools.cycle(OTHER_STYLES))
    for row in sorted(rows, key=_place):
        base = row.partition(",")[0]
        colour = COLOURS.get(base, OTHER_COLOUR)
        style = ("--" if base.endswith(":5") else "-") if row in COLOURS else next(others[colour])
        look[row] = {"color": colour, "linestyle": style}
    return look


def columns(panel: Panel) -> dict[str, Any]:
    """The panel's columns in a CSV file."""
    return {**panel.budget._asdict(), "teacher": panel.teacher, "num_cycles": panel.num_cycles}


def title(panel: Panel) -> str:
    """The panel in words."""
    cycles = f"{panel.num_cycles} cycle{'s' * (panel.num_cycles > 1)}"
    return f"{cycles}, {teacher_title(panel.teacher)}, {panel.budget.title}"


def teacher_title(teacher: str) -> str:
    """The --teacher in words."""
    return {"none": "no", "mid": "mid-tier"}.get(teacher, teacher) + " teacher"


def sizes(rows: Iterable[list[Run]]) -> str:
    """How many tasks and seeds `rows` have, in words."""
    seeds = [sum(run.env_id == task for run in members) for members in rows for task in {run.env_id for run in members}]
    tasks = len({run.env_id for members in rows for run in members})
    most = f"{max(seeds)} seed{'s' * (max(seeds) > 1)}"
    return f"{tasks} task{'s' * (tasks > 1)}, {f'{min(seeds)} to ' * (min(seeds) < max(seeds))}{most}"


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the up to `window - 1` values before it, (n,) -> (n,)."""
    total = np.cumsum(values)
    total[window:] = total[window:] - total[:-window]
    return total / np.minimum(np.arange(1, len(values) + 1), window)


def draw_curves(path: Path, panels: dict[str, Rows], heading: str = "") -> None:
    """Draw one panel for each title, with the mean of each row's curves and their standard deviation as a shade.

    More than 100 points are drawn as their mean of the last 10, or of the last hundredth if that is more, because lines
    would hide each other.
    """
    pyplot = load_pyplot()
    from matplotlib.ticker import EngFormatter

    look = looks({row for rows in panels.values() for row in rows})
    across = 2 if len(panels) in (2, 4) else min(3, len(panels))
    down = -(-len(panels) // across)
    size = {"figsize": (6.5, 0.8 + (2.6 if across < 3 else 2.0) * down), "sharey": True}
    figure, grid = pyplot.subplots(down, across, squeeze=False, layout="constrained", **size)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    lowest = highest = 0.0
    for i, (axes, (name, rows)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        for row, (x, mean, deviation) in average_curves(rows).items():
            if len(x) > 100:
                window = max(DIP_EVALUATIONS, len(x) // 100)
                mean, deviation = trailing_mean(mean, window), trailing_mean(deviation, window)
            lowest, highest = min(lowest, mean.min()), max(highest, (mean + deviation).max())
            axes.fill_between(x, mean - deviation, mean + deviation, color=look[row]["color"], alpha=0.1, linewidth=0)
            handles[row] = axes.plot(x, mean, linewidth=1.1, **look[row])[0]
        taught = defaultdict(list)
        members = list(itertools.chain.from_iterable(rows.values()))
        for run in members:
            if run.report["teacher"]:
                taught[run.env_id].append(run.report["teacher"]["return"]["mean"])
        if taught:
            level = np.mean([np.mean(means) for means in taught.values()])
            lowest, highest = min(lowest, level), max(highest, level)
            handles["teacher"] = axes.axhline(level, color="black", linestyle="--", linewidth=0.8)
        ends = [cycle["learner_step"] for cycle in members[0].report["cycles"] if cycle["after_learning"]]
        for end in ends[:-1] if len(ends) <= MAX_CYCLE_LINES else []:
            axes.axvline(end, color="0.88", linewidth=0.6, zorder=0)
        axes.set_title(name)
        axes.set_xlim(0, x[-1])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.locator_params(axis="x", nbins=5)
        if i + across >= len(panels):  # there is no panel below
            axes.set_xlabel("learner steps")
        if i % across == 0:
            axes.set_ylabel("episodic return, mean ± std" if len(members) > len(rows) else "episodic return")
    room = 0.03 * (highest - lowest) or 1.0  # so that a curve at 0 stays visible above the axis
    axes.set_ylim(lowest - room, highest + room)  # of all panels
    names = sorted(handles, key=_place)
    fit = max(1, 100 // (6 + max(map(len, names))))  # of 6.5 inches
    in_line = -(-len(names) // -(-len(names) // fit))  # lines of equal length
    lines = [handles[name] for name in names]
    figure.legend(lines, names, loc="outside lower center", ncols=in_line, frameon=False, handlelength=2.8)
    figure.suptitle(heading, fontsize=9)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)


def draw_paper(output: Path, loaded: list[Run]) -> None:
    """Draw the paper's figures and one of all tasks for each budget, as far as there are runs for them."""
    drawn = 0
    for budget, (number, figure) in itertools.product(sorted({run.budget for run in loaded}), FIGURES.items()):
        name = f"Figure {number}, {teacher_title(figure.teacher)}, {budget.title}"
        panels = {
            f"{num_cycles} cycles": rows
            for (*of, num_cycles), rows in group_runs(run for run in loaded if run.row in figure.rows).items()
            if of == [budget, figure.teacher] and num_cycles in figure.num_cycles
        }
        compared = any(len(rows) > 1 for rows in panels.values())
        if compared and (panels := on_common_tasks(name, panels)):
            size = sizes([members for rows in panels.values() for members in rows.values()])
            draw_curves(output / f"figure_{number}_{budget.file_name}.png", panels, f"{name}: {size}")
            drawn += 1
    shown = {(figure.teacher, 4, row) for figure in FIGURES.values() for row in figure.rows}
    for panel, rows in group_runs(run for run in loaded if (run.teacher, run.num_cycles, run.row) in shown).items():
        by_task: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
        for run in sorted(itertools.chain.from_iterable(rows.values()), key=lambda run: run.env_id):
            by_task[run.env_id][run.row].append(run)
        path = output / f"tasks_{panel.teacher}_{panel.budget.file_name}.png"
        draw_curves(path, by_task, f"{title(panel)}: {sizes(rows.values())}")
        drawn += 1
    if not drawn:
        raise UserError("none of these runs belongs to a figure of the paper.")


def write_curves(path: Path, panels: dict[Panel, Rows]) -> None:
    """Write every row's averaged curve as lines of a CSV file."""
    lines = []
    for panel, rows in panels.items():
        for row, values in average_curves(rows).items():
            same = {**columns(panel), "row": row, "runs": len(rows[row])}
            lines += [same | {"x": x, "mean": mean, "std": deviation} for x, mean, deviation in values.T.tolist()]
    write_csv(path, lines)


def draw_summary(path: Path, panels: dict[Panel, Rows], lines: list[dict[str, Any]]) -> None:
    """Draw each measure with its interval, one line of axes for each panel."""
    pyplot = load_pyplot()
    measures = [name for name in (FINAL, DIP, IMPROVEMENT) if any(line["measure"] == name for line in lines)]
    heights = [len(rows) for rows in panels.values()]
    size = {
        "figsize": (6.5, 0.7 + 0.17 * sum(heights) + 0.35 * len(heights)),
        "sharex": "col",
        "height_ratios": heights,
    }
    figure, grid = pyplot.subplots(len(panels), len(measures), squeeze=False, layout="constrained", **size)
    for (i, (panel, rows)), (j, measure) in itertools.product(enumerate(panels.items()), enumerate(measures)):
        axes, names, look = grid[i, j], list(rows), looks(rows)
        for line in lines:
            if line["measure"] == measure and columns(panel).items() <= line.items():
                y, colour = names.index(line["row"]), look[line["row"]]["color"]
                axes.plot([line["low"], line["high"]], [y, y], color=colour, linewidth=1.5)
                axes.plot(line["estimate"], y, "o", color=colour, markersize=4)
        if measure == IMPROVEMENT:
            axes.axvline(0.5, color="0.8", linewidth=0.8, zorder=0)
            axes.set_xlim(-0.03, 1.03)
        axes.set_yticks(range(len(names)), names if j == 0 else [])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        if i == len(panels) - 1:
            axes.set_xlabel(measure.replace(" of ", " of\n"))
        if j == 0:
            axes.set_title(f"{title(panel)}: {sizes(rows.values())}", loc="left", in_layout=False)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)


def draw_alpha(path: Path) -> None:
    """Draw alpha against learner steps, as Figure 2 does."""
    import gbrl_bc_reg  # here, because only this figure needs it

    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(3.2, 2.2), layout="constrained")
    progress, args = torch.linspace(0, 1, 201), gbrl_bc_reg.Args()
    for rate, colour in zip((1.0, 2.0, 5.0), ("#E69F00", "#0072B2", "#C23B00"), strict=True):
        alpha = gbrl_bc_reg.alpha(args, gbrl_bc_reg.Progress(progress, progress), rate)
        axes.plot(progress, alpha, color=colour, label=f"rate {rate:g}")
    axes.set(xlabel="learner steps / total", ylabel="α", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)


def main(args: Args) -> None:
    """Write figures and CSV files. Raises UserError for what the user can put right."""
    loaded = runs.load_all(args.runs)
    if not loaded and not args.alpha:
        raise UserError("there is nothing to draw: give finished runs, or --alpha.")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.paper:
        draw_paper(args.output, loaded)
    elif loaded:
        panels = {}
        for panel, rows in group_runs(loaded).items():
            panels |= on_common_tasks(title(panel), {panel: rows})
        if not panels:
            raise UserError("no panel has a task with runs of all its rows.")
        titled = {title(panel).replace("teacher, ", "teacher\n"): rows for panel, rows in panels.items()}
        tasks = {run.env_id for run in loaded}
        draw_curves(args.output / "curves.png", titled, heading=tasks.pop() if len(tasks) == 1 else "")
        write_curves(args.output / "curves.csv", panels)
        lines = summarise(panels)
        write_csv(args.output / "summary.csv", lines)
        draw_summary(args.output / "summary.png", panels, lines)
    if args.alpha:
        draw_alpha(args.output / "alpha.png")
    print(f"wrote figures to {args.output}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except UserError as error:
        sys.exit(f"error: {error}")
