"""Reports and averages of hand-made run folders, against numbers worked out by hand."""

import csv
import json
import os
import subprocess
import sys

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


def write_run(run_dir, evaluations, deployed, returns, teacher, method="bc", env_id="cheetah-run", seed=3):
    """Write raw files and the report: `evaluations` and `deployed` {cycle: returns}, and `returns` every 100 steps."""
    args = {"actor_steps": 800 * (len(returns) - 1), "learner_steps": 100 * (len(returns) - 1)}
    args |= {"env_id": env_id, "seed": seed, "num_cycles": max(evaluations), "teacher": "expert", "pretrained": None}
    content = {"script": "gbrl_d4pg.py", "name": method, "teacher_sha256": "ab12", "args": args}
    files.save_json(run_dir / "args.json", content)
    files.save_json(run_dir / "versions.json", {"python": "3", "changes": [{"torch": ["1", "2"]}]})
    files.save_json(run_dir / "teacher.json", {"returns": teacher})
    for cycle, values in evaluations.items():
        files.save_json(run_dir / f"cycle_{cycle:04d}" / "evaluation.json", {"returns": list(values)})
    for cycle, values in deployed.items():
        rewards = [np.array([value - 1, 1], np.float32) for value in values]
        episodes = [Episode(np.zeros((3, 2), np.float32), np.zeros((2, 1), np.float32), r, r * 0 + 1) for r in rewards]
        files.save_arrays(run_dir / f"cycle_{cycle:04d}" / "batch.npz", **pack(episodes))
    lines = []
    for i, value in enumerate(returns):  # four in a cycle
        clocks = {"cycle": max(1, -(-i // 4)), "actor_step": 0, "learner_step": 100 * i}
        lines += [clocks | {"wall_s": i, "eval/episodic_return": value}]
        lines += [clocks | {"wall_s": i + 0.5, "losses/critic_loss": 2.5}]  # a line without an evaluation
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return report.make_report(run_dir, QUERIES, SECONDS)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


CURVE = [950, *[20] * 10, 700, 710]


@pytest.fixture
def content(tmp_path):
    """The report of three cycles: a fall of 30 for every start, then a mean fall of 1 that is noise, then a rise."""
    first = STARTS - 30
    second = first + np.tile([50.0, -52.0], 10)
    evaluations = {0: STARTS, 1: first, 2: second, 3: second + 40}
    return write_run(tmp_path, evaluations, {1: [900, 800], 2: [1000, 1100], 3: [500]}, CURVE, [990, 1010] * 10)


def test_report_numbers(content, tmp_path):
    assert files.load_json(tmp_path / "report.json", "report") == content
    origin = {"name": "bc", "env_id": "cheetah-run", "seed": 3, "script": "gbrl_d4pg.py"}
    assert origin.items() <= content.items() and content["changes"] == [{"torch": ["1", "2"]}]
    assert (content["teacher"]["name"], content["teacher"]["sha256"]) == ("expert", "ab12")
    for part, mean in (("teacher", 1000), ("clone", 950), ("final", 950 - 30 - 1 + 40)):
        returns = content[part]["return"]
        low, high = returns["ci95"]
        assert returns["mean"] == pytest.approx(mean) and low < mean < high and returns["episodes"] == 20
    # The lowest ten evaluations are the 2nd to the 11th, which ends at step 1000.
    assert content["dip"] == {"depth": 930, "learner_step": 1000, "mean_of_10": 20, "evaluations": 10}
    assert content["falls"] == {"count": 2, "significant": 1}
    assert content["regret"] == 100 + 200 + 0 - 100 + 500
    assert content["regret_per_episode"] == 700 / 5
    assert content["teacher_queries"] == QUERIES
    assert content["seconds"] == {"learning": 2.0} and content["wall_s"] == 12.5
    assert [(cycle["cycle"], cycle["learner_step"]) for cycle in content["cycles"]] == [(1, 400), (2, 800), (3, 1200)]
    # Two returns give means 800, 850, 900 with probabilities 1/4, 1/2, 1/4, so the interval is exactly the extremes.
    assert content["cycles"][0]["deployed"] == {"mean": 850, "ci95": [800, 900], "std": 50, "episodes": 2}
    assert content["cycles"][2]["deployed"] == {"mean": 500, "ci95": [500, 500], "std": 0, "episodes": 1}


def test_interval_is_close_to_the_normal_one_and_reproducible():
    values = np.random.default_rng(5).normal(100, 10, 2000)
    half = 1.96 * values.std() / np.sqrt(2000)
    low, high = report.bootstrap_interval(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert (low, high) == report.bootstrap_interval(values)


def test_dips_of_short_and_rising_curves_and_falls_of_other_starts():
    def dip(returns):
        return report.dip(np.arange(len(returns)) * 100, np.array(returns), clone_mean=10.0)

    assert dip([5, 1, 3]) == {"depth": 7, "learner_step": 200, "mean_of_10": 3, "evaluations": 3}
    assert dip(range(11, 31)) == {"depth": 0, "learner_step": 900, "mean_of_10": 15.5, "evaluations": 10}
    assert dip([]) is None
    cycles = [np.array([900, 700]), np.array([899, 699])]  # each pair has fallen by 1
    assert [report.falls(cycles, paired)["significant"] for paired in (False, True)] == [0, 1]


def test_what_the_learning_curve_shows(content, tmp_path, drawn):
    report.draw_learning_curve(tmp_path)
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["evaluation, no noise"] == [[100 * i, value] for i, value in enumerate(CURVE)]
    assert lines["mean of 10 evaluations"] == [[900, 113], [1000, 20], [1100, 88], [1200, 157]]  # each at its last
    assert {y for _, y in lines["teacher 1000"]} == {1000} and {y for _, y in lines["clone 950"]} == {950}
    assert axes.containers[0].lines[0].get_xydata().tolist() == [[0, 850], [400, 1050], [800, 500]]  # as cycles start


def test_a_picture_is_the_same_whatever_matplotlib_is_told_to_be_and_one_that_fails_is_a_sentence(
    content, tmp_path, monkeypatch, capsys
):
    expected = report.draw_learning_curve(tmp_path).read_bytes()
    assert expected[:8] == b"\x89PNG\r\n\x1a\n"
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\nbackend: TkAgg\n")
    given = {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "nonsense"}
    code = f"from common import report; report.draw_learning_curve(report.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], env=os.environ | given, cwd=ROOT, check=True)
    assert (tmp_path / "learning_curve.png").read_bytes() == expected

    def fail(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    assert report.draw_learning_curve(tmp_path) is None and "no font" in capsys.readouterr().err


# ---- averages of runs

FINALS = {  # (task, seed) -> mean final return; evaluation i of the run gives i more, so the lowest ten give 4.5 more
    "bc": {("cheetah-run", 0): 100, ("cheetah-run", 1): 200, ("walker-run", 0): 600, ("walker-run", 1): 800},
    "ta_qf": {("cheetah-run", 0): 300, ("cheetah-run", 1): 400, ("walker-run", 0): 500, ("walker-run", 1): 900},
}
TEACHERS = {"cheetah-run": 700.0, "walker-run": 900.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of each finished run, of two cycles and 15 evaluations."""
    folders = {(method, *key): tmp_path_factory.mktemp("run") for method, finals in FINALS.items() for key in finals}
    for (method, task, seed), folder in folders.items():
        final = FINALS[method][task, seed]
        evaluations, curve = {k: STARTS - 950 + final if k else STARTS for k in range(3)}, range(final, final + 15)
        write_run(folder, evaluations, {1: [10]}, curve, [TEACHERS[task]] * 20, method, task, seed)
        files.save_torch(folder / "cycle_0002" / "snapshot.pt", {"metadata": {"command": "python gbrl_d4pg.py"}})
    return folders


@pytest.fixture(scope="module")
def loaded(finished):
    return {key: runs.load(path) for key, path in finished.items()}


def command(*args):
    return subprocess.run([sys.executable, ROOT / "benchmark/plot.py", *args], capture_output=True, text=True, cwd=ROOT)


def by_setting(loaded):
    return plot.group_runs(loaded, lambda run: run.setting)


def test_plot_end_to_end(finished, tmp_path):
    given, kept = dict(finished), tmp_path / "kept"  # half of the runs as kept files, beside them what sweep.py leaves
    for i, key in enumerate(key for key in finished if key[0] == "bc"):
        runs.save(given.pop(key), kept / f"kept__{i}.json")
    files.save_json(kept / "claims.json", {})
    (tmp_path / "unfinished").mkdir()
    files.save_json(tmp_path / "clone__x" / "report.json", {})
    beside = [tmp_path / name for name in ("kept", "unfinished", "clone__x", "run.log", "summary.csv", "curves.png")]
    for path in beside[3:]:
        path.touch()
    done = command(*given.values(), *beside, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{tmp_path}/unfinished is left out: it isn't a finished run, it has no report.json.\n"
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    with open(tmp_path / "summary.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    same = {"actor_steps": "11200", "learner_steps": "1400", "teacher": "expert", "num_cycles": "2", "tasks": "2"}
    assert all((same | {"runs_per_task": "2"}).items() <= line.items() for line in lines)
    numbers = [[float(line[name]) for name in ("estimate", "low", "high")] for line in lines]
    of = {(line["method"], line["measure"]): three for line, three in zip(lines, numbers, strict=True)}
    # Each task's two runs are drawn anew, so the interval ends at the worst and the best run of both, each with
    # probability 1/16, more than 2.5 %. The mean is of the middle two of four runs.
    assert of["bc", plot.FINAL] == pytest.approx([(0.2 + 0.6) / 2, (0.1 + 0.6) / 2, (0.2 + 0.8) / 2])
    assert of["ta_qf", plot.FINAL] == pytest.approx([(0.4 + 0.5) / 2, (0.3 + 0.5) / 2, (0.4 + 0.9) / 2])
    below = np.array([0.95 - 0.4, 0.95 - 0.5, 0.95 - 0.35]) - 0.0045  # of the clone, which returns 950
    assert of["bc", plot.DIP] == pytest.approx(below)
    # On cheetah-run 4 of 4 pairs are better, on walker-run 500 beats none and 900 beats both.
    assert of["ta_qf", plot.IMPROVEMENT][0] == (1 + 0.5) / 2 and ("bc", plot.IMPROVEMENT) not in of

    done = command(tmp_path / "unfinished")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1] == "error: there is nothing to draw: give finished runs."


def test_statistics_by_hand(loaded):
    scores = [np.array(of_task) for of_task in ([9.0, 2.0], [1.0, 8.0], [5.0, 7.0])]
    assert plot.interquartile_mean(scores) == (2 + 5 + 7 + 8) / 4  # a quarter of six is one, rounded down
    assert plot.improvement([np.array([1.0, 3.0])], [np.array([1.0, 2.0])]) == (0.5 + 0 + 1 + 1) / 4
    point, low, high = runs.estimate(plot.interquartile_mean, [of_task[:1] for of_task in scores])
    assert point == 5 and np.isnan(low) and np.isnan(high)
    # All three draws are the lowest run with probability 1/27, between 2.5 and 5 %: the interval is of 95, not 90 %.
    assert runs.estimate(lambda drawn: drawn[0].mean(-1), [np.array([0.0, 3.0, 9.0])]) == (4, 0, 9)
    assert plot.trailing_mean(np.array([1.0, 3, 8, 1]), 3).tolist() == [1, 2, 4, 4]
    # A task with more runs than others loses those with the highest seeds.
    uneven = [loaded["bc", *key] for key in (("cheetah-run", 1), ("cheetah-run", 0), ("walker-run", 1))]
    line = plot.summarise(by_setting(uneven))[0]
    assert (line["tasks"], line["runs_per_task"]) == (2, 1) and line["estimate"] == pytest.approx((0.1 + 0.8) / 2)


def test_a_curve_is_the_mean_of_its_tasks_at_the_first_runs_steps(loaded):
    run = loaded["bc", "cheetah-run", 0]
    members = [
        run._replace(env_id=task, steps=np.array(steps), returns=np.array(returns))
        for task, steps, returns in (("a", [0, 100, 200], [1, 3, 5]), ("a", [0, 200], [3, 7]), ("b", [0, 200], [6, 6]))
    ]
    steps, mean, deviation = plot.average_curves({"bc": members})["bc"]
    assert list(steps) == [0, 100, 200] and mean == pytest.approx([4, 5, 6])
    assert deviation**2 == pytest.approx([9 / 4 + 1 / 4 + 4 / 2, 4 / 4 + 1 / 2, 1 / 4 + 1 / 4])


def test_a_kept_run_is_the_run_and_what_does_not_fit_together_is_refused(finished, loaded, tmp_path):
    for seed, changed in ((0, {"n_step": 5, "num_workers": 0}), (1, {"n_step": 1, "num_workers": 2})):
        path = tmp_path / f"kept__{seed}.json"
        runs.save(finished["bc", "cheetah-run", seed], path)
        run, kept = loaded["bc", "cheetah-run", seed], runs.load(path)
        assert run[:6] == kept[:6] == ("bc", "cheetah-run", seed, "expert", 2, Budget(11_200, 1_400))
        assert run.report == kept.report
        assert np.array_equal(run.steps, kept.steps) and np.array_equal(run.returns, kept.returns)
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"resolved": content["resolved"] | changed}))
    with pytest.raises(UserError, match=r"two runs are both bc, cheetah-run, .* but one has --n-step 5 and one 1"):
        runs.load_all([tmp_path])
    with pytest.raises(UserError, match=r"two runs are both bc, cheetah-run, 2 cycles, teacher expert, .* seed 0;"):
        runs.load_all([finished["bc", "cheetah-run", 0]] * 2)
    path.write_text('{"resolved": {}, "report": {}, "curve": {}}')
    with pytest.raises(UserError, match=r"kept__1\.json can't be read"):
        runs.load(path)


def test_runs_that_differ_in_more_than_their_row_get_panels_of_their_own(loaded):
    run = loaded["bc", "cheetah-run", 0]
    others = [
        run._replace(teacher="mid", budget=runs.PAPER),
        run._replace(num_cycles=8, budget=Budget(200_000, 50_000)),
    ]
    assert {title: list(group) for title, group in by_setting([run, *others, run._replace(method="ta:1")]).items()} == {
        "2 cycles, teacher expert, 0.56 % of the paper's budget": ["bc", "ta:1"],
        "2 cycles, teacher mid, the paper's budget": ["bc"],
        "8 cycles, teacher expert, 200,000 environment steps and 50,000 updates": ["bc"],
    }


def test_only_tasks_of_all_rows_are_averaged_and_the_others_told(loaded, capsys):
    panels = by_setting(run for key, run in loaded.items() if key[:2] != ("ta_qf", "walker-run"))
    ((title, group),) = plot.on_common_tasks(panels, "a figure, ").items()
    assert {(run.method, run.env_id) for run in plot.flat(group)} == {("bc", "cheetah-run"), ("ta_qf", "cheetah-run")}
    said = f"a figure, {title}: only cheetah-run; not all methods have runs on walker-run.\n"
    assert capsys.readouterr().err == said
    ends = [run for key, run in loaded.items() if key[:2] in (("bc", "cheetah-run"), ("ta_qf", "walker-run"))]
    assert plot.on_common_tasks(by_setting(ends)) == {}


def test_figures_of_the_paper(loaded, tmp_path, monkeypatch):
    run, drawn = loaded["bc", "cheetah-run", 0]._replace(num_cycles=4, budget=Budget(200_000, 25_000)), {}
    headings = []

    def record(path, panels, heading):
        named = {title: {f"{run.method} {run.env_id}" for run in plot.flat(of)} for title, of in panels.items()}
        drawn[path.name.removesuffix("_scale_0.1.png")] = named
        headings.append(heading)

    monkeypatch.setattr(plot, "draw_curves", record)
    everywhere = ("bc", "bc_reg", "ta:1", "ta:1,beta-decay")
    given = [run._replace(method=method, env_id=task) for method in everywhere for task in ("a", "cheetah-run")]
    given += [run._replace(method="ta_qf"), run._replace(num_cycles=8), run._replace(teacher="mid")]
    given += [run._replace(teacher="mid", method=method) for method in ("tg:1", "bc_reg")]
    given += [run._replace(budget=runs.PAPER)]  # bc alone is no comparison, nor is ta:1 in figure 6b
    plot.draw_paper(tmp_path, given)
    both = {"bc cheetah-run", "bc_reg cheetah-run"}
    in_figure_4 = {"4 cycles, 2 tasks": both | {"bc a", "bc_reg a"}, "8 cycles, 1 task": {"bc cheetah-run"}}
    assert headings[0] == "Figure 4, teacher expert, 10 % of the paper's budget: 2 tasks, seed 0, 1 to 2 runs a curve"
    assert drawn == {
        "figure_4": in_figure_4,
        "figure_6a": {"4 cycles": {"ta:1 cheetah-run", "ta_qf cheetah-run"}},
        "figure_7": {"4 cycles": {"tg:1 cheetah-run", "bc cheetah-run"}},
        "tasks_expert": {"a": {"bc a", "bc_reg a", "ta:1 a"}, "cheetah-run": both | drawn["figure_6a"]["4 cycles"]},
        "tasks_mid": {"cheetah-run": drawn["figure_7"]["4 cycles"]},
    }
    with pytest.raises(UserError, match="belongs to a figure"):
        plot.draw_paper(tmp_path, [run._replace(method="between:1")])


def test_what_a_panel_shows(loaded, tmp_path, drawn):
    bc = [run for key, run in loaded.items() if key[0] == "bc"]
    zero = [run._replace(method="ta_qf", returns=0 * run.returns) for run in bc]
    plot.draw_curves(tmp_path / "x.png", {"panel": {"ta_qf": zero, "bc": bc}}, "heading")
    (axes,), (legend,) = drawn[0].axes, drawn[0].legends
    lines = {line.get_color(): line.get_ydata() for line in axes.lines}
    names = [text.get_text() for text in legend.texts]
    shown = {name: list(lines[of.get_color()]) for name, of in zip(names, legend.legend_handles, strict=True)}
    mean = np.mean([run.returns for run in bc], axis=0)
    assert shown == {"bc": pytest.approx(mean), "ta_qf": [0] * 15, "teacher": [800, 800]}  # of both tasks' teachers
    deviation = np.std([run.returns for run in bc], axis=0)
    edges = axes.collections[names.index("bc") - 1].get_paths()[0].vertices[:, 1]
    assert {round(y, 6) for y in edges} == {round(y, 6) for y in [*(mean - deviation), *(mean + deviation)]}
    cycle = bc[0].report["cycles"][0]["learner_step"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_color() == "0.88"] == [cycle]
    assert axes.get_title() == "panel" and drawn[0].get_suptitle() == "heading"
    assert [line.get_linestyle() for line in legend.legend_handles] == ["-", "-", "--"]
    many = bc[0]._replace(steps=np.arange(200), returns=np.arange(200.0) % 2)
    plot.draw_curves(tmp_path / "x.png", {"panel": {"tg:5": [many]}}, "heading")
    smooth = drawn[1].axes[0].lines[0]
    assert list(smooth.get_ydata()) == pytest.approx(plot.trailing_mean(many.returns, 10))
    assert smooth.get_linestyle() == "--"
