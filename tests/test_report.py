"""Reports and averages of hand-made run folders, against numbers worked out by hand."""

import csv
import itertools
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import plot
import pytest

from common import UserError, files, report
from common.rollouts import Episode, pack

ROOT = Path(__file__).resolve().parent.parent
STARTS = np.arange(20) * 100.0  # returns of 20 start seeds that differ far more than cycles do; their mean is 950


def write_run(
    run_dir, evaluations, deployed, returns, row="bc", env_id="cheetah-run", seed=3, teacher="expert", every=100
):
    """Write raw files: `evaluations` {cycle: returns}, `deployed` {folder: [(cycle, return)]}, `returns` of the run."""
    resolved = {"env_id": env_id, "seed": seed, "num_cycles": max(evaluations), "teacher": teacher}
    content = {"script": "gbrl_d4pg.py", "row": row, "args": {}, "resolved": resolved}
    files.save_json(run_dir / "args.json", content)
    for cycle, values in evaluations.items():
        content = {"cycle": cycle, "learner_step": 400 * cycle, "returns": [float(value) for value in values]}
        files.save_json(run_dir / f"cycle_{cycle:04d}" / "evaluation.json", content)
    for folder, pairs in deployed.items():
        rewards = [np.array([value - 1, 1], np.float32) for _, value in pairs]
        episodes = [Episode(np.zeros((3, 2), np.float32), np.zeros((2, 1), np.float32), r, r * 0 + 1) for r in rewards]
        arrays = pack(episodes, [cycle for cycle, _ in pairs])
        files.save_arrays(run_dir / f"cycle_{folder:04d}" / "batch.npz", run=np.array("id"), **arrays)
    with open(run_dir / "metrics.csv", "w", newline="") as file:
        lines = csv.writer(file)
        clocks = ["cycle", "actor_step", "learner_step", "pretrain_step", "wall_s"]
        lines.writerow([*clocks, "eval/episodic_return", "losses/critic_loss"])
        for i, value in enumerate(returns):
            lines.writerow([1, 0, every * i, 0, i, value, ""])
            lines.writerow([1, 0, every * i, 0, i + 0.5, "", 2.5])  # a row without an evaluation


def facts(teacher_returns):
    return {
        "teacher_returns": teacher_returns,
        "states_annotated": 7,
        "gradients_asked": 9,
        "seconds": {"learning": 2.0},
    }


@pytest.fixture
def run_dir(tmp_path):
    """Three cycles: a fall of 30 for every start, then a mean fall of 1 that is noise, then a rise."""
    first = STARTS - 30
    second = first + np.tile([50.0, -52.0], 10)
    evaluations = {0: STARTS, 1: first, 2: second, 3: second + 40}
    deployed = {1: [(1, 900), (1, 800)], 2: [(2, 1000), (2, 1100)], 3: [(3, 500)]}
    write_run(tmp_path, evaluations, deployed, [950, *[20] * 10, 700, 710])
    return tmp_path


def test_report_numbers(run_dir):
    content = report.make_report(run_dir, facts([990, 1010] * 10))
    assert files.load_json(run_dir / "report.json", "report") == json.loads(json.dumps(content)) == content
    assert (content["row"], content["env_id"], content["seed"], content["script"]) == (
        "bc",
        "cheetah-run",
        3,
        "gbrl_d4pg.py",
    )
    assert content["teacher"]["name"] == "expert" and content["teacher"]["return"]["mean"] == 1000
    assert content["clone"]["return"]["mean"] == 950
    assert content["final"]["return"]["mean"] == pytest.approx(950 - 30 - 1 + 40)
    # The lowest ten evaluations are the 2nd to the 11th, which ends at step 1000.
    assert content["dip"] == {"depth": 930, "learner_step": 1000, "mean_of_10": 20, "evaluations": 10}
    assert content["falls"] == {"count": 2, "significant": 1}
    assert content["regret"] == 100 + 200 + 0 - 100 + 500
    assert content["regret_per_episode"] == 700 / 5
    assert content["teacher_queries"] == {"states_annotated": 7, "gradients_asked": 9}
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
    assert low == pytest.approx(values.mean() - half, abs=0.03) and high == pytest.approx(
        values.mean() + half, abs=0.03
    )
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
    groups = {500: [(cycle, 10) for cycle in range(1, 501)], 1000: [(cycle, 30) for cycle in range(501, 1001)]}
    write_run(tmp_path, {0: STARTS, 500: STARTS + 1, 1000: STARTS + 2}, groups, [1] * 30, teacher="none")
    content = report.make_report(tmp_path, facts(None))
    for key in ("teacher", "clone", "dip", "regret", "regret_per_episode"):
        assert content[key] is None, key
    assert content["falls"] == {"count": 0, "significant": 0}
    assert [cycle["deployed"]["mean"] for cycle in content["cycles"]] == [10, 30]
    assert [cycle["deployed"]["episodes"] for cycle in content["cycles"]] == [500, 500]
    assert report.draw_learning_curve(tmp_path).stat().st_size > 15_000


def test_deployed_episodes_are_grouped_by_their_cycle_not_their_folder(tmp_path):
    write_run(tmp_path, {0: STARTS, 1: STARTS, 2: STARTS}, {2: [(1, 10), (2, 20), (1, 30)]}, [1] * 12)
    cycles = report.make_report(tmp_path, facts([100] * 20))["cycles"]
    assert [(cycle["deployed"]["mean"], cycle["deployed"]["episodes"]) for cycle in cycles] == [(20, 2), (20, 1)]


def test_picture(run_dir):
    report.make_report(run_dir, facts([990, 1010] * 10))
    content = report.draw_learning_curve(run_dir).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", content[16:24]) == (1300, 720)
    assert len(content) > 25_000  # an empty pair of axes takes about 8 kB


def test_picture_of_a_run_without_evaluations(tmp_path):
    write_run(tmp_path, {0: STARTS, 1: STARTS}, {1: [(1, 10)]}, [])
    assert report.make_report(tmp_path, facts([100] * 20))["dip"] is None
    assert report.draw_learning_curve(tmp_path).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["args.json", "cycle_0002/evaluation.json", "cycle_0001/batch.npz"])
def test_flipped_bit_is_a_user_error(run_dir, name):
    path = run_dir / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|can't be"):
        report.make_report(run_dir, facts(None))
    assert not (run_dir / "report.json").exists()


@pytest.mark.parametrize(("old", "new"), [("700", "7x0"), ("700", "700,1"), ("cycle,", "")])
def test_damaged_metrics_are_a_user_error(run_dir, old, new):
    path = run_dir / "metrics.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match="damaged"):
        report.make_report(run_dir, facts(None))


@pytest.mark.parametrize("name", ["args.json", "cycle_0000/evaluation.json", "metrics.csv"])
def test_missing_file_is_a_user_error(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(UserError):
        report.make_report(run_dir, facts(None))


# ---- averages of runs

FINALS = {  # (task, seed) -> mean final return
    "bc": {("cheetah-run", 0): 100, ("cheetah-run", 1): 200, ("walker-run", 0): 600, ("walker-run", 1): 800},
    "ta_qf": {("cheetah-run", 0): 300, ("cheetah-run", 1): 400, ("walker-run", 0): 500, ("walker-run", 1): 900},
}
TEACHERS = {"cheetah-run": 700.0, "walker-run": 900.0}


def write_finished(folder, row, env_id, seed, final=500, cycles=2, every=100, **kwargs):
    curve = np.random.default_rng([seed, len(env_id), len(row)]).uniform(100, 900, 15)
    evaluations = {0: STARTS} | {k: STARTS - 950 + final for k in range(1, cycles + 1)}
    write_run(folder, evaluations, {1: [(1, 10)]}, curve, row, env_id, seed, every=every, **kwargs)
    report.make_report(folder, facts([TEACHERS[env_id]] * 20))
    return curve


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        (row, *key): (folder / f"{row}{key}", write_finished(folder / f"{row}{key}", row, *key, final))
        for row, finals in FINALS.items()
        for key, final in finals.items()
    }


def command(*args):
    return subprocess.run([sys.executable, ROOT / "benchmark/plot.py", *args], capture_output=True, text=True, cwd=ROOT)


def lines_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_plot_end_to_end(finished, tmp_path):
    done = command(*[path for path, _ in finished.values()], "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"curves.csv", "curves.png", "summary.csv", "summary.png"}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))

    for row in FINALS:
        curves = np.array([curve for key, (_, curve) in finished.items() if key[0] == row])
        written = [line for line in lines_of(tmp_path / "curves.csv") if line["row"] == row]
        assert [float(line["x"]) for line in written] == [100.0 * i for i in range(15)]
        np.testing.assert_allclose([float(line["mean"]) for line in written], curves.sum(0) / 4)
        deviation = np.sqrt(((curves - curves.sum(0) / 4) ** 2).sum(0) / 4)
        np.testing.assert_allclose([float(line["std"]) for line in written], deviation)
        assert {(line["num_cycles"], line["runs"]) for line in written} == {("2", "4")}

    summary = {(line["row"], line["measure"]): line for line in lines_of(tmp_path / "summary.csv")}
    assert {line["tasks"] + line["runs_per_task"] for line in summary.values()} == {"22"}

    def middle(scores):  # the interquartile mean of four scores
        return sum(sorted(scores)[1:3]) / 2

    def check(line, of_tasks):
        """Each task's two runs are drawn anew: 16 outcomes, and even the rarest has a probability above 2.5 %."""
        outcomes = [middle(sum(drawn, ())) for drawn in itertools.product(*[itertools.product(s, s) for s in of_tasks])]
        assert float(line["estimate"]) == pytest.approx(middle(sum(of_tasks, ())))
        assert float(line["low"]) == pytest.approx(min(outcomes)) and float(line["high"]) == pytest.approx(
            max(outcomes)
        )

    for row, finals in FINALS.items():
        scores = [tuple(finals[task, seed] / 1000 for seed in (0, 1)) for task in TEACHERS]
        check(summary[row, plot.FINAL], scores)
        dips = {}
        for key in finals:
            curve = finished[row, *key][1]
            dips[key] = max(0, 950 - min(curve[i : i + 10].mean() for i in range(6))) / 1000
        check(summary[row, plot.DIP], [tuple(dips[task, seed] for seed in (0, 1)) for task in TEACHERS])
    # On cheetah-run 4 of 4 pairs are better, on walker-run 500 beats none and 900 beats both.
    assert float(summary["ta_qf", plot.IMPROVEMENT]["estimate"]) == (1 + 0.5) / 2
    assert ("bc", plot.IMPROVEMENT) not in summary


def test_interquartile_mean_and_improvement_by_hand():
    scores = np.array([[9.0, 1.0, 5.0], [2.0, 8.0, 7.0]])  # sorted 1 2 5 7 8 9: a quarter of six is one, rounded down
    assert plot.interquartile_mean(scores) == (2 + 5 + 7 + 8) / 4
    assert plot.improvement(np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]])) == (0.5 + 0 + 1 + 1) / 4
    point, low, high = plot.estimate(plot.interquartile_mean, scores[:1])
    assert point == 5 and np.isnan(low) and np.isnan(high)


def test_curves_of_different_length_are_averaged_over_fractions(tmp_path):
    for seed, every in ((0, 100), (1, 300)):
        write_finished(tmp_path / str(seed), "bc", "cheetah-run", seed, every=every)
    runs = [plot.load_run(tmp_path / str(seed)) for seed in (0, 1)]
    name, curves = plot.average_curves(plot.group_runs(runs))
    x, mean, _ = curves[2, "bc"]
    assert name == "learner steps / total" and (x[0], x[-1]) == (0, 1)
    assert mean[0] == (runs[0].returns[0] + runs[1].returns[0]) / 2
    assert mean[-1] == (runs[0].returns[-1] + runs[1].returns[-1]) / 2
    assert mean[100] == pytest.approx((runs[0].returns[7] + runs[1].returns[7]) / 2)  # half of 14 intervals


def test_tasks_with_more_runs_lose_the_highest_seeds(tmp_path, capsys):
    for env_id, seed, final in (("cheetah-run", 0, 100), ("cheetah-run", 1, 200), ("walker-run", 4, 300)):
        write_finished(tmp_path / f"{seed}", "bc", env_id, seed, final)
    panels = plot.group_runs([plot.load_run(tmp_path / seed) for seed in ("1", "0", "4")])
    line = plot.summarise(panels)[0]
    assert (line["tasks"], line["runs_per_task"]) == (2, 1) and line["estimate"] == pytest.approx(0.2)
    assert "1 to 2 runs" in capsys.readouterr().err


def test_trailing_mean():
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - 9) : i + 1].mean() for i in range(30)]
    np.testing.assert_allclose(plot.trailing_mean(values, 10), expected)


def test_runs_that_cannot_be_compared_are_refused(finished, tmp_path):
    first = plot.load_run(finished["bc", "cheetah-run", 0][0])
    with pytest.raises(UserError, match="two runs are both bc, cheetah-run, 2 cycles, seed 0"):
        plot.group_runs([first, first])
    with pytest.raises(UserError, match="different teachers, expert and mid"):
        plot.group_runs([first, first._replace(seed=1, teacher="mid")])
    with pytest.raises(UserError, match=r"bc has runs on walker-run and ta_qf has none"):
        plot.group_runs([first, first._replace(env_id="walker-run"), first._replace(row="ta_qf")])


def test_mistakes_end_in_one_sentence(finished, tmp_path):
    done = command(finished["bc", "cheetah-run", 0][0], tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path} is no folder of a finished run: it has no report.json.\n"
    with pytest.raises(UserError, match="nothing to draw"):
        plot.main(plot.Args())


def test_alpha_figure(tmp_path):
    plot.main(plot.Args(output=tmp_path, alpha=True))
    assert [path.name for path in tmp_path.iterdir()] == ["alpha.png"]
    assert (tmp_path / "alpha.png").stat().st_size > 10_000
