"""Verdicts on made-up runs: a world in which all is as the paper says, and for each claim one in which it isn't."""

import claims
import numpy as np
import pytest
from claims import FAILS, HOLDS, NOT_DECIDED
from runs import Budget, Run
from small import ROOT

from common import UserError

TENTH = Budget(200_000, 25_000)
TASKS = ("cartpole-swingup", "cheetah-run", "walker-run")
STARTS = {"expert": (900, 800), "mid": (600, 580)}  # mean returns of teacher and clone

# Returns in each cycle: its 100 evaluations, and after learning.
WORLD = """
bc expert: 200 400 500 600
bc,demo-sigma:0 expert: 200 400 500 600
bc_reg expert: 600 700 750 780
bc_reg_decay:1 expert: 800 800 810 820
bc_reg_decay:5 expert: 790 700 700 280
ta:1 expert: 860 870 880 900
ta:5 expert: 890 890 890 300
ta:1,demo-sigma:0 expert: 860 870 880 900
ta:1,beta-decay expert: 860 870 880 900
ta:5,beta-decay expert: 890 890 890 300
ta_qf expert: 500 700 850 890
ta_qf,beta:5 expert: 500 700 850 890
tg:1 expert: 810 820 830 850
tg:5 expert: 800 780 780 800
bc_reg expert: 600 600 650 650 700 700 750 790
bc_reg_decay:5 expert: 790 800 800 850 850 900 920 950
bc mid: 100 200 400 650
bc_reg_decay:1 mid: 570 580 590 620
bc_reg_decay:5 mid: 560 570 580 590
ta:1 mid: 600 610 640 660
ta:5 mid: 600 620 640 640
ta_qf mid: 300 500 600 750
tg:1 mid: 600 630 640 650
tg:5 mid: 590 610 620 630
"""
# For each claim the curves that refute it, and behind a bar another clone's return where it is one.
REFUTED = {
    "4a": ["bc expert: 200 400 500 600 | 300"],
    "4b": ["bc expert: 600 700 700 700"],
    "4c": ["bc_reg expert: 150 700 750 780", "bc_reg expert: 780 700 750 780"],
    "4d": ["bc_reg expert: 600 600 650 650 700 700 750 850",
           "bc_reg_decay:5 expert: 790 800 800 850 850 900 920 780"],
    "4d, teacher": ["bc_reg expert: 600 600 650 650 700 700 750 950",
                    "bc_reg_decay:5 expert: 790 800 800 850 850 900 920 780"],
    "5a": ["bc_reg_decay:1 expert: 500 800 810 820", "bc_reg_decay:5 expert: 500 500 500 500"],
    "5b": ["bc_reg_decay:5 expert: 790 790 790 790 790 790 790 790"],
    "5b, teacher": ["bc_reg_decay:5 expert: 850 850 850 850 850 850 850 850"],
    "5c": ["bc_reg_decay:5 expert: 800 800 810 820"],
    "6a": ["ta:1 expert: 800 800 800 800", "ta:5 expert: 700 700 700 700", "ta:1 expert: 780 900 900 900",
           "ta:5 expert: 890 890 890 260"],
    "6b": ["ta:5 expert: 890 890 890 600", "ta:1 expert: 890 890 890 300"],
    "6c": ["ta:1 expert: 860 870 900 800"],
    "6d": ["ta:1 expert: 500 870 880 900", "ta:5 expert: 400 890 890 300", "ta_qf expert: 500 700 800 820",
           "ta_qf expert: 500 850 700 890"],
    "6e": ["tg:1 expert: 800 800 800 800", "tg:5 expert: 600 600 600 600"],
    "6f": ["tg:1 expert: 810 820 830 900", "tg:5 expert: 900 900 900 900"],
    "6g": ["tg:1 expert: 500 820 830 850", "tg:5 expert: 500 820 830 850"],
    "7a": ["bc_reg_decay:1 mid: 200 580 590 620", "bc_reg_decay:5 mid: 200 580 590 620",
           "bc mid: 550 550 550 650"],
    "7b": [f"{method} mid: 300 500 600 760" for method in claims.MID_METHODS if method != "ta_qf"],
    "7c": ["tg:1 mid: 500 500 500 500", "tg:5 mid: 500 500 500 500", "bc mid: 550 550 550 650",
           "tg:5 mid: 100 700 700 700"],
    "7d": ["ta:1 mid: 600 600 600 600"],  # and bc_reg_decay:5 never did
    # for other readings of the paper
    "4a, demo-sigma:0": ["bc,demo-sigma:0 expert: 200 400 500 600 | 300"],
    "6b, beta-decay": ["ta:5,beta-decay expert: 890 890 890 890"],
    "6d, beta:5": ["ta_qf,beta:5 expert: 900 900 900 900"],
}  # fmt: skip


def made(method, teacher, levels, clone=None, task=TASKS[0], seed=1, budget=TENTH, deviation=0.0):
    """A run with these levels, a cycle for each."""
    taught, cloned = STARTS[teacher]
    steps = np.linspace(0, budget.learner_steps, 100 * len(levels) + 1)
    of = {"teacher": taught, "clone": cloned if clone is None else clone}
    report = {who: {"return": {"mean": mean, "std": deviation}} for who, mean in of.items()}
    ends = zip(steps[100::100], levels, strict=True)
    report["cycles"] = [{"learner_step": end, "after_learning": {"mean": level}} for end, level in ends]
    returns = np.append(levels[0], np.repeat(levels, 100)).astype(float)
    return Run(method, task, seed, teacher, len(levels), budget, steps, returns, report, {})


def world(*changes, **kwargs):
    """All runs of the world, but for `changes`; tasks differ a little, by the same for all methods."""
    found = {}
    for text in (*WORLD.strip().splitlines(), *changes):
        key, _, of = text.partition(": ")
        levels, _, clone = of.partition(" | ")
        levels = np.array(levels.split(), float)
        found[key, len(levels)] = (*key.split(), levels, float(clone) if clone else None)
    return [
        made(*key, levels + 2.0 * i, clone, task=task, **kwargs)
        for *key, levels, clone in found.values()
        for i, task in enumerate(TASKS)
    ]


def verdict(name, loaded):
    (found,) = [claim for claim in claims.CLAIMS if claim.name == name]
    return claims.judge(found, loaded)


def test_every_claim_holds_where_all_is_as_the_paper_says():
    loaded = [*world(), *world(seed=2)]
    assert {claim.name for claim in claims.CLAIMS if claims.judge(claim, loaded)[0] != HOLDS} == set()
    assert {claim.name for claim in claims.PAPER} <= REFUTED.keys()


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, all_of in REFUTED.items() for change in all_of])
def test_a_claim_fails_where_a_row_does_otherwise(name, change):
    assert verdict(name, world(change))[0] == FAILS


@pytest.mark.parametrize("name", REFUTED)
def test_a_claim_is_not_decided_by_one_task_or_without_a_row(name):
    word, outcomes = verdict(name, [run for run in world() if run.env_id == TASKS[0]])
    assert word == NOT_DECIDED and all(o.tasks == 1 and o.interval is None for o in outcomes)
    parts = outcomes[-1].part  # the other parts may hold
    word, outcomes = verdict(name, [run for run in world() if run.method != parts.methods[-1]])
    assert word == NOT_DECIDED and outcomes[-1].missing == (parts.methods[-1],)


def test_a_claim_is_not_decided_where_tasks_disagree_but_one_failed_part_is_enough_whatever_is_missing():
    runs = [made("ta:1", "expert", [last] * 4, task=task) for task, last in zip(TASKS, (900, 900, 700), strict=True)]
    word, (outcome,) = verdict("6c", runs)
    assert word == NOT_DECIDED and outcome.mean == pytest.approx((1 + 1 + 7 / 9) / 3)
    assert outcome.interval == pytest.approx((7 / 9, 1)) and (outcome.tasks, outcome.seeds) == (3, (1, 1))
    dropping = world("tg:1 expert: 500 820 830 850")
    assert verdict("6g", [run for run in dropping if run.method != "tg:5"])[0] == FAILS


def test_seeds_are_drawn_within_tasks_where_all_have_two_else_tasks():
    finals = [(TASKS[0], 1, 700), (TASKS[0], 2, 710), (TASKS[1], 1, 900), (TASKS[1], 2, 920)]
    runs = [made("ta:1", "expert", [final] * 4, task=task, seed=seed) for task, seed, final in finals]
    _, (outcome,) = verdict("6c", runs)
    # Each task's mean is one of 3 values, the extremes with probability 1/4: 1/16 for both at once, more than 2.5 %.
    assert outcome.interval == pytest.approx(((700 + 900) / 1800, (710 + 920) / 1800))
    assert (outcome.drawn, outcome.tasks, outcome.seeds) == ("seeds", 2, (2, 2))
    _, (outcome,) = verdict("6c", runs[:-1])
    assert outcome.interval == pytest.approx((705 / 900, 1)) and (outcome.drawn, outcome.seeds) == ("tasks", (1, 2))
    assert outcome.mean == pytest.approx((705 + 900) / 1800)  # each task counts the same


def test_rows_are_paired_by_task_and_seed_and_pairs_from_two_clones_are_told():
    kept = [run for run in world() if (run.method, run.env_id) != ("tg:1", TASKS[2])]
    outcome = verdict("6f", kept)[1][0]
    assert outcome.tasks == 2 and outcome.mean == pytest.approx(0.05) and outcome.clones == (2, 2)
    other = [run._replace(seed=2) if run.method == "ta:1" else run for run in kept]
    assert verdict("6f", other)[1][0].tasks == 0
    assert verdict("6f", world("tg:1 expert: 810 820 830 850 | 801"))[1][0].clones == (0, 3)


def test_the_size_of_a_difference_is_that_of_a_task_not_of_a_seed():
    pairs = [(1, 900, 800), (2, 800, 900), (3, 880, 800)]  # differences of 100, -100 and 80
    runs = [
        made(method, "expert", [level] * 4, task=task, seed=seed)
        for task in TASKS[:2]
        for seed, *levels in pairs
        for method, level in zip(("bc_reg_decay:1", "bc_reg_decay:5"), levels, strict=True)
    ]
    word, (outcome,) = verdict("5c", runs)
    assert outcome.mean == pytest.approx(0.08 / 3) and word == FAILS
    assert (outcome.seeds, outcome.drawn) == ((3, 3), "tasks")
    # One seed can say that a difference is small, as in REFUTED, but not that it is large.
    assert [verdict("5c", runs)[0] for runs in (world(), [*world(), *world(seed=2)])] == [NOT_DECIDED, HOLDS]


def test_quantities_by_hand():
    run = made("bc", "expert", [200, 400, 500, 300])
    values = {name: function(run) for name, (_, function) in claims.QUANTITIES.items()}
    assert values.pop("cycles") == pytest.approx([(200 + 100 * 200) / 101 / 1000, 0.4, 0.5, 0.3])
    expected = {
        "start": 8 / 9, "fall": 0.75, "loss": 0.4, "early": 0.2, "final": 0.3, "reach": 1 / 3, "setback": 200 / 500,
        "over clone": -0.5, "over teacher": -0.6, "surpass": 0,
        "area": (200 + 100 * (200 + 400 + 500 + 300)) / 401 / 1000,
    }  # fmt: skip
    assert values == pytest.approx(expected)
    varied = made("bc", "expert", [200, 400, 500, 300], deviation=40 * 10**0.5)
    assert claims.fall(varied) == pytest.approx((800 - 3 * 40 - 200) / 800)
    nothing = made("bc", "expert", [0, 0, 0, 0], clone=0)
    assert claims.fall(nothing) == claims.loss(nothing) == claims.setback(np.array([-5.0, -10, 200, 300])) == 0


def test_where_a_run_first_falls_by_a_tenth():
    def first(*levels, **kwargs):
        return claims.first_fall(made("bc", "expert", levels, clone=800, **kwargs))

    # Evaluations 101 to 200 give 700: M is below 720 once nine of its ten do, at the 110th of 401, from 0 on.
    assert first(800, 700, 900, 0) == pytest.approx(109 / 400)
    assert first(800, 720, 900, 800) is None  # a tenth, not more
    assert first(700, 700, 700, 700) == pytest.approx(9 / 400)  # the first M
    assert first(700, 700, 700, 700, deviation=10 * 10**0.5) is None  # 700 is above 800 - 30 - 80


def test_returns_are_means_of_tasks_and_runs_without_a_clone_are_left_out():
    online = made("bc", "expert", [500])  # plain D4PG, as teachers are trained: no claim is about it
    online = online._replace(teacher="none", report=online.report | {"teacher": None, "clone": None})
    lines = claims.returns_table([*world(), online]).splitlines()
    # The tasks' levels differ by 0, 2 and 4.
    assert "| expert | 4 | ta:1 | 3, 3 | 900 | 800 | 862, 872, 882, 902 | 0 of 3 |" in lines
    assert "| expert | 4 | bc | 3, 3 | 900 | 800 | 202, 402, 502, 602 | 3 of 3, 2.3 % |" in lines
    assert not any(line.startswith("| none") for line in lines)


def test_what_is_written_of_the_kept_runs_is_what_they_say(tmp_path):
    study = ROOT / "study"
    kept = (study / "results" / "campaign", study / "results" / "early_clone")
    claims.main(claims.Args(kept, tmp_path / "claims.md"))
    text = (tmp_path / "claims.md").read_text()
    assert (study / "claims.md").read_text() == text
    head, rule, *lines = text.split("\n\n")[0].splitlines()
    shown = [line for line in lines if "," not in line.split("|")[1]]  # other readings and baselines are there only
    assert "\n".join([head, rule, *shown]) + "\n\n" in (study / "README.md").read_text()
    numbers = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    columns = [line.split(" | ") for line in shown]
    for budget in (2, 3):  # a tenth, the paper's
        hold, fail = (sum(column[budget].startswith(verdict) for column in columns) for verdict in ("holds", "fails"))
        assert f"{numbers[hold]} hold and {numbers[fail]} fail" in " ".join((ROOT / "README.md").read_text().split())
    with pytest.raises(UserError, match="nothing to judge"):
        claims.main(claims.Args((tmp_path / "none",)))


def test_flags_that_only_make_the_clone_belong_to_the_folder(tmp_path):
    path = ROOT / "study" / "results" / "early_clone" / "finger-spin__tg-1__expert__4__0.1__1.json"
    name = '"name": "tg:1'
    text = path.read_text()
    assert name in text
    (tmp_path / path.name).write_text(text.replace(name, name + ",bc-steps:20000,bc-learning-rate:0.0001"))
    (loaded,) = claims.groups((tmp_path,)).values()
    assert [run.method for run in loaded] == ["tg:1"]
