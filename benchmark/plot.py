"""Average finished runs: learning curves as in the paper's figures 4 to 7, and statistics over runs and tasks.

    python benchmark/plot.py runs/* --output figures
    python benchmark/plot.py study/results/campaign --paper --output figures

Give a run as its folder, as the small file that sweep.py keeps of it, or give a folder of such files. Each budget,
teacher and number of cycles gets its own panel. A panel averages over the tasks that all its methods ran.

The statistics in summary.csv are those of rliable (Agarwal et al. 2021): interquartile means, the probability of
improvement, and 95 % intervals from a bootstrap of the runs within each task. A run counts as one score, its return
/ 1000. We compute them here because rliable 1.2.0 takes a minute for one such probability and can't be imported
together with pandas 3.
"""

import csv
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import runs
import tyro
from runs import Run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError
from common.report import DIP_EVALUATIONS, MAX_CYCLE_LINES, plain_figure

FINAL, DIP = "IQM of final return / 1000", "IQM of dip / 1000"
IMPROVEMENT = "probability of improvement over bc"
COLOURS = {  # of each method, in the order of figures: one hue per method, lighter for rate 5; after Okabe and Ito
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
OTHER_STYLES = (":", "-.", (0, (3, 1, 1, 1, 1, 1)))  # for a method with options, in the method's colour

DECAY, ACTIONS, GRADIENTS = ("bc_reg_decay:1", "bc_reg_decay:5"), ("ta:1", "ta:5"), ("tg:1", "tg:5")
MID = ("bc", *DECAY, *ACTIONS, "ta_qf", *GRADIENTS)
FIGURES = {  # the paper's, with a panel for each number of cycles, and two with a panel for each task
    "figure_4": ("expert", (4, 8), ("bc", "bc_reg")),
    "figure_5": ("expert", (4, 8), ("bc", *DECAY)),
    "figure_6a": ("expert", (4,), (*DECAY, *ACTIONS, "ta_qf")),
    "figure_6b": ("expert", (4,), (*DECAY, *ACTIONS, *GRADIENTS)),
    "figure_7": ("mid", (4,), MID),
    "tasks_expert": ("expert", (4,), (*MID, "bc_reg")),
    "tasks_mid": ("mid", (4,), MID),
}


@dataclass
class Args:
    """Average runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of finished runs, kept files of runs, or folders of kept files"""
    output: Path = Path("figures")
    """folder for curves.png and summary.csv, or for the paper's figures"""
    paper: bool = False
    """draw the paper's figures 4 to 7, and all tasks for each teacher, at each budget"""


# ---- panels and methods

Methods = dict[str, list[Run]]  # the runs of each method, in the order of figures
Panels = dict[str, Methods]  # by title


def _order(method: str) -> tuple[int, str]:
    base = method.partition(",")[0]
    return list(COLOURS).index(base) if base in COLOURS else len(COLOURS), method


def group_runs(loaded: Iterable[Run], title: Callable[[Run], str]) -> Panels:
    """Runs by the title of their panel and by method, in the order of figures."""
    panels: Panels = defaultdict(lambda: defaultdict(list))
    for run in sorted(loaded, key=lambda run: (title(run), _order(run.method), run.env_id, run.seed)):
        panels[title(run)][run.method].append(run)
    return panels


def flat(methods: Methods) -> list[Run]:
    """The runs of all methods."""
    return list(itertools.chain.from_iterable(methods.values()))


def sizes(panels: Panels) -> str:
    """Tasks and seeds of the runs, in words, and how many runs a curve has where curves differ in that."""
    loaded = [run for methods in panels.values() for run in flat(methods)]
    tasks, seeds = sorted({run.env_id for run in loaded}), sorted({run.seed for run in loaded})
    task = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
    counts = {len(members) for methods in panels.values() for members in methods.values()}
    each = f", {min(counts)} to {max(counts)} runs a curve" if len(counts) > 1 else ""
    return f"{task}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}{each}"


def on_common_tasks(panels: Panels, heading: str = "") -> Panels:
    """Each panel with only the tasks that all its methods have; prints the others on stderr; without empty panels."""
    found = {}
    for title, methods in panels.items():
        tasks = [{run.env_id for run in members} for members in methods.values()]
        common = set.intersection(*tasks)
        if left_out := set.union(*tasks) - common:
            kept = f"only {', '.join(sorted(common))}" if common else "left out"
            missing = f"not all methods have runs on {', '.join(sorted(left_out))}"
            print(f"{heading}{title}: {kept}; {missing}.", file=sys.stderr)
        if common:
            found[title] = {m: [run for run in members if run.env_id in common] for m, members in methods.items()}
    return found


# ---- statistics


def average_curves(methods: Methods) -> dict[str, np.ndarray]:
    """Mean and standard deviation (divided by n) over tasks and seeds, as the paper shades it.

    Every task counts the same, however many seeds it has. Curves are averaged at the learner steps of the first run's
    evaluations, with linear interpolation for a run that has others.

    Returns:
        for each method learner steps, mean and standard deviation, (3, points).
    """
    grid, curves = flat(methods)[0].steps, {}
    for method, members in methods.items():
        values = np.stack([np.interp(grid, run.steps, run.returns) for run in members])
        weights = runs.task_weights(members)
        mean = np.average(values, axis=0, weights=weights)
        deviation = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
        curves[method] = np.stack([grid, mean, deviation])
    return curves


def interquartile_mean(scores: list[np.ndarray]) -> np.ndarray:
    """Mean of all tasks' scores without the lowest and highest quarter: T x (..., R) -> (...)."""
    ordered = np.sort(np.concatenate(scores, -1), -1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def improvement(scores: list[np.ndarray], baseline: list[np.ndarray]) -> np.ndarray:
    """P(scores > baseline) + P(equal) / 2 over pairs of runs, mean over tasks: T x (..., R), T x (..., S) -> (...)."""
    differences = [of[..., :, None] - other[..., None, :] for of, other in zip(scores, baseline, strict=True)]
    return np.mean([(np.sign(difference) / 2 + 0.5).mean((-2, -1)) for difference in differences], 0)


def score(members: list[Run], of_run: Callable[[Run], float]) -> list[np.ndarray]:
    """Scores of a method's runs, T x (R,). Tasks with more runs than others lose those with the highest seeds."""
    of_task = defaultdict(list)
    for run in members:
        of_task[run.env_id].append(of_run(run))
    return [np.array(scores[: min(map(len, of_task.values()))]) for scores in of_task.values()]


def summarise(panels: Panels) -> list[dict[str, Any]]:
    """One dict for each panel, method and measure, with the estimate and its 95 % interval."""
    lines = []
    for methods in panels.values():
        finals = {
            method: score(members, lambda run: run.report["final"]["return"]["mean"] / 1000)
            for method, members in methods.items()
        }
        for method, members in methods.items():
            measures = {FINAL: runs.estimate(interquartile_mean, finals[method])}
            if all(run.report["dip"] for run in members):
                dips = score(members, lambda run: run.report["dip"]["depth"] / 1000)
                measures[DIP] = runs.estimate(interquartile_mean, dips)
            if method != "bc" and "bc" in finals:
                measures[IMPROVEMENT] = runs.estimate(improvement, finals[method], finals["bc"])
            same = members[0].budget._asdict() | {name: getattr(members[0], name) for name in ("teacher", "num_cycles")}
            same |= {"method": method, "tasks": len(finals[method]), "runs_per_task": len(finals[method][0])}
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


# ---- figures


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of each method: the paper's methods look the same in every figure, and rate 5 is dashed."""
    look, others = {}, defaultdict(lambda: itertools.cycle(OTHER_STYLES))
    for method in sorted(methods, key=_order):
        base = method.partition(",")[0]
        colour = COLOURS.get(base, OTHER_COLOUR)
        style = ("--" if base.endswith(":5") else "-") if method in COLOURS else next(others[colour])
        look[method] = {"color": colour, "linestyle": style}
    return look


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the up to `window - 1` values before it, (n,) -> (n,)."""
    return np.convolve(values, np.ones(window))[: len(values)] / np.minimum(np.arange(1, len(values) + 1), window)


def draw_curves(path: Path, panels: Panels, heading: str) -> None:
    """Draw a panel for each title, with the mean of each method's curves and their standard deviation as a shade.

    A curve of more than 100 points would hide others, so we draw a moving mean over the last 10 points, or over the
    last hundredth of them if that is more.
    """
    look = looks({method for methods in panels.values() for method in methods})
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    with plain_figure(figsize=(6.5, 0.9 + 2.2 * down)) as figure:
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        handles: dict[str, Any] = {}
        lowest = 0.0
        for axes, (title, methods) in zip(grid.flat, panels.items(), strict=False):
            for method, (x, mean, deviation) in average_curves(methods).items():
                if len(x) > 100:
                    window = max(DIP_EVALUATIONS, len(x) // 100)
                    mean, deviation = trailing_mean(mean, window), trailing_mean(deviation, window)
                lowest = min(lowest, mean.min())
                shade = {"color": look[method]["color"], "alpha": 0.1, "linewidth": 0}
                axes.fill_between(x, mean - deviation, mean + deviation, **shade)
                handles[method] = axes.plot(x, mean, linewidth=1.1, **look[method])[0]
            members = flat(methods)
            if members[0].report["teacher"]:
                levels = [run.report["teacher"]["return"]["mean"] for run in members]
                level = np.average(levels, weights=runs.task_weights(members))
                handles["teacher"] = axes.axhline(level, color="black", linestyle="--", linewidth=0.8)
            ends = [cycle["learner_step"] for cycle in members[0].report["cycles"] if cycle["after_learning"]]
            for end in ends[:-1] if len(ends) <= MAX_CYCLE_LINES else []:
                axes.axvline(end, color="0.88", linewidth=0.6, zorder=0)
            axes.set(title="\n".join(title.rsplit(", ", 1)), xlabel="learner steps", xlim=(0, x[-1]))
            axes.locator_params(axis="x", nbins=5)
            axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k")
        highest = axes.get_ylim()[1]
        axes.set_ylim(lowest - 0.03 * (highest - lowest))  # of all panels; a curve at 0 stays visible above the axis
        names = sorted(handles, key=_order)
        legend = {"loc": "outside lower center", "frameon": False, "handlelength": 2.8}
        legend["ncols"] = max(1, 100 // (6 + max(map(len, names))))  # that fit in 6.5 inches
        figure.legend([handles[name] for name in names], names, **legend)
        figure.supylabel("episodic return, mean ± std", fontsize=8)
        figure.suptitle(heading, fontsize=9)
        figure.savefig(path, dpi=200)


def draw_paper(output: Path, loaded: list[Run]) -> None:
    """Draw, for each budget, those of FIGURES for which two or more methods have runs."""
    drawn = 0
    budgets = sorted({run.budget for run in loaded if run.budget.scale})
    for budget, (name, (teacher, cycles, methods)) in itertools.product(budgets, FIGURES.items()):
        members = [run for run in loaded if (run.budget, run.teacher) == (budget, teacher)]
        members = [run for run in members if run.method in methods and run.num_cycles in cycles]
        by_task = name.startswith("tasks")
        panels = group_runs(members, lambda run, by_task=by_task: run.env_id if by_task else f"{run.num_cycles} cycles")
        number = name.removesuffix(f"_{teacher}").replace("_", " ").capitalize()
        heading = f"{number}, teacher {teacher}, {budget.title}"
        panels = panels if by_task else on_common_tasks(panels, f"{heading}, ")
        if all(len(methods) < 2 for methods in panels.values()):
            continue
        tasks = {title: len({run.env_id for run in flat(methods)}) for title, methods in panels.items()}
        if not by_task and len(set(tasks.values())) > 1:
            panels = {f"{title}, {n} task{'s' * (n > 1)}": panels[title] for title, n in tasks.items()}
        draw_curves(output / f"{name}_scale_{budget.scale:g}.png", panels, f"{heading}: {sizes(panels)}")
        drawn += 1
    if not drawn:
        raise UserError("none of these runs belongs to a figure of the paper.")


def main(args: Args) -> None:
    """Write figures and a CSV file. Raises UserError if there is nothing to draw."""
    loaded = runs.load_all(args.runs)
    if not loaded:
        raise UserError("there is nothing to draw: give finished runs.")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.paper:
        draw_paper(args.output, loaded)
    else:
        panels = on_common_tasks(group_runs(loaded, lambda run: run.setting))
        if not panels:
            raise UserError("no panel has a task with runs of all its methods.")
        draw_curves(args.output / "curves.png", panels, sizes(panels))
        write_csv(args.output / "summary.csv", summarise(panels))
    print(f"wrote figures to {args.output}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except UserError as error:
        sys.exit(f"error: {error}")
