"""Reports and averages of hand-made run folders, against numbers worked out by hand."""

import csv
import itertools
import json
import os
import struct
import subprocess
import sys

import matplotlib
import numpy as np
import plot
import pytest
import runs
from runs import Budget
from small import ROOT

from common import UserError, files, report
from common.rollouts import Episode, pack

STARTS = np.arange(20) * 100.0  # returns of 20 start seeds that differ far more than cycles do; their mean is 950


QUERIES, SECONDS = {"states_annotated": 7, "gradients_asked": 9}, {"learning": 2.001}


def write_run(run_dir, evaluations, deployed, returns, teacher, method="bc", env_id="cheetah-run", seed=3, every=100):
    """Write raw files: `evaluations` {cycle: returns}, `deployed` {cycle: returns}, `returns` of the run.

    `teacher` are a teacher's returns, None for --teacher none.
    """
    args = {"actor_steps": 8 * every * (len(returns) - 1), "learner_steps": every * (len(returns) - 1)}
    args |= {"env_id": env_id, "seed": seed, "num_cycles": max(evaluations)}
    args |= {"teacher": "none" if teacher is None else "expert"}
    content = {"script": "gbrl_d4pg.py", "name": method, "teacher_sha256": teacher and "ab12", "args": args}
    files.save_json(run_dir / "args.json", content)
    files.save_json(run_dir / "versions.json", {"python": "3", "changes": [{"torch": ["1", "2"]}]})
    if teacher is not None:
        files.save_json(run_dir / "teacher.json", {"cycle": 0, "learner_step": 0, "returns": teacher})
    for cycle, values in evaluations.items():
        content = {"cycle": cycle, "learner_step": 400 * cycle, "returns": [float(value) for value in values]}
        files.save_json(run_dir / f"cycle_{cycle:04d}" / "evaluation.json", content)
    for cycle, values in deployed.items():
        rewards = [np.array([value - 1, 1], np.float32) for value in values]
        episodes = [Episode(np.zeros((3, 2), np.float32), np.zeros((2, 1), np.float32), r, r * 0 + 1) for r in rewards]
        files.save_arrays(run_dir / f"cycle_{cycle:04d}" / "batch.npz", **pack(episodes))
    lines = []
    for i, value in enumerate(returns):
        clocks = {"cycle": 1, "actor_step": 0, "learner_step": every * i}
        lines += [clocks | {"wall_s": i, "eval/episodic_return": value}]
        lines += [clocks | {"wall_s": i + 0.5, "losses/critic_loss": 2.5}]  # a line without an evaluation
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line, default=float) + "\n" for line in lines))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


@pytest.fixture
def run_dir(tmp_path):
    """Three cycles: a fall of 30 for every start, then a mean fall of 1 that is noise, then a rise."""
    first = STARTS - 30
    second = first + np.tile([50.0, -52.0], 10)
    evaluations = {0: STARTS, 1: first, 2: second, 3: second + 40}
    deployed = {1: [900, 800], 2: [1000, 1100], 3: [500]}
    write_run(tmp_path, evaluations, deployed, [950, *[20] * 10, 700, 710], [990, 1010] * 10)
    return tmp_path


def test_report_numbers(run_dir):
    content = report.make_report(run_dir, QUERIES, SECONDS)
    assert files.load_json(run_dir / "report.json", "report") == json.loads(json.dumps(content)) == content
    origin = {"name": "bc", "env_id": "cheetah-run", "seed": 3, "script": "gbrl_d4pg.py"}
    assert origin.items() <= content.items()
    assert (content["teacher"]["name"], content["teacher"]["sha256"]) == ("expert", "ab12")
    assert content["teacher"]["return"]["mean"] == 1000 and content["changes"] == [{"torch": ["1", "2"]}]
    assert content["clone"]["return"]["mean"] == 950
    assert content["final"]["return"]["mean"] == pytest.approx(950 - 30 - 1 + 40)
    # The lowest ten evaluations are the 2nd to the 11th, which ends at step 1000.
    assert content["dip"] == {"depth": 930, "learner_step": 1000, "mean_of_10": 20, "evaluations": 10}
    assert content["falls"] == {"count": 2, "significant": 1}
    assert content["regret"] == 100 + 200 + 0 - 100 + 500
    assert content["regret_per_episode"] == 700 / 5
    assert content["teacher_queries"] == QUERIES
    assert content["seconds"] == {"learning": 2.0} and content["wall_s"] == 12.5
    assert [cycle["cycle"] for cycle in content["cycles"]] == [1, 2, 3]
    assert [cycle["learner_step"] for cycle in content["cycles"]] == [400, 800, 1200]
    # Two returns give means 800, 850, 900 with probabilities 1/4, 1/2, 1/4, so the interval is exactly the extremes.
    assert content["cycles"][0]["deployed"] == {"mean": 850, "ci95": [800, 900], "std": 50, "episodes": 2}
    assert content["cycles"][2]["deployed"] == {"mean": 500, "ci95": [500, 500], "std": 0, "episodes": 1}
    for part in (content["teacher"], content["clone"], content["final"]):
        low, high = part["return"]["ci95"]
        assert low < part["return"]["mean"] < high and part["return"]["episodes"] == 20


def test_interval_is_close_to_the_normal_one_and_reproducible():
    values = np.random.default_rng(5).normal(100, 10, 2000)
    half = 1.96 * values.std() / np.sqrt(2000)
    low, high = report.bootstrap_interval(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert (low, high) == report.bootstrap_interval(values)


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([5.0, 1.0, 3.0], {"depth": 7.0, "learner_step": 200, "mean_of_10": 3.0, "evaluations": 3}),
        (list(range(11, 31)), {"depth": 0.0, "learner_step": 900, "mean_of_10": 15.5, "evaluations": 10}),
        ([], None),
    ],
)
def test_dip_of_short_and_rising_curves(returns, expected):
    assert report.dip(np.arange(len(returns)) * 100, np.array(returns), clone_mean=10.0) == expected


def test_thousands_of_one_episode_cycles_without_a_teacher(tmp_path):
    deployed = {cycle: [10 if cycle <= 500 else 30] for cycle in range(1, 1001)}
    write_run(tmp_path, {0: STARTS, 500: STARTS + 1, 1000: STARTS + 2}, deployed, [1] * 30, None)
    content = report.make_report(tmp_path, QUERIES, SECONDS)
    for key in ("teacher", "clone", "dip", "regret", "regret_per_episode"):
        assert content[key] is None, key
    assert content["falls"] == {"count": 0, "significant": 0}
    assert [cycle["deployed"]["mean"] for cycle in content["cycles"]] == [10, 30]
    assert [cycle["deployed"]["episodes"] for cycle in content["cycles"]] == [500, 500]
    assert report.draw_learning_curve(tmp_path).stat().st_size > 15_000


def test_without_evaluations_deployments_speak_and_are_not_paired(tmp_path):
    write_run(tmp_path, {0: STARTS, 2: STARTS}, {1: [900, 700], 2: [899, 699]}, [], [900] * 20)
    for path in tmp_path.glob("cycle_*/evaluation.json"):
        path.unlink()
    content = report.make_report(tmp_path, QUERIES, SECONDS)
    assert (content["clone"], content["dip"]) == (None, None)
    assert content["falls"] == {"count": 1, "significant": 0}  # as pairs both would have fallen by 1
    assert content["final"]["return"] == content["cycles"][-1]["deployed"]
    assert [cycle["deployed"]["mean"] for cycle in content["cycles"]] == [800, 799]


def test_what_the_learning_curve_shows(run_dir, drawn):
    report.make_report(run_dir, QUERIES, SECONDS)
    report.draw_learning_curve(run_dir)
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    returns = [950, *[20] * 10, 700, 710]
    assert lines["evaluation, no noise"] == [[100 * i, value] for i, value in enumerate(returns)]
    assert lines["mean of 10 evaluations"] == [[900, 113], [1000, 20], [1100, 88], [1200, 157]]  # each at its last
    assert axes.containers[0].lines[0].get_xydata().tolist() == [[0, 850], [400, 1050], [800, 500]]  # as cycles start
    levels = {line.get_color(): line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert levels == {"black": 1000, "#009E73": 950}
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"teacher 1000", "clone 950", "cycle 1", "cycle 2", "cycle 3"}
    assert drawn[0].get_suptitle() == "cheetah-run, bc, seed 3"


@pytest.mark.parametrize(("old", "new", "line"), [("700", "7x0", 15), ("{", "[", 1)])
def test_damaged_metrics_are_a_user_error_that_names_the_line(run_dir, old, new, line):
    path = run_dir / "metrics.jsonl"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=rf"metrics\.jsonl is damaged .*: line {line} column"):
        report.make_report(run_dir, QUERIES, SECONDS)


# ---- notebooks' and users' settings of matplotlib


def test_a_picture_is_the_same_whatever_matplotlib_is_told_to_be_and_leaves_it_so(run_dir, tmp_path, monkeypatch):
    report.make_report(run_dir, QUERIES, SECONDS)
    expected = report.draw_learning_curve(run_dir).read_bytes()
    assert expected[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", expected[16:24]) == (1300, 720)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\nbackend: TkAgg\n")
    given = {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "nonsense"}
    code = f"from common import report; report.draw_learning_curve(report.Path({str(run_dir)!r}))"
    subprocess.run([sys.executable, "-c", code], env=os.environ | given, cwd=ROOT, check=True)
    assert (run_dir / "learning_curve.png").read_bytes() == expected
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 21)
    report.draw_learning_curve(run_dir)
    assert matplotlib.rcParams["font.size"] == 21 and os.environ["MPLBACKEND"] == "nonsense"


def test_a_picture_that_fails_is_a_sentence(run_dir, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no font")

    report.make_report(run_dir, QUERIES, SECONDS)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    assert report.draw_learning_curve(run_dir) is None and not (run_dir / "learning_curve.png").exists()
    said = f"{run_dir} has no learning_curve.png, because matplotlib failed: RuntimeError('no font')\n"
    assert capsys.readouterr().err == said


# ---- averages of runs

FINALS = {  # (task, seed) -> mean final return
    "bc": {("cheetah-run", 0): 100, ("cheetah-run", 1): 200, ("walker-run", 0): 600, ("walker-run", 1): 800},
    "ta_qf": {("cheetah-run", 0): 300, ("cheetah-run", 1): 400, ("walker-run", 0): 500, ("walker-run", 1): 900},
}
TEACHERS = {"cheetah-run": 700.0, "walker-run": 900.0}


def write_finished(folder, method, env_id, seed, final=500, cycles=2, every=100, evaluated=15):
    curve = np.random.default_rng([seed, len(env_id), len(method)]).uniform(100, 900, evaluated).round(2)
    evaluations = {0: STARTS} | {k: STARTS - 950 + final for k in range(1, cycles + 1)}
    write_run(folder, evaluations, {1: [10]}, curve, [TEACHERS[env_id]] * 20, method, env_id, seed, every)
    report.make_report(folder, QUERIES, SECONDS)
    files.save_torch(folder / "cycle_0002" / "snapshot.pt", {"metadata": {"command": "python gbrl_d4pg.py"}})
    return curve


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        (method, *key): (folder / f"{method}{key}", write_finished(folder / f"{method}{key}", method, *key, final))
        for method, finals in FINALS.items()
        for key, final in finals.items()
    }


def command(*args):
    return subprocess.run([sys.executable, ROOT / "benchmark/plot.py", *args], capture_output=True, text=True, cwd=ROOT)


def lines_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_plot_end_to_end(finished, tmp_path):
    given = {key: path for key, (path, _) in finished.items()}
    kept = tmp_path / "kept"  # half of the runs as kept files, beside them what sweep.py leaves
    for i, key in enumerate(key for key in list(given) if key[0] == "bc"):
        runs.save(given.pop(key), kept / f"kept__{i}.json")
    files.save_json(kept / "claims.json", {})
    (tmp_path / "unfinished").mkdir()
    files.save_json(tmp_path / "clone__x" / "report.json", {})
    beside = [tmp_path / name for name in ("run.log", "summary.csv", "curves.png")]
    for path in beside:
        path.touch()
    named = [*given.values(), *(tmp_path / name for name in ("kept", "unfinished", "clone__x")), *beside]
    done = command(*named, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{tmp_path}/unfinished is left out: it isn't a finished run, it has no report.json.\n"
    outputs = {"curves.png", "summary.csv"}
    assert {path.name for path in tmp_path.iterdir()} == outputs | {"kept", "unfinished", "clone__x", "run.log"}
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    summary = {(line["method"], line["measure"]): line for line in lines_of(tmp_path / "summary.csv")}
    same = {"actor_steps": "11200", "learner_steps": "1400", "teacher": "expert", "num_cycles": "2", "tasks": "2"}
    assert all((same | {"runs_per_task": "2"}).items() <= line.items() for line in summary.values())

    def middle(scores):  # the interquartile mean of four scores
        return sum(sorted(scores)[1:3]) / 2

    def check(line, of_tasks):
        """Each task's two runs are drawn anew: 16 outcomes, and even the rarest has a probability above 2.5 %."""
        outcomes = [middle(sum(drawn, ())) for drawn in itertools.product(*[itertools.product(s, s) for s in of_tasks])]
        assert float(line["estimate"]) == pytest.approx(middle(sum(of_tasks, ())))
        assert float(line["low"]) == pytest.approx(min(outcomes)) and float(line["high"]) == pytest.approx(
            max(outcomes)
        )

    for method, finals in FINALS.items():
        scores = [tuple(finals[task, seed] / 1000 for seed in (0, 1)) for task in TEACHERS]
        check(summary[method, plot.FINAL], scores)
        dips = {}
        for key in finals:
            curve = finished[method, *key][1]
            dips[key] = max(0, 950 - min(curve[i : i + 10].mean() for i in range(6))) / 1000
        check(summary[method, plot.DIP], [tuple(dips[task, seed] for seed in (0, 1)) for task in TEACHERS])
    # On cheetah-run 4 of 4 pairs are better, on walker-run 500 beats none and 900 beats both.
    assert float(summary["ta_qf", plot.IMPROVEMENT]["estimate"]) == (1 + 0.5) / 2
    assert ("bc", plot.IMPROVEMENT) not in summary


def test_interquartile_mean_and_improvement_by_hand():
    scores = [np.array(of_task) for of_task in ([9.0, 2.0], [1.0, 8.0], [5.0, 7.0])]
    assert plot.interquartile_mean(scores) == (2 + 5 + 7 + 8) / 4  # a quarter of six is one, rounded down
    assert plot.improvement([np.array([1.0, 3.0])], [np.array([1.0, 2.0])]) == (0.5 + 0 + 1 + 1) / 4
    point, low, high = runs.estimate(plot.interquartile_mean, [of_task[:1] for of_task in scores])
    assert point == 5 and np.isnan(low) and np.isnan(high)
    # All three draws are the lowest run with probability 1/27, between 2.5 and 5 %: the interval is of 95, not 90 %.
    assert runs.estimate(lambda drawn: drawn[0].mean(-1), [np.array([0.0, 3.0, 9.0])]) == (4, 0, 9)


def test_curves_evaluated_at_other_steps_are_interpolated(tmp_path):
    for seed, every, evaluated in ((0, 100, 15), (1, 200, 8)):
        write_finished(tmp_path / str(seed), "bc", "cheetah-run", seed, every=every, evaluated=evaluated)
    first, second = runs.load_all([tmp_path / "0", tmp_path / "1"])
    x, mean, _ = plot.average_curves({"bc": [first, second]})["bc"]
    assert list(x) == [100 * i for i in range(15)]
    assert mean[0] == (first.returns[0] + second.returns[0]) / 2
    assert mean[14] == (first.returns[14] + second.returns[7]) / 2
    assert mean[7] == pytest.approx((first.returns[7] + (second.returns[3] + second.returns[4]) / 2) / 2)


def by_setting(loaded):
    return plot.group_runs(loaded, lambda run: run.setting)


def test_tasks_with_more_runs_lose_the_highest_seeds(tmp_path):
    for env_id, seed, final in (("cheetah-run", 0, 100), ("cheetah-run", 1, 200), ("walker-run", 4, 300)):
        write_finished(tmp_path / f"{seed}", "bc", env_id, seed, final)
    line = plot.summarise(by_setting(runs.load_all(tmp_path / seed for seed in ("1", "0", "4"))))[0]
    assert (line["tasks"], line["runs_per_task"]) == (2, 1) and line["estimate"] == pytest.approx(0.2)


def test_trailing_mean():
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - 9) : i + 1].mean() for i in range(30)]
    np.testing.assert_allclose(plot.trailing_mean(values, 10), expected)


@pytest.fixture(scope="module")
def loaded(finished):
    return {key: runs.load(path) for key, (path, _) in finished.items()}


def test_a_kept_run_is_the_run(finished, loaded, tmp_path):
    runs.save(finished["bc", "cheetah-run", 0][0], tmp_path / "kept.json")
    run, kept = loaded["bc", "cheetah-run", 0], runs.load(tmp_path / "kept.json")
    assert run[:6] == kept[:6] == ("bc", "cheetah-run", 0, "expert", 2, Budget(11_200, 1_400))
    np.testing.assert_array_equal(run.steps, kept.steps)
    np.testing.assert_array_equal(run.returns, kept.returns)
    assert run.report == kept.report


@pytest.mark.parametrize("content", ["", '{"resolved": {}, "report": {}, "curve": {}}'])
def test_what_is_no_kept_run_is_a_user_error(tmp_path, content):
    (tmp_path / "kept.json").write_text(content)
    with pytest.raises(UserError, match=r"kept\.json can't be read"):
        runs.load(tmp_path / "kept.json")


def test_budgets_in_words():
    assert [b.title for b in (runs.PAPER, Budget(200_000, 25_000), Budget(200_000, 50_000))] == [
        "the paper's budget",
        "10 % of the paper's budget",
        "200,000 environment steps and 50,000 updates",
    ]


def test_runs_that_differ_in_more_than_their_row_get_panels_of_their_own(loaded):
    run = loaded["bc", "cheetah-run", 0]
    others = [run._replace(teacher="mid"), run._replace(num_cycles=8), run._replace(budget=runs.PAPER)]
    panels = by_setting([run, *others, run._replace(method="ta:1")])
    budget = "0.56 % of the paper's budget"
    assert {title: list(group) for title, group in panels.items()} == {
        f"2 cycles, teacher expert, {budget}": ["bc", "ta:1"],
        f"8 cycles, teacher expert, {budget}": ["bc"],
        f"2 cycles, teacher mid, {budget}": ["bc"],
        "2 cycles, teacher expert, the paper's budget": ["bc"],
    }


def test_the_same_run_twice_is_refused(finished):
    path = finished["bc", "cheetah-run", 0][0]
    with pytest.raises(UserError, match=r"two runs are both bc, cheetah-run, 2 cycles, teacher expert, .* seed 0;"):
        runs.load_all([path, path])


def test_a_task_with_more_runs_counts_no_more_in_a_curve(loaded):
    members = [loaded["bc", *key] for key in (("cheetah-run", 0), ("cheetah-run", 1), ("walker-run", 0))]
    a, b, c = (run.returns for run in members)
    _, mean, deviation = plot.average_curves({"bc": members})["bc"]
    assert mean == pytest.approx((a + b) / 4 + c / 2)
    variance = ((a - mean) ** 2 + (b - mean) ** 2) / 4 + (c - mean) ** 2 / 2
    assert deviation == pytest.approx(np.sqrt(variance))


def test_seeds_of_a_row_with_other_flags_are_refused(finished, tmp_path):
    for seed, changed in ((0, {"n_step": 5, "num_workers": 0}), (1, {"n_step": 1, "num_workers": 2})):
        runs.save(finished["bc", "cheetah-run", seed][0], tmp_path / f"kept__{seed}.json")
        content = json.loads((tmp_path / f"kept__{seed}.json").read_text())
        content["resolved"] |= changed
        (tmp_path / f"kept__{seed}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"two runs are both bc, cheetah-run, .* but one has --n-step 5 and one 1"):
        runs.load_all([tmp_path])


def test_only_tasks_of_all_rows_are_averaged_and_the_others_told(loaded, capsys):
    panels = by_setting(run for key, run in loaded.items() if key[:2] != ("ta_qf", "walker-run"))
    (group,) = plot.on_common_tasks("a figure", panels).values()
    assert {method: {run.env_id for run in members} for method, members in group.items()} == {
        "bc": {"cheetah-run"},
        "ta_qf": {"cheetah-run"},
    }
    assert capsys.readouterr().err == "a figure: only cheetah-run; not all methods have runs on walker-run.\n"
    ends = [run for key, run in loaded.items() if key[:2] in (("bc", "cheetah-run"), ("ta_qf", "walker-run"))]
    assert plot.on_common_tasks("a figure", by_setting(ends)) == {}


def test_figures_of_the_paper(loaded, tmp_path, monkeypatch):
    run, drawn = loaded["bc", "cheetah-run", 0]._replace(num_cycles=4, budget=Budget(200_000, 25_000)), {}

    def record(path, panels, heading):
        assert all(
            run.method == method for group in panels.values() for method, members in group.items() for run in members
        )
        tasks = {
            name: {method: {run.env_id for run in of} for method, of in group.items()} for name, group in panels.items()
        }
        drawn[path.name] = tasks, heading.partition(", ")[2]

    monkeypatch.setattr(plot, "draw_curves", record)
    everywhere = ("bc", "bc_reg", "bc_reg_decay:1", "ta:1", "ta:1,beta-decay")
    given = [
        run._replace(method=method, env_id=task) for method in everywhere for task in ("cheetah-run", "walker-run")
    ]
    given += [run._replace(method="ta_qf"), run._replace(num_cycles=8)]
    given += [run._replace(teacher="mid", method=method) for method in ("tg:1", "bc", "bc_reg")]
    given += [run._replace(budget=runs.PAPER)]  # bc alone is no comparison
    plot.draw_paper(tmp_path, given)
    one, both, tenth = {"cheetah-run"}, {"cheetah-run", "walker-run"}, "10 % of the paper's budget"
    by_task = {"bc": one, "bc_reg": one, "bc_reg_decay:1": one, "ta:1": one, "ta_qf": one}
    walker = {method: {"walker-run"} for method in everywhere[:4]}
    assert drawn == {
        "figure_4_scale_0.1.png": (
            {"4 cycles": {"bc": one, "bc_reg": one}, "8 cycles": {"bc": one}},
            f"teacher expert, {tenth}: cheetah-run, seed 0",
        ),
        "figure_5_scale_0.1.png": (
            {"4 cycles": {"bc": one, "bc_reg_decay:1": one}, "8 cycles": {"bc": one}},
            f"teacher expert, {tenth}: cheetah-run, seed 0",
        ),
        "figure_6a_scale_0.1.png": (
            {"4 cycles": {"bc_reg_decay:1": one, "ta:1": one, "ta_qf": one}},
            f"teacher expert, {tenth}: cheetah-run, seed 0",
        ),
        "figure_6b_scale_0.1.png": (
            {"4 cycles": {"bc_reg_decay:1": both, "ta:1": both}},
            f"teacher expert, {tenth}: 2 tasks, seed 0",
        ),
        "figure_7_scale_0.1.png": (
            {"4 cycles": {"tg:1": one, "bc": one}},
            f"teacher mid, {tenth}: cheetah-run, seed 0",
        ),
        "tasks_expert_scale_0.1.png": (
            {"cheetah-run": by_task, "walker-run": walker},
            f"teacher expert, {tenth}: 2 tasks, seed 0",
        ),
        "tasks_mid_scale_0.1.png": (
            {"cheetah-run": {"tg:1": one, "bc": one}},
            f"teacher mid, {tenth}: cheetah-run, seed 0",
        ),
    }
    with pytest.raises(UserError, match="belongs to a figure"):
        plot.draw_paper(tmp_path, [run._replace(method="between:1")])


def test_what_a_panel_shows(loaded, tmp_path, drawn):
    zero = [run._replace(method="ta_qf", returns=0 * run.returns) for key, run in loaded.items() if key[0] == "bc"]
    bc = [run for key, run in loaded.items() if key[0] == "bc"]
    plot.draw_curves(tmp_path / "x.png", {"panel": {"ta_qf": zero, "bc": bc}}, "heading")
    (axes,) = drawn[0].axes
    lines = {line.get_color(): line for line in axes.lines}
    np.testing.assert_allclose(lines[plot.COLOURS["bc"]].get_ydata(), np.mean([run.returns for run in bc], axis=0))
    assert set(lines[plot.COLOURS["ta_qf"]].get_ydata()) == {0} and axes.get_ylim()[0] < 0  # a curve at 0 is seen
    assert list(lines["black"].get_ydata()) == [800, 800]  # the mean of both tasks' teachers
    (legend,) = drawn[0].legends
    named = {text.get_text(): line.get_color() for text, line in zip(legend.texts, legend.legend_handles, strict=True)}
    assert list(named.items()) == [
        *((method, plot.COLOURS[method]) for method in ("bc", "ta_qf")),
        ("teacher", "black"),
    ]
    assert axes.get_legend() is None and (axes.get_title(), drawn[0].get_suptitle()) == ("panel", "heading")


def test_many_points_are_drawn_as_moving_means_and_cycles_end_at_lines(loaded, tmp_path, drawn):
    curves, steps = np.random.default_rng(0).uniform(0, 900, (2, 120)), 100 * np.arange(120)
    pair = [loaded["bc", "cheetah-run", seed]._replace(steps=steps, returns=curves[seed]) for seed in (0, 1)]
    plot.draw_curves(tmp_path / "x.png", {"panel": {"bc": pair}}, "heading")
    (axes,) = drawn[0].axes
    windows = [curves[:, max(0, i - 9) : i + 1] for i in range(120)]
    mean = np.array([window.mean() for window in windows])
    deviation = np.array([np.ptp(window, axis=0).mean() / 2 for window in windows])  # of two runs: half their distance
    (line,) = [line for line in axes.lines if line.get_color() == plot.COLOURS["bc"]]
    np.testing.assert_allclose(line.get_ydata(), mean)
    band = axes.collections[0].get_paths()[0].vertices  # from below, and back above
    for edge in (mean - deviation, mean + deviation):
        assert np.isclose(band[:, 1], edge[60]).any() and np.isclose(band[:, 1], edge[-1]).any()
    ends = [line.get_xdata()[0] for line in axes.lines if line.get_color() == "0.88"]
    assert ends == [400]  # of two cycles' ends, 400 and 800, the last is the figure's own


def test_a_row_looks_the_same_in_every_figure_and_readings_differ():
    few, many = plot.looks(["ta:1", "ta:5,beta-decay"]), plot.looks(["bc", "ta:1,x", "ta:1,y", "ta:5", "ta:1"])
    assert few["ta:1"] == many["ta:1"] == {"color": plot.COLOURS["ta:1"], "linestyle": "-"}
    assert len({str(look) for look in many.values()}) == 5
    assert {many[method]["color"] for method in ("ta:1", "ta:1,x", "ta:1,y")} == {plot.COLOURS["ta:1"]}


def test_mistakes_end_in_one_sentence(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    left_out, error = done.stderr.splitlines()
    assert left_out.startswith(f"{tmp_path} is left out")
    assert error == "error: there is nothing to draw: give finished runs."
