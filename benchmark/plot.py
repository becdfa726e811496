"""Average finished runs: learning curves as in the paper's figures 4-7, and statistics over runs and tasks.

    python benchmark/plot.py runs/* --output figures
    python benchmark/plot.py study/results/campaign --paper --output figures
    python benchmark/plot.py --alpha

A run is given as its folder, as the small file that sweep.py keeps of it, or as a folder of such files. Runs of other
budgets, teachers or numbers of cycles get panels of their own. A panel averages over the tasks that all methods ran.

A run counts as one score per task, the mean of its final report episodes / 1000. The statistics are those of rliable
(Agarwal et al. 2021): interquartile mean, probability of improvement, and 95 % intervals from a bootstrap of the runs
within each task. They are written out here because rliable 1.2.0 takes a minute for one such probability and can't be
imported beside pandas 3.
"""

import csv
import itertools
import sys
from collections import Counter, defaultdict
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
from common import UserError
from common.report import DIP_EVALUATIONS, MAX_CYCLE_LINES, RESAMPLES, plain_figure

FINAL, DIP = "IQM of final return / 1000", "IQM of dip / 1000"
IMPROVEMENT = "probability of improvement over bc"
COLOURS = {  # of each method, in the order of figures: a hue for a method, lighter for rate 5; after Okabe and Ito
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
OTHER_COLOUR = "#B8A900"  # of methods that aren't in the list
OTHER_STYLES = (":", "-.", (0, (3, 1, 1, 1, 1, 1)))  # of other readings of a method, which have its colour

DECAY, ACTIONS, GRADIENTS = ("bc_reg_decay:1", "bc_reg_decay:5"), ("ta:1", "ta:5"), ("tg:1", "tg:5")
FIGURES = {  # of the paper: teacher, a panel for each number of cycles, methods
    "4": ("expert", (4, 8), ("bc", "bc_reg")),
    "5": ("expert", (4, 8), ("bc", *DECAY)),
    "6a": ("expert", (4,), (*DECAY, *ACTIONS, "ta_qf")),
    "6b": ("expert", (4,), (*DECAY, *ACTIONS, *GRADIENTS)),
    "7": ("mid", (4,), ("bc", *DECAY, *ACTIONS, "ta_qf", *GRADIENTS)),
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


# ---- panels and methods


class Panel(NamedTuple):
    """What the runs of one panel have in common."""

    budget: Budget
    teacher: str
    num_cycles: int

    @property
    def columns(self) -> dict[str, Any]:
        """The panel's columns in a CSV file."""
        return {**self.budget._asdict(), "teacher": self.teacher, "num_cycles": self.num_cycles}


Methods = dict[str, list[Run]]  # the runs of each method, in the order of figures


def title(panel: Panel) -> str:
    """The panel in words."""
    return f"{counted(panel.num_cycles, 'cycle')}, {teacher_title(panel.teacher)}, {panel.budget.title}"


def teacher_title(teacher: str) -> str:
    """The --teacher in words."""
    return {"none": "no", "mid": "mid-tier"}.get(teacher, teacher) + " teacher"


def counted(number: int, noun: str) -> str:
    """A number of things in words."""
    return f"{number} {noun}{'s' * (number > 1)}"


def sizes(*panels: Methods) -> str:
    """How many tasks and seeds the methods have, in words."""
    seeds = [n for methods in panels for of in methods.values() for n in Counter(run.env_id for run in of).values()]
    tasks = {run.env_id for methods in panels for run in flat(methods)}
    few = f"{min(seeds)} to " * (min(seeds) < max(seeds))
    return f"{counted(len(tasks), 'task')}, {few}{counted(max(seeds), 'seed')}"


def flat(methods: Methods) -> list[Run]:
    """The runs of all methods."""
    return list(itertools.chain.from_iterable(methods.values()))


def _place(method: str) -> tuple[int, str]:
    base = method.partition(",")[0]
    return list(COLOURS).index(base) if base in COLOURS else len(COLOURS), method


def group_runs(loaded: Iterable[Run]) -> dict[Panel, Methods]:
    """Runs by panel and method, in the order of figures."""
    panels: dict[Panel, Methods] = defaultdict(lambda: defaultdict(list))
    for run in sorted(loaded, key=lambda run: (run.budget, run.teacher, run.num_cycles, *_place(run.method), run[1:3])):
        panels[Panel(run.budget, run.teacher, run.num_cycles)][run.method].append(run)
    return panels


def on_common_tasks(name: str, panels: dict[Any, Methods]) -> dict[Any, Methods]:
    """`panels` with only the tasks that all methods have; the others are told on stderr; empty if no task is left."""
    tasks = [{run.env_id for run in members} for methods in panels.values() for members in methods.values()]
    common = set.intersection(*tasks)
    if left_out := set.union(*tasks) - common:
        kept = f"only {', '.join(sorted(common))}" if common else "left out"
        print(f"{name}: {kept}; not all methods have runs on {', '.join(sorted(left_out))}.", file=sys.stderr)
    return {
        panel: {method: [run for run in members if run.env_id in common] for method, members in methods.items()}
        for panel, methods in panels.items()
        if common
    }


# ---- statistics


def average_curves(methods: Methods) -> dict[str, np.ndarray]:
    """Mean and standard deviation (divided by n) over tasks and seeds, as the paper shades it.

    Every task counts the same, however many seeds it has. Curves are averaged at the evaluations' learner steps where
    all runs have the same ones, else, interpolated linearly, at 201 points.

    Returns:
        for each method learner steps, mean and standard deviation, (3, points).
    """
    loaded, curves = flat(methods), {}
    grid = loaded[0].steps
    if not all(np.array_equal(run.steps, grid) for run in loaded):
        grid = np.linspace(0, grid[-1], 201)
    for method, members in methods.items():
        values = np.stack([np.interp(grid, run.steps, run.returns) for run in members])
        weights = runs.task_weights(members)
        mean = np.average(values, axis=0, weights=weights)
        deviation = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
        curves[method] = np.stack([grid, mean, deviation])
    return curves


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of what is left of all runs x tasks scores without the lowest and highest quarter: (..., R, T) -> (...)."""
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), -1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def improvement(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """P(scores > baseline) + P(equal) / 2 over pairs of runs, mean over tasks: (..., R, T), (..., S, T) -> (...)."""
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
    resampled = [np.take_along_axis(matrix[None], index, 1) for matrix, index in zip(scores, drawn, strict=True)]
    low, high = np.quantile(statistic(*resampled), [0.025, 0.975])
    return point, float(low), float(high)


def score_matrix(members: list[Run], score: Callable[[Run], float]) -> np.ndarray:
    """Scores of a method's runs, (runs, tasks). Tasks with more runs than others lose those with the highest seeds."""
    of_task = defaultdict(list)
    for run in members:
        of_task[run.env_id].append(score(run))
    fewest = min(map(len, of_task.values()))
    return np.array([scores[:fewest] for scores in of_task.values()]).T


def summarise(panels: dict[Panel, Methods]) -> list[dict[str, Any]]:
    """One dict for each panel, method and measure, with the estimate and its 95 % interval."""
    lines = []
    for panel, methods in panels.items():
        finals = {
            method: score_matrix(of, lambda run: run.report["final"]["return"]["mean"] / 1000)
            for method, of in methods.items()
        }
        for method, members in methods.items():
            counts = Counter(run.env_id for run in members).values()
            if (few := min(counts)) < max(counts):
                text = (
                    f"{method}, {title(panel)}: tasks have {few} to {max(counts)} runs; statistics use {few} of each."
                )
                print(text, file=sys.stderr)
            measures = {FINAL: estimate(interquartile_mean, finals[method])}
            if all(run.report["dip"] for run in members):
                dips = score_matrix(members, lambda run: run.report["dip"]["depth"] / 1000)
                measures[DIP] = estimate(interquartile_mean, dips)
            if method != "bc" and "bc" in finals:
                measures[IMPROVEMENT] = estimate(improvement, finals[method], finals["bc"])
            same = {
                **panel.columns,
                "method": method,
                "tasks": finals[method].shape[1],
                "runs_per_task": finals[method].shape[0],
            }
            for measure, (point, low, high) in measures.items():
                lines.append({**same, "measure": measure, "estimate": point, "low": low, "high": high})
    return lines


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write dicts with the same keys as a CSV file; NaN becomes an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value != value else value for key, value in line.items()} for line in lines)


def write_curves(path: Path, panels: dict[Panel, Methods]) -> None:
    """Write every method's averaged curve as lines of a CSV file."""
    lines = []
    for panel, methods in panels.items():
        for method, values in average_curves(methods).items():
            same = {**panel.columns, "method": method, "runs": len(methods[method])}
            lines += [same | {"x": x, "mean": mean, "std": deviation} for x, mean, deviation in values.T.tolist()]
    write_csv(path, lines)


# ---- figures


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of each method: those of the paper look the same in every figure, rate 5 is dashed."""
    look, others = {}, defaultdict(lambda: itertools.cycle(OTHER_STYLES))
    for method in sorted(methods, key=_place):
        base = method.partition(",")[0]
        colour = COLOURS.get(base, OTHER_COLOUR)
        style = ("--" if base.endswith(":5") else "-") if method in COLOURS else next(others[colour])
        look[method] = {"color": colour, "linestyle": style}
    return look


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the up to `window - 1` values before it, (n,) -> (n,)."""
    total = np.cumsum(values)
    total[window:] = total[window:] - total[:-window]
    return total / np.minimum(np.arange(1, len(values) + 1), window)


def teachers_level(members: list[Run]) -> float | None:
    """The mean of all tasks' teachers, None without a teacher."""
    taught = defaultdict(list)
    for run in members:
        if run.report["teacher"]:
            taught[run.env_id].append(run.report["teacher"]["return"]["mean"])
    return float(np.mean([np.mean(means) for means in taught.values()])) if taught else None


def draw_curves(path: Path, panels: dict[str, Methods], heading: str = "") -> None:
    """Draw one panel for each title, with the mean of each method's curves and their standard deviation as a shade.

    More than 100 points are drawn as their mean of the last 10, or of the last hundredth if that is more, because lines
    would hide each other.
    """
    look = looks({method for methods in panels.values() for method in methods})
    across = 2 if len(panels) in (2, 4) else min(3, len(panels))
    down = -(-len(panels) // across)
    with plain_figure(figsize=(6.5, 0.8 + (2.6 if across < 3 else 2.0) * down)) as figure:
        from matplotlib.ticker import EngFormatter  # here, where importing matplotlib is safe

        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        handles: dict[str, Any] = {}
        reached = [0.0]
        for i, (axes, (name, methods)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
            for method, (x, mean, deviation) in average_curves(methods).items():
                if len(x) > 100:
                    window = max(DIP_EVALUATIONS, len(x) // 100)
                    mean, deviation = trailing_mean(mean, window), trailing_mean(deviation, window)
                reached += [mean.min(), (mean + deviation).max()]
                shade = {"color": look[method]["color"], "alpha": 0.1, "linewidth": 0}
                axes.fill_between(x, mean - deviation, mean + deviation, **shade)
                handles[method] = axes.plot(x, mean, linewidth=1.1, **look[method])[0]
            members = flat(methods)
            if (level := teachers_level(members)) is not None:
                reached.append(level)
                handles["teacher"] = axes.axhline(level, color="black", linestyle="--", linewidth=0.8)
            ends = [cycle["learner_step"] for cycle in members[0].report["cycles"] if cycle["after_learning"]]
            for end in ends[:-1] if len(ends) <= MAX_CYCLE_LINES else []:
                axes.axvline(end, color="0.88", linewidth=0.6, zorder=0)
            axes.set(title=name, xlim=(0, x[-1]))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.locator_params(axis="x", nbins=5)
            if i + across >= len(panels):  # there is no panel below
                axes.set_xlabel("learner steps")
            if i % across == 0:
                axes.set_ylabel("episodic return, mean ± std" if len(members) > len(methods) else "episodic return")
        lowest, highest = min(reached), max(reached)
        room = 0.03 * (highest - lowest) or 1.0  # so that a curve at 0 stays visible above the axis
        axes.set_ylim(lowest - room, highest + room)  # of all panels
        names = sorted(handles, key=_place)
        fit = max(1, 100 // (6 + max(map(len, names))))  # of 6.5 inches
        in_line = -(-len(names) // -(-len(names) // fit))  # lines of equal length
        place = {"loc": "outside lower center", "ncols": in_line, "frameon": False, "handlelength": 2.8}
        figure.legend([handles[name] for name in names], names, **place)
        figure.suptitle(heading, fontsize=9)
        figure.savefig(path, dpi=200)


def draw_paper(output: Path, loaded: list[Run]) -> None:
    """Draw the paper's figures and one of all tasks for each budget, as far as there are runs for them."""
    figures: dict[str, tuple[dict[str, Methods], str]] = {}
    for budget, (number, figure) in itertools.product(sorted({run.budget for run in loaded}), FIGURES.items()):
        teacher, cycles, shown = figure
        name = f"Figure {number}, {teacher_title(teacher)}, {budget.title}"
        panels = {
            f"{num_cycles} cycles": methods
            for (*of, num_cycles), methods in group_runs(run for run in loaded if run.method in shown).items()
            if of == [budget, teacher] and num_cycles in cycles
        }
        compared = any(len(methods) > 1 for methods in panels.values())
        if compared and (panels := on_common_tasks(name, panels)):
            figures[f"figure_{number}_{budget.file_name}.png"] = panels, f"{name}: {sizes(*panels.values())}"
    shown = {(teacher, 4, method) for teacher, _, methods in FIGURES.values() for method in methods}
    for panel, methods in group_runs(
        run for run in loaded if (run.teacher, run.num_cycles, run.method) in shown
    ).items():
        by_task: dict[str, Methods] = defaultdict(lambda: defaultdict(list))
        for run in sorted(flat(methods), key=lambda run: run.env_id):
            by_task[run.env_id][run.method].append(run)
        figures[f"tasks_{panel.teacher}_{panel.budget.file_name}.png"] = by_task, f"{title(panel)}: {sizes(methods)}"
    if not figures:
        raise UserError("none of these runs belongs to a figure of the paper.")
    for name, (panels, heading) in figures.items():
        draw_curves(output / name, panels, heading)


def draw_summary(path: Path, panels: dict[Panel, Methods], lines: list[dict[str, Any]]) -> None:
    """Draw each measure with its interval, one line of axes for each panel."""
    measures = [name for name in (FINAL, DIP, IMPROVEMENT) if any(line["measure"] == name for line in lines)]
    heights = [len(methods) for methods in panels.values()]
    with plain_figure(figsize=(6.5, 0.7 + 0.17 * sum(heights) + 0.35 * len(heights))) as figure:
        grid = figure.subplots(len(panels), len(measures), squeeze=False, sharex="col", height_ratios=heights)
        for (i, (panel, methods)), (j, measure) in itertools.product(enumerate(panels.items()), enumerate(measures)):
            axes, names, look = grid[i, j], list(methods), looks(methods)
            for line in lines:
                if line["measure"] == measure and panel.columns.items() <= line.items():
                    y, colour = names.index(line["method"]), look[line["method"]]["color"]
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
                axes.set_title(f"{title(panel)}: {sizes(methods)}", loc="left", in_layout=False)
        figure.savefig(path, dpi=200)


def draw_alpha(path: Path) -> None:
    """Draw alpha against learner steps, as Figure 2 does."""
    import gbrl_bc_reg  # here, because only this figure needs it

    progress, args = torch.linspace(0, 1, 201), gbrl_bc_reg.Args()
    with plain_figure(figsize=(3.2, 2.2)) as figure:
        axes = figure.subplots()
        for rate, colour in zip((1.0, 2.0, 5.0), ("#E69F00", "#0072B2", "#C23B00"), strict=True):
            alpha = gbrl_bc_reg.alpha(args, gbrl_bc_reg.Progress(progress, progress), rate)
            axes.plot(progress, alpha, color=colour, label=f"rate {rate:g}")
        axes.set(xlabel="learner steps / total", ylabel="α", xlim=(0, 1), ylim=(0, 1))
        axes.legend(frameon=False)
        figure.savefig(path, dpi=200)


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
        for panel, methods in group_runs(loaded).items():
            panels |= on_common_tasks(title(panel), {panel: methods})
        if not panels:
            raise UserError("no panel has a task with runs of all its methods.")
        titled = {title(panel).replace("teacher, ", "teacher\n"): methods for panel, methods in panels.items()}
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
