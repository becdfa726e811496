"""Judge the paper's claims by finished runs: for each a formula, a threshold, a 95 % interval and a verdict.

    python study/claims.py study/results/campaign study/results/early_clone --output study/claims.md

A claim has one part or several. A part compares the mean of a quantity over tasks and seeds, or the mean difference
between two methods' runs of the same task and seed, with a threshold. Of a quantity that has a value for each cycle
the lowest counts, after the difference is taken. A part `holds` if its whole interval is on the claim's side of the
threshold, `fails` if its whole interval is on the other side, and is `not decided` otherwise. A claim holds if all its
parts hold, and fails if one fails.

The interval is a 95 % percentile bootstrap. Where every task has two seeds or more we draw seeds anew within each
task; the interval then says how far other seeds would move the mean. With fewer, and for the size of a difference, we
draw tasks anew. A run counts as one score. We don't correct for the number of parts.

Each folder of kept runs is judged by itself.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]  # so that it runs from any folder

import runs  # noqa: E402
from runs import Run  # noqa: E402

from common import UserError, files, report  # noqa: E402

CLONING = re.compile(",bc-(steps|learning-rate):[^,]+")  # says how a folder's clones were made, not what is compared
HOLDS, FAILS, NOT_DECIDED = "holds", "fails", "not decided"
Runs = dict[str, dict[tuple[str, int], Run]]  # of each method, by task and seed

# ---- quantities of one run


def teacher(run: Run) -> float:
    """T, the mean return of the run's teacher."""
    return run.report["teacher"]["return"]["mean"]


def clone(run: Run) -> float:
    """C, the mean return of the run's clone."""
    return run.report["clone"]["return"]["mean"]


def after(run: Run) -> np.ndarray:
    """A_1 to A_N, the mean returns after learning from each cycle, (N,)."""
    return np.array([cycle["after_learning"]["mean"] for cycle in run.report["cycles"]])


def in_cycles(run: Run) -> np.ndarray:
    """Mean of each cycle's evaluations, (N,). What is evaluated at a cycle's end belongs to it, step 0 to the first."""
    ends = [cycle["learner_step"] for cycle in run.report["cycles"]]
    within = np.searchsorted(ends, run.steps)
    return np.array([run.returns[within == k].mean() for k in range(len(ends))])


def floor(run: Run) -> float:
    """C - 3 s / sqrt(10), s the deviation of the clone's returns: the clone's own M is hardly ever below."""
    returns = run.report["clone"]["return"]
    return returns["mean"] - CHANCE * returns["std"] / report.DIP_EVALUATIONS**0.5


def fall(run: Run) -> float:
    """max(0, C - 3 s / sqrt(10) - lowest M in the first cycle) / C; 0 for a clone that has nothing to lose."""
    within = run.steps <= run.report["cycles"][0]["learner_step"]
    depth = max(0.0, floor(run) - float(report.moving_means(run.returns[within]).min()))
    return depth / clone(run) if clone(run) > 0 else 0.0


def first_fall(run: Run) -> float | None:
    """Share of all learner steps after which a run first falls by a tenth, as `fall` says; None where it never does."""
    means = report.moving_means(run.returns)
    fallen = np.flatnonzero(means < floor(run) - DIP * clone(run))
    return float(run.steps[len(run.steps) - len(means) + fallen[0]] / run.steps[-1]) if len(fallen) else None


def setback(levels: np.ndarray) -> float:
    """Largest fall from a level to the next as a share of it, (N,) -> scalar; 0 where there was nothing to lose."""
    return float((-np.diff(levels) / np.where(levels > 0, levels, np.inf)[:-1]).max(initial=0.0))


def loss(run: Run) -> float:
    """Largest fall of M from the highest M before it, as a share of that; 0 where there was nothing to lose."""
    means = report.moving_means(run.returns)
    highest = np.maximum.accumulate(means)
    return float(((highest - means) / np.where(highest > 0, highest, np.inf)).max())


QUANTITIES: dict[str, tuple[str, Callable[[Run], float | np.ndarray]]] = {
    "start": ("C / T", lambda run: clone(run) / teacher(run)),
    "fall": ("max(0, C - 3 s / sqrt(10) - lowest M in the first cycle) / C", fall),
    "loss": ("largest fall of M from the highest M before it / that highest M", loss),
    "early": ("mean of the first cycle's evaluations / 1000", lambda run: in_cycles(run)[0] / 1000),
    "area": ("mean of all evaluations / 1000", lambda run: run.returns.mean() / 1000),
    "cycles": ("mean of each cycle's evaluations / 1000", lambda run: in_cycles(run) / 1000),
    "final": ("A_N / 1000", lambda run: after(run)[-1] / 1000),
    "reach": ("A_N / T", lambda run: after(run)[-1] / teacher(run)),
    "setback": ("max(0, largest of (A_k - A_(k+1)) / A_k, k = 1 to N - 1)", lambda run: setback(after(run))),
    "over clone": ("(A_N - C) / 1000", lambda run: (after(run)[-1] - clone(run)) / 1000),
    "over teacher": ("(A_N - T) / 1000", lambda run: (after(run)[-1] - teacher(run)) / 1000),
    "surpass": (
        "1 if A_N is 10 or more above T, else 0",
        lambda run: float(after(run)[-1] - teacher(run) >= 1000 * VISIBLE),
    ),
}

# ---- thresholds

# The paper gives words and curves, but no numbers, so all of these are ours.
HALF = 0.5  # "decent", "steep", "severe": half of what there was
CHANCE = 3.0  # standard errors of M below C: the lowest of many moving means goes that deep without a fall
DIP = 0.1  # a fall: one failed episode among the ten of a moving mean lowers it by as much
VISIBLE = 0.01  # methods differ from 10 points of return on: less can't be seen on an axis that ends at 1000
MATTERS = 0.05  # a setting has to be tuned if it moves the mean return by 50 points, five times what can be seen
REACHED = 0.95  # the expert is reached within a twentieth of its return
ALMOST_ALL = 0.8  # "almost all experiments": at least four of five


# ---- claims


class Part(NamedTuple):
    """The mean of `quantity`, averaged over `methods`, is on `side` of `threshold`.

    With `minus`, it is the paired difference to that method, and if `size` the size of each task's mean difference,
    which can be above a threshold only where every task has two seeds, because noise alone makes a size large.
    """

    statistic: str  # in words
    size: bool
    quantity: str
    methods: tuple[str, ...]
    minus: str | None
    side: str
    threshold: float

    @property
    def needed(self) -> tuple[str, ...]:
        """All methods that it is about."""
        return (*self.methods, *([self.minus] if self.minus else []))


class Claim(NamedTuple):
    """What the paper says, of which teacher and number of cycles, and what has to be true for it, part by part."""

    name: str
    text: str
    setting: tuple[str, int]
    formula: str

    @property
    def parts(self) -> list[Part]:
        """The parts that its formula has: `quantity(method) > THRESHOLD`, or of a difference, joined by `and`."""
        found = []
        for text in self.formula.split(" and "):
            statistic, side, sign, name = re.fullmatch(r"(.+) ([<>]) (-?)([A-Z_]+)", text).groups()
            size, quantity, of, minus = re.match(r"(size of )?([a-z ]+)\((.+?)\)(?: - .+\((.+)\))?", statistic).groups()
            statistic = f"lowest of {statistic}" if quantity == "cycles" else statistic
            threshold = globals()[name] * (-1 if sign else 1)
            found.append(Part(statistic, bool(size), quantity, tuple(of.split(" ")), minus, side, threshold))
        return found


EXPERT, EIGHT, MID = ("expert", 4), ("expert", 8), ("mid", 4)
MID_METHODS = ("bc", "bc_reg_decay:1", "bc_reg_decay:5", "ta:1", "ta:5", "ta_qf", "tg:1", "tg:5")
HIGHEST = " and ".join(f"final(ta_qf) - final({method}) > VISIBLE" for method in MID_METHODS if method != "ta_qf")
FASTER_ENDS_HIGHER = " and final(bc_reg_decay:5) - final(bc_reg) > VISIBLE"
SAME_OF_TEACHER = "the same of the teacher, whose level the captions call the baseline"
PAPER = (
    Claim("4a", "the clone is a decent start", EXPERT, "start(bc) > HALF"),
    Claim("4b", "without regularisation the clone falls steeply at first", EXPERT, "fall(bc) > HALF"),
    Claim("4c", "a fixed weight makes the clone fall less, but it falls", EXPERT,
          "fall(bc) - fall(bc_reg) > DIP and fall(bc_reg) > DIP"),
    Claim("4d", "with 8 cycles a fixed weight ends no higher than the clone, a decaying one ends higher", EIGHT,
          "over clone(bc_reg) < VISIBLE" + FASTER_ENDS_HIGHER),
    Claim("4d, teacher", SAME_OF_TEACHER, EIGHT, "over teacher(bc_reg) < VISIBLE" + FASTER_ENDS_HIGHER),
    Claim("5a", "with a decaying weight there is no initial dip", EXPERT,
          "fall(bc_reg_decay:1) < DIP and fall(bc_reg_decay:5) < DIP"),
    Claim("5b", "with 8 cycles the faster decay surpasses the clone", EIGHT, "over clone(bc_reg_decay:5) > VISIBLE"),
    Claim("5b, teacher", SAME_OF_TEACHER, EIGHT, "over teacher(bc_reg_decay:5) > VISIBLE"),
    Claim("5c", "the rate of decay matters", EXPERT, "size of area(bc_reg_decay:1) - area(bc_reg_decay:5) > MATTERS"),
    Claim("6a", "teacher actions beat decaying regularisation, and are in no cycle below it, at both rates", EXPERT,
          "area(ta:1) - area(bc_reg_decay:1) > VISIBLE and cycles(ta:1) - cycles(bc_reg_decay:1) > -VISIBLE and "
          "area(ta:5) - area(bc_reg_decay:5) > VISIBLE and cycles(ta:5) - cycles(bc_reg_decay:5) > -VISIBLE"),
    Claim("6b", "teacher actions with rate 5 lose severely what they had, and more than with rate 1", EXPERT,
          "loss(ta:5) > HALF and loss(ta:5) - loss(ta:1) > DIP"),
    Claim("6c", "teacher actions with rate 1 reach the expert within 4 cycles", EXPERT, "reach(ta:1) > REACHED"),
    Claim("6d", "the Q-filter starts below teacher actions whose weight decays, then rises to the expert without falls",
          EXPERT, "early(ta:1) - early(ta_qf) > VISIBLE and early(ta:5) - early(ta_qf) > VISIBLE and "
          "reach(ta_qf) > REACHED and setback(ta_qf) < DIP"),
    Claim("6e", "teacher gradients beat decaying regularisation, at both rates", EXPERT,
          "area(tg:1) - area(bc_reg_decay:1) > VISIBLE and area(tg:5) - area(bc_reg_decay:5) > VISIBLE"),
    Claim("6f", "teacher gradients don't reach what teacher actions reach", EXPERT,
          "final(ta:1) - final(tg:1) > VISIBLE and final(ta:1) - final(tg:5) > VISIBLE"),
    Claim("6g", "teacher gradients have no initial drop", EXPERT, "fall(tg:1) < DIP and fall(tg:5) < DIP"),
    Claim("7a", "mid-tier teacher: regularisation prevents a drastic fall", MID,
          "fall(bc) - fall(bc_reg_decay:1) > DIP and fall(bc) - fall(bc_reg_decay:5) > DIP and "
          "fall(bc_reg_decay:1) < HALF and fall(bc_reg_decay:5) < HALF"),
    Claim("7b", "mid-tier teacher: the Q-filter ends above all others", MID, HIGHEST),
    Claim("7c", "mid-tier teacher: gradients beat regularisation and mitigate the drop, at both rates", MID,
          "area(tg:1) - area(bc_reg_decay:1) > VISIBLE and area(tg:5) - area(bc_reg_decay:5) > VISIBLE and "
          "fall(bc) - fall(tg:1) > DIP and fall(bc) - fall(tg:5) > DIP"),
    Claim("7d", "mid-tier teacher: students surpass it in almost all experiments", MID,
          f"surpass({' '.join(MID_METHODS)}) > ALMOST_ALL"),
)  # fmt: skip
# Other readings of the paper: the methods whose names are others then, and the claims that we judge for it too.
READINGS = {
    "demo-sigma:0": (r"\w+:?\w*", ("4a", "4b", "6c")),
    "beta-decay": (r"ta:\d", ("6a", "6b", "6c", "6f")),
    "beta:5": ("ta_qf", ("6d",)),
}


def readings(claim: Claim) -> list[Claim]:
    """The claim, and the same for each other reading of the paper."""
    found = [claim]
    for reading, (methods, names) in READINGS.items():
        if claim.name in names:
            formula = re.sub(rf"\(({methods})\)", rf"(\1,{reading})", claim.formula)
            found.append(claim._replace(name=f"{claim.name}, {reading}", formula=formula))
    return found


CLAIMS = [reading for claim in PAPER for reading in readings(claim)]


# ---- verdicts


class Outcome(NamedTuple):
    """A part's verdict with its numbers: tasks, fewest and most seeds of one, what was drawn anew for the interval.

    Methods without runs are `missing`. `clones` is, of a difference, how many of all pairs began with one clone.
    """

    part: Part
    verdict: str = NOT_DECIDED
    missing: tuple[str, ...] = ()
    tasks: int = 0
    seeds: tuple[int, int] = (0, 0)
    mean: float | None = None
    interval: tuple[float, float] | None = None
    drawn: str = ""
    clones: tuple[int, int] | None = None


def interval(by_task: list[np.ndarray]) -> tuple[tuple[float, float], str]:
    """95 % interval of the mean over tasks of each task's mean, and what was drawn anew for it: seeds or tasks.

    Args:
        by_task: scores of each task's runs, (seeds,).
    """
    if min(map(len, by_task)) < 2:
        return report.bootstrap_interval(np.array([scores.mean() for scores in by_task])), "tasks"
    return runs.estimate(lambda drawn: np.mean([scores.mean(-1) for scores in drawn], 0), by_task)[1:], "seeds"


def judge_part(part: Part, of: Runs) -> Outcome:
    """Judge a part by the runs of each method."""
    if missing := tuple(method for method in part.needed if not of.get(method)):
        return Outcome(part, missing=missing)
    quantity = QUANTITIES[part.quantity][1]
    by_task, same_clone = defaultdict(list), []
    for key in sorted(set.intersection(*(set(of[method]) for method in part.needed))):
        score = np.mean([quantity(of[method][key]) for method in part.methods], axis=0)
        if part.minus:
            score = score - quantity(of[part.minus][key])
        by_task[key[0]].append(np.min(score))
        same_clone.append(len({clone(of[method][key]) for method in part.needed}) == 1)
    scores = [np.array(of_task) for of_task in by_task.values()]
    if not scores:
        return Outcome(part)
    fewest, most = min(map(len, scores)), max(map(len, scores))
    if part.size:
        scores = [abs(of_task.mean(keepdims=True)) for of_task in scores]
    clones = (sum(same_clone), len(same_clone)) if part.minus else None
    mean = float(np.mean([of_task.mean() for of_task in scores]))
    outcome = Outcome(part, tasks=len(scores), seeds=(fewest, most), mean=mean, clones=clones)
    if len(scores) < 2:
        return outcome
    (low, high), drawn = interval(scores)
    over, under = low > part.threshold, high < part.threshold
    holds, fails = (over, under) if part.side == ">" else (under, over)
    holds = holds and not (part.size and fewest < 2)
    verdict = HOLDS if holds else FAILS if fails else NOT_DECIDED
    return outcome._replace(verdict=verdict, interval=(low, high), drawn=drawn)


def judge(claim: Claim, loaded: list[Run]) -> tuple[str, list[Outcome]]:
    """The claim's verdict by runs of one budget, and its parts'."""
    of: Runs = defaultdict(dict)
    for run in loaded:
        if (run.teacher, run.num_cycles) == claim.setting:
            of[run.method][run.env_id, run.seed] = run
    outcomes = [judge_part(part, of) for part in claim.parts]
    verdicts = {outcome.verdict for outcome in outcomes}
    return FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else NOT_DECIDED, outcomes


def groups(paths: tuple[Path, ...]) -> dict[str, list[Run]]:
    """The runs that are judged together, those of one budget and one folder of kept runs, under a title."""
    of_folder: dict[str, list[Path]] = defaultdict(list)
    folders = [path for path in paths if any(path.glob("*__*.json"))]
    for path in paths:
        twice = [folder.name for folder in folders].count(path.name) > 1
        of_folder["" if path not in folders else str(path) if twice else path.name].append(path)
    found = {}
    for name, members in of_folder.items():
        loaded = runs.load_all(members)
        for budget in sorted({run.budget for run in loaded}):
            title = budget.title + (f", {name}" if name and len(of_folder) > 1 else "")
            found[title] = [run._replace(method=CLONING.sub("", run.method)) for run in loaded if run.budget == budget]
    return found


# ---- output


@dataclass
class Args:
    """Judge the paper's claims."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of finished runs, kept files of runs, or folders of kept files"""
    output: Path | None = None
    """also write what is printed to this file"""


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


def in_words(claim: Claim, verdict: str, outcomes: list[Outcome]) -> str:
    """A claim's verdict, with what is missing to decide it."""
    missing = dict.fromkeys(method for outcome in outcomes for method in outcome.missing)
    if verdict == NOT_DECIDED and missing:
        setting = {EXPERT: "", EIGHT: " with 8 cycles", MID: " with a mid-tier teacher"}[claim.setting]
        everything = set(missing) == {method for part in claim.parts for method in part.needed}
        of = "" if setting and everything else f" of {', '.join(missing)}"
        return f"{verdict}: no runs{of}{setting}"
    counted = [outcome for outcome in outcomes if verdict in (NOT_DECIDED, outcome.verdict)]
    tasks, seeds = min(outcome.tasks for outcome in counted), min(outcome.seeds[0] for outcome in counted)
    return f"{verdict}: {tasks} task{'s' * (tasks != 1)}, {seeds} seed{'s' * (seeds != 1)}"


def returns_table(loaded: list[Run]) -> str:
    """What the runs that began with a clone came to, for each method, teacher and number of cycles."""
    members = defaultdict(list)
    for run in filter(lambda run: run.report["clone"], loaded):
        members[run.teacher, run.num_cycles, run.method].append(run)
    lines = []
    for (name, cycles, method), of in sorted(members.items()):
        levels = [[teacher(run), clone(run), *after(run)] for run in of]
        means = np.average(levels, axis=0, weights=runs.task_weights(of)).round().astype(int)
        of_teacher, of_clone, *ends = map(str, means)
        shares = [share for share in map(first_fall, of) if share is not None]
        fallen = f"{len(shares)} of {len(of)}" + (f", {100 * np.mean(shares):.1f} %" if shares else "")
        sizes = f"{len({run.env_id for run in of})}, {len(of)}"
        lines.append([name, str(cycles), method, sizes, of_teacher, of_clone, ", ".join(ends), fallen])
    head = ["teacher", "cycles", "method", "tasks, runs", "T", "C", "A_1 to A_N", "runs that fall, after"]
    return table(head, lines)


def to_markdown(of: dict[str, list[Run]]) -> str:
    """All verdicts as a table, then for each group returns and the numbers of each part, then the quantities."""
    judged = {title: {claim: judge(claim, loaded) for claim in CLAIMS} for title, loaded in of.items()}
    lines = [[c.name, c.text, *(in_words(c, *judged[title][c]) for title in of)] for c in CLAIMS]
    text = [table(["claim", "what the paper says", *of], lines)]
    text.append("After a comma: the claim for another reading of the paper, as the methods are named.")
    for title, claims in judged.items():
        lines = []
        for claim, (_, outcomes) in claims.items():
            for part, verdict, _, tasks, (fewest, most), mean, between, drawn, clones in outcomes:
                if mean is not None:
                    numbers = [f"{mean:.3f}", f"{between[0]:.3f} to {between[1]:.3f}" if between else ""]
                    runs_of = f"{tasks} x {fewest}" + (f" to {most}" if most > fewest else "")
                    claimed = f"{part.side} {part.threshold:g}"
                    shared = f"{clones[0]} of {clones[1]}" if clones else ""
                    lines.append([claim.name, verdict, part.statistic, claimed, *numbers, runs_of, drawn, shared])
        head = ["claim", "part", "statistic", "claimed", "mean", "95 % interval"]
        head += ["tasks x seeds", "drawn anew", "one clone"]
        text.append(f"## {title[0].upper()}{title[1:]}\n\n{table(head, lines)}")
        text.append(f"Means over tasks of the mean over seeds:\n\n{returns_table(of[title])}")
    quantities = [[name, meaning] for name, (meaning, _) in QUANTITIES.items()]
    text.append(f"## Quantities of a run\n\n{table(['name', 'meaning'], quantities)}")
    text.append("What the columns mean stands in [README.md](README.md#how-we-judge).")
    return "\n\n".join(text) + "\n"


def main(args: Args) -> None:
    """Print the verdicts and write them where asked. Raises UserError for what the user can put right."""
    of = groups(args.runs)
    if not of:
        raise UserError("there is nothing to judge: give finished runs.")
    text = to_markdown(of)
    print(text, end="")
    if args.output is not None:
        files.write_atomically(args.output, text.encode())


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
