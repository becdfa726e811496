"""Judge the paper's claims by finished runs: for each a formula, a threshold, a 95 % interval and a verdict.

    python benchmark/claims.py benchmark/results/campaign

A claim has one part or several. A part is the mean, over tasks and seeds, of a quantity of a row's runs, or of the
paired difference between two rows' runs of the same task and seed, and a threshold. Of a quantity that has a value for
each cycle the lowest counts, after the difference is taken. A part `holds` if its whole interval is on the claim's side
of the threshold, `fails` if its whole interval is on the other side, and is `not decided` else. A claim holds if all
its parts hold and fails if one fails.

The interval is a 95 % percentile bootstrap. Where every task has two seeds or more, seeds are drawn anew within each
task, and it says how far other seeds would move the mean. With fewer, tasks are drawn anew, and it says how far other
tasks would. A run counts as one score; the noise of the episodes behind it is in the interval. Parts aren't corrected
for their number.

All that can be argued about stands in three tables: QUANTITIES, the thresholds below them, and PAPER. READINGS says
which claims are judged for other readings of the paper too, and OTHERWISE what else could have been chosen: which
verdicts are others then is part of the output.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import runs
import tyro
from runs import Budget, Run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, files, report

HOLDS, FAILS, NOT_DECIDED = "holds", "fails", "not decided"


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


def fall(run: Run, until: float | None = None) -> float:
    """max(0, C - 3 s / sqrt(10) - lowest M) / C in the first cycle, or the share `until` of all learner steps.

    A clone that gets nothing has nothing to lose.
    """
    within = run.steps <= (until * run.steps[-1] if until else run.report["cycles"][0]["learner_step"])
    depth = max(0.0, floor(run) - float(report.moving_means(run.returns[within]).min()))
    return depth / clone(run) if clone(run) > 0 else 0.0


def first_fall(run: Run) -> float | None:
    """Share of all learner steps after which a run first falls by a tenth, as `fall` says; None where it never does."""
    means = report.moving_means(run.returns)
    fallen = np.flatnonzero(means < floor(run) - DIP * clone(run))
    return float(run.steps[len(run.steps) - len(means) + fallen[0]] / run.steps[-1]) if len(fallen) else None


def setback(run: Run) -> float:
    """Largest fall from A_k to A_(k+1) as a share of A_k; 0 where there was nothing to lose."""
    levels = after(run)
    return float((-np.diff(levels) / np.where(levels > 0, levels, np.inf)[:-1]).max(initial=0.0))


def loss(run: Run) -> float:
    """Largest fall of M from the highest M before it, as a share of that; 0 where there was nothing to lose."""
    means = report.moving_means(run.returns)
    highest = np.maximum.accumulate(means)
    return float(((highest - means) / np.where(highest > 0, highest, 1)).max())


QUANTITIES: dict[str, tuple[str, Callable[[Run], float | np.ndarray]]] = {
    "start": ("C / T", lambda run: clone(run) / teacher(run)),
    "fall": ("max(0, C - 3 s / sqrt(10) - lowest M in the first cycle) / C", fall),
    "fall, first eighth": ("the same in the first eighth of all learner steps", lambda run: fall(run, 1 / 8)),
    "loss": ("largest fall of M from the highest M before it / that highest M", loss),
    "early": ("mean of the first cycle's evaluations / 1000", lambda run: in_cycles(run)[0] / 1000),
    "area": ("mean of all evaluations / 1000", lambda run: run.returns.mean() / 1000),
    "cycles": ("mean of each cycle's evaluations / 1000", lambda run: in_cycles(run) / 1000),
    "final": ("A_N / 1000", lambda run: after(run)[-1] / 1000),
    "reach": ("A_N / T", lambda run: after(run)[-1] / teacher(run)),
    "setback": ("max(0, largest of (A_k - A_(k+1)) / A_k, k = 1 to N - 1)", setback),
    "over clone": ("(A_N - C) / 1000", lambda run: (after(run)[-1] - clone(run)) / 1000),
    "over teacher": ("(A_N - T) / 1000", lambda run: (after(run)[-1] - teacher(run)) / 1000),
    "surpass": (
        "1 if A_N is 10 or more above T, else 0",
        lambda run: float(after(run)[-1] - teacher(run) >= 1000 * VISIBLE),
    ),
}

# ---- thresholds

HALF = 0.5  # decent, steep, severe: half of what there was [ours: the paper gives no numbers]
CHANCE = 3.0  # below C by so many standard errors of M, the lowest of many M is no fall [ours]
DIP = 0.1  # a fall counts from a tenth on; one failed episode of ten is as much [ours]
VISIBLE = 0.01  # rows differ from 10 points of return on: less can't be seen where the axis ends at 1000 [ours]
MATTERS = 0.05  # a setting has to be tuned if it moves the mean return by 50 points [ours]
REACHED = 0.95  # the expert is reached within a twentieth of its return [ours]
ALMOST_ALL = 0.8  # "almost all experiments" are at least four of five [ours]


# ---- claims


class Part(NamedTuple):
    """The mean of `quantity`, averaged over `rows`, is on `side` of `threshold`.

    With `minus`, it is the paired difference to that row, and if `absolute` the size of each task's mean difference,
    which is above a threshold only where every task has two seeds.
    """

    quantity: str
    rows: tuple[str, ...]
    side: str
    threshold: float
    minus: str | None = None
    absolute: bool = False

    def __str__(self) -> str:
        text = f"{self.quantity}({', '.join(self.rows)})" + (f" - {self.quantity}({self.minus})" if self.minus else "")
        return f"size of {text}" if self.absolute else f"lowest of {text}" if self.quantity == "cycles" else text


class Claim(NamedTuple):
    """What the paper says, of which teacher and number of cycles, and what has to be true for it."""

    name: str
    text: str
    setting: tuple[str, int]
    parts: tuple[Part, ...]


def above(quantity: str, row: str, threshold: float) -> Part:
    """The row's mean is above the threshold."""
    return Part(quantity, (row,), ">", threshold)


def below(quantity: str, row: str, threshold: float) -> Part:
    """The row's mean is below the threshold."""
    return Part(quantity, (row,), "<", threshold)


def beats(quantity: str, row: str, other: str, margin: float = VISIBLE) -> Part:
    """The row's mean is above the other's by more than the margin."""
    return Part(quantity, (row,), ">", margin, other)


def throughout(row: str, other: str) -> tuple[Part, Part]:
    """The row's mean is above the other's, and in no cycle visibly below it."""
    return beats("area", row, other), beats("cycles", row, other, -VISIBLE)


EXPERT, EIGHT, MID = ("expert", 4), ("expert", 8), ("mid", 4)
MID_ROWS = ("bc", "bc_reg_decay:1", "bc_reg_decay:5", "ta:1", "ta:5", "ta_qf", "tg:1", "tg:5")
SAME_OF_TEACHER = "the same of the teacher, whose level the captions call the baseline"
PAPER = (
    Claim("4a", "the clone is a decent start", EXPERT, (above("start", "bc", HALF),)),
    Claim("4b", "without regularisation the clone falls steeply at first", EXPERT, (above("fall", "bc", HALF),)),
    Claim("4c", "a fixed weight makes the clone fall less, but it falls", EXPERT,
          (beats("fall", "bc", "bc_reg", DIP), above("fall", "bc_reg", DIP))),
    Claim("4d", "with 8 cycles a fixed weight ends no higher than the clone, a decaying one ends higher", EIGHT,
          (below("over clone", "bc_reg", VISIBLE), beats("final", "bc_reg_decay:5", "bc_reg"))),
    Claim("4d, teacher", SAME_OF_TEACHER, EIGHT,
          (below("over teacher", "bc_reg", VISIBLE), beats("final", "bc_reg_decay:5", "bc_reg"))),
    Claim("5a", "with a decaying weight there is no initial dip", EXPERT,
          (below("fall", "bc_reg_decay:1", DIP), below("fall", "bc_reg_decay:5", DIP))),
    Claim("5b", "with 8 cycles the faster decay surpasses the clone", EIGHT,
          (above("over clone", "bc_reg_decay:5", VISIBLE),)),
    Claim("5b, teacher", SAME_OF_TEACHER, EIGHT, (above("over teacher", "bc_reg_decay:5", VISIBLE),)),
    Claim("5c", "the rate of decay matters", EXPERT,
          (Part("area", ("bc_reg_decay:1",), ">", MATTERS, "bc_reg_decay:5", absolute=True),)),
    Claim("6a", "teacher actions beat decaying regularisation, and are in no cycle below it, at both rates", EXPERT,
          (*throughout("ta:1", "bc_reg_decay:1"), *throughout("ta:5", "bc_reg_decay:5"))),
    Claim("6b", "teacher actions with rate 5 lose severely what they had, and more than with rate 1", EXPERT,
          (above("loss", "ta:5", HALF), beats("loss", "ta:5", "ta:1", DIP))),
    Claim("6c", "teacher actions with rate 1 reach the expert within 4 cycles", EXPERT,
          (above("reach", "ta:1", REACHED),)),
    Claim("6d", "the Q-filter starts below teacher actions whose weight decays, then rises to the expert without falls",
          EXPERT, (beats("early", "ta:1", "ta_qf"), beats("early", "ta:5", "ta_qf"),
                   above("reach", "ta_qf", REACHED), below("setback", "ta_qf", DIP))),
    Claim("6e", "teacher gradients beat decaying regularisation, at both rates", EXPERT,
          (beats("area", "tg:1", "bc_reg_decay:1"), beats("area", "tg:5", "bc_reg_decay:5"))),
    Claim("6f", "teacher gradients don't reach what teacher actions reach", EXPERT,
          (beats("final", "ta:1", "tg:1"), beats("final", "ta:1", "tg:5"))),
    Claim("6g", "teacher gradients have no initial drop", EXPERT,
          (below("fall", "tg:1", DIP), below("fall", "tg:5", DIP))),
    Claim("7a", "mid-tier teacher: regularisation prevents a drastic fall", MID,
          (beats("fall", "bc", "bc_reg_decay:1", DIP), beats("fall", "bc", "bc_reg_decay:5", DIP),
           below("fall", "bc_reg_decay:1", HALF), below("fall", "bc_reg_decay:5", HALF))),
    Claim("7b", "mid-tier teacher: the Q-filter ends above all others", MID,
          tuple(beats("final", "ta_qf", row) for row in MID_ROWS if row != "ta_qf")),
    Claim("7c", "mid-tier teacher: gradients beat regularisation and mitigate the drop, at both rates", MID,
          (beats("area", "tg:1", "bc_reg_decay:1"), beats("area", "tg:5", "bc_reg_decay:5"),
           beats("fall", "bc", "tg:1", DIP), beats("fall", "bc", "tg:5", DIP))),
    Claim("7d", "mid-tier teacher: students surpass it in almost all experiments", MID,
          (Part("surpass", MID_ROWS, ">", ALMOST_ALL),)),
)  # fmt: skip
# Other readings of the paper: how the names of the rows begin that each changes ("": all), and the claims it is for.
READINGS = {
    "demo-sigma:0": ("", ("4a", "4b", "6c")),
    "beta-decay": ("ta:", ("6a", "6b", "6c", "6f")),
    "beta:5": ("ta_qf", ("6d",)),
}


def with_reading(claim: Claim, changed: str, reading: str) -> Claim:
    """The claim for another reading of the rows whose names begin with `changed`."""

    def rename(row: str) -> str:
        return f"{row},{reading}" if row.startswith(changed) else row

    parts = tuple(
        part._replace(rows=tuple(map(rename, part.rows)), minus=part.minus and rename(part.minus))
        for part in claim.parts
    )
    return claim._replace(name=f"{claim.name}, {reading}", parts=parts)


CLAIMS: list[Claim] = []
for _claim in PAPER:
    CLAIMS.append(_claim)
    for _reading, (_changed, _names) in READINGS.items():
        if _claim.name in _names:
            CLAIMS.append(with_reading(_claim, _changed, _reading))


# ---- what else could have been chosen


def in_place_of(mine: float, other: float) -> Callable[[Part], Part]:
    """What makes of a part with the threshold `mine`, of either sign, one with `other`."""
    return lambda part: part._replace(threshold={mine: other, -mine: -other}.get(part.threshold, part.threshold))


def early_fall(part: Part) -> Part:
    """What is initial doesn't depend on the number of cycles: an eighth is the first cycle of eight."""
    return part._replace(quantity="fall, first eighth") if part.quantity == "fall" else part


OTHERWISE: dict[str, Callable[[Part], Part]] = {
    "a fall in the first eighth, not the first cycle": early_fall,
    **{
        f"{meaning} from {other:g} on, not {mine:g}": in_place_of(mine, other)
        for meaning, mine, tried in (
            ("half", HALF, (0.33, 0.67)),
            ("a fall", DIP, (0.05, 0.15, 0.2)),
            ("a visible difference", VISIBLE, (0.0, 0.02)),
            ("a rate that matters", MATTERS, (0.02, 0.1)),
            ("the expert reached", REACHED, (0.9, 0.99)),
            ("almost all", ALMOST_ALL, (0.7, 0.9)),
        )
        for other in tried
    },
}


# ---- verdicts


class Outcome(NamedTuple):
    """A part's verdict with its numbers: how many tasks, the fewest and most seeds of one, what was drawn anew.

    Rows without runs are `missing`. Without two tasks there is no interval. `clones` is, of a difference, how many of
    its pairs of runs began with the same clone, and of how many.
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
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(scores), size=(report.RESAMPLES, len(scores))) for scores in by_task]
    means = np.mean([scores[index].mean(1) for scores, index in zip(by_task, drawn, strict=True)], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return (float(low), float(high)), "seeds"


def judge_part(part: Part, rows: dict[str, dict[tuple[str, int], Run]]) -> Outcome:
    """Judge a part by the runs of each row, which are given by task and seed."""
    needed = [*part.rows, *([part.minus] if part.minus else [])]
    if missing := tuple(row for row in needed if not rows.get(row)):
        return Outcome(part, missing=missing)
    quantity = QUANTITIES[part.quantity][1]
    by_task = defaultdict(list)
    same_clone = []
    for key in sorted(set.intersection(*(set(rows[row]) for row in needed))):
        score = np.mean([quantity(rows[row][key]) for row in part.rows], axis=0)
        if part.minus:
            score = score - quantity(rows[part.minus][key])
        by_task[key[0]].append(np.min(score))
        same_clone.append(len({clone(rows[row][key]) for row in needed}) == 1)
    scores = [np.array(of_task) for of_task in by_task.values()]
    if not scores:
        return Outcome(part)
    seeds = [len(of_task) for of_task in scores]
    if part.absolute:
        scores = [abs(of_task.mean(keepdims=True)) for of_task in scores]
    mean = float(np.mean([of_task.mean() for of_task in scores]))
    outcome = Outcome(part, tasks=len(scores), seeds=(min(seeds), max(seeds)), mean=mean)
    if part.minus:
        outcome = outcome._replace(clones=(sum(same_clone), len(same_clone)))
    if len(scores) < 2:
        return outcome
    (low, high), drawn = interval(scores)
    over, under = low > part.threshold, high < part.threshold
    holds, fails = (over, under) if part.side == ">" else (under, over)
    if part.absolute and min(seeds) < 2:  # noise alone makes a size large: one seed can only say that it is small
        holds = False
    verdict = HOLDS if holds else FAILS if fails else NOT_DECIDED
    return outcome._replace(verdict=verdict, interval=(low, high), drawn=drawn)


def judge(claim: Claim, loaded: list[Run]) -> tuple[str, list[Outcome]]:
    """The claim's verdict by runs of one budget, and its parts'."""
    rows: dict[str, dict[tuple[str, int], Run]] = defaultdict(dict)
    for run in loaded:
        if (run.teacher, run.num_cycles) == claim.setting:
            rows[run.row][run.env_id, run.seed] = run
    outcomes = [judge_part(part, rows) for part in claim.parts]
    verdicts = {outcome.verdict for outcome in outcomes}
    return FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else NOT_DECIDED, outcomes


Judged = dict[Claim, tuple[str, list[Outcome]]]  # by runs of one budget
Verdicts = dict[Budget, Judged]


def others(loaded: list[Run], judged: Judged, change: Callable[[Part], Part]) -> dict[str, str]:
    """The paper's claims whose verdicts by runs of one budget are others once their parts are changed, and those."""
    found = {}
    for claim in PAPER:
        changed = claim._replace(parts=tuple(map(change, claim.parts)))
        if changed != claim and (verdict := judge(changed, loaded)[0]) != judged[claim][0]:
            found[claim.name] = verdict
    return found


def judge_all(loaded: list[Run]) -> Verdicts:
    """Every claim's verdict, for each budget that has runs."""
    budgets = sorted({run.budget for run in loaded})
    of = {budget: [run for run in loaded if run.budget == budget] for budget in budgets}
    return {budget: {claim: judge(claim, of[budget]) for claim in CLAIMS} for budget in budgets}


# ---- output

NOTE = """\
T, C and A_k are mean returns of the teacher, the clone and the policy after cycle k of N, over the same noise-free
episodes, and s is the standard deviation of the clone's; M is the moving mean of 10 evaluations, of one episode each,
and one of them that fails lowers it by a tenth. A run falls where M is first below C - 3 s / sqrt(10) by a tenth of C,
and `after` is the mean share of all learner steps that were taken by then: a run's first M is after 10 evaluations.
Differences are paired by task and seed, and a run counts as one score. Where a task has one seed, tasks are drawn anew
for the interval: it says how far other tasks would move the mean, and the noise of a run's evaluations is in it. Where
every task has more, seeds are drawn anew within each task. An interval from few values is too narrow: from two or three
tasks it is the range of their values. A size of a difference, which noise alone makes large, needs two seeds of every
task to be above a threshold. All rows of a task and seed are meant to begin with one clone, and `one clone` says how
many pairs did: it is made again on another machine."""


@dataclass
class Args:
    """Judge the paper's claims."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of finished runs, kept files of runs, or folders of kept files"""
    markdown: Path | None = None
    """also write what is printed to this file"""
    json: Path | None = None
    """also write verdicts and numbers to this file"""


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


def in_words(claim: Claim, verdict: str, outcomes: list[Outcome]) -> str:
    """A claim's verdict, with what is missing to decide it."""
    missing = dict.fromkeys(row for outcome in outcomes for row in outcome.missing)
    if verdict == NOT_DECIDED and missing:
        setting = {EXPERT: "", EIGHT: " with 8 cycles", MID: " with a mid-tier teacher"}[claim.setting]
        needed = {row for part, *_ in outcomes for row in (*part.rows, part.minus) if row}
        of = "" if setting and set(missing) == needed else f" of {', '.join(missing)}"
        return f"{verdict}: no runs{of}{setting}"
    counted = [outcome for outcome in outcomes if verdict in (NOT_DECIDED, outcome.verdict)]
    tasks, seeds = min(outcome.tasks for outcome in counted), min(outcome.seeds[0] for outcome in counted)
    return f"{verdict}: {tasks} task{'s' * (tasks != 1)}, {seeds} seed{'s' * (seeds != 1)}"


def returns_table(loaded: list[Run]) -> str:
    """What the runs of one budget that began with a clone came to, for each row, teacher and number of cycles."""
    members = defaultdict(list)
    for run in filter(lambda run: run.report["clone"], loaded):
        members[run.teacher, run.num_cycles, run.row].append(run)
    lines = []
    for (name, cycles, row), of_row in sorted(members.items()):
        sizes = f"{len({run.env_id for run in of_row})}, {len(of_row)}"
        of_runs = [
            [teacher(run), clone(run), *after(run), run.report["dip"]["depth"], run.report["regret_per_episode"]]
            for run in of_row
        ]
        means = np.average(of_runs, axis=0, weights=runs.task_weights(of_row)).round().astype(int)
        of_teacher, of_clone, *ends, dip, regret = map(str, means)
        shares = [share for share in map(first_fall, of_row) if share is not None]
        fallen = f"{len(shares)} of {len(of_row)}" + (f", {100 * np.mean(shares):.1f} %" if shares else "")
        lines.append([name, str(cycles), row, sizes, of_teacher, of_clone, ", ".join(ends), dip, fallen, regret])
    head = ["teacher", "cycles", "row", "tasks, runs", "T", "C", "A_1 to A_N", "dip", "runs that fall, after"]
    return table([*head, "regret per deployed episode"], lines)


def to_markdown(verdicts: Verdicts, loaded: list[Run]) -> str:
    """All verdicts as a table, then for each budget returns and the numbers of each part, then the quantities."""
    titles = [budget.title for budget in verdicts]
    lines = [[c.name, c.text, *(in_words(c, *verdicts[budget][c]) for budget in verdicts)] for c in CLAIMS]
    text = [table(["claim", "what the paper says", *titles], lines)]
    text.append("Behind a comma: the claim for another reading of the paper, as the rows are named.")
    for name, (budget, claims) in zip(titles, verdicts.items(), strict=True):
        lines, of_budget = [], [run for run in loaded if run.budget == budget]
        for claim, (_, outcomes) in claims.items():
            for part, verdict, _, tasks, (fewest, most), mean, between, drawn, clones in outcomes:
                if mean is not None:
                    numbers = [f"{mean:.3f}", f"{between[0]:.3f} to {between[1]:.3f}" if between else ""]
                    runs_of = f"{tasks} x {fewest}" + (f" to {most}" if most > fewest else "")
                    claimed = f"{part.side} {part.threshold:g}"
                    shared = f"{clones[0]} of {clones[1]}" if clones else ""
                    lines.append([claim.name, verdict, str(part), claimed, *numbers, runs_of, drawn, shared])
        head = ["claim", "part", "statistic", "claimed", "mean", "95 % interval"]
        head += ["tasks x seeds", "drawn anew", "one clone"]
        text.append(f"## {name[0].upper()}{name[1:]}\n\n{table(head, lines)}")
        text.append(f"Means over tasks of the mean over seeds:\n\n{returns_table(of_budget)}")
    lines = []
    for words, change in OTHERWISE.items():
        of_each = [others([r for r in loaded if r.budget == budget], of, change) for budget, of in verdicts.items()]
        if any(of_each):
            lines.append([words, *(", ".join(f"{name} {verdict}" for name, verdict in of.items()) for of in of_each)])
    tried = f"Tried: {'; '.join(OTHERWISE)}. Where verdicts are others then:"
    text.append(f"## Had something else been chosen\n\n{tried}\n\n{table(['instead', *titles], lines)}")
    quantities = [[name, meaning] for name, (meaning, _) in QUANTITIES.items()]
    text.append(f"## Quantities of a run\n\n{table(['name', 'meaning'], quantities)}")
    text.append(NOTE)
    return "\n\n".join(text) + "\n"


def to_json(verdicts: Verdicts) -> str:
    """All verdicts and numbers as JSON, one line for each budget and claim."""
    lines = []
    for budget, claims in verdicts.items():
        for claim, (verdict, outcomes) in claims.items():
            about = {**budget._asdict(), **claim._asdict(), "verdict": verdict}
            parts = [{"statistic": str(o.part), **o._asdict(), "part": o.part._asdict()} for o in outcomes]
            lines.append(json.dumps(about | {"parts": parts}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main(args: Args) -> None:
    """Print the verdicts and write them where asked. Raises UserError for what the user can put right."""
    loaded = runs.load_all(args.runs)
    if not loaded:
        raise UserError("there is nothing to judge: give finished runs.")
    verdicts = judge_all(loaded)
    text = to_markdown(verdicts, loaded)
    print(text, end="")
    for path, content in ((args.markdown, text), (args.json, to_json(verdicts))):
        if path is not None:
            files.write_atomically(path, content.encode())


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except UserError as error:
        sys.exit(f"error: {error}")
