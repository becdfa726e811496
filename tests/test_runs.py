"""Each row end to end, and the promise that the same seed gives the same bytes."""

import itertools
import math
import struct

import numpy as np
import pytest
import torch
from small import ROWS, SMALL, differences, metrics, report, result, run_row, script

from common import UserError, files, rollouts, teachers

TASK = "cartpole-swingup"
OTHERS = (
    "cheetah-run",
    "finger-spin",
    "pendulum-swingup",
    "cartpole-balance",
    "walker-run",
    "cheetah-run",
    "finger-spin",
)
LIGHT = {"actor_steps": 2_000, "eval_episodes": 0, "report_episodes": 1}  # the other tasks, where seconds are short
OWN_KEYS = {
    "bc": set(),
    "bc_reg": {"teacher/distance"},
    "bc_reg_decay:5": {"teacher/alpha", "teacher/distance"},
    "between:1": {"teacher/alpha", "teacher/distance"},
    "ta:1": {"teacher/alpha", "teacher/distance"},
    "ta_qf": {"teacher/q_filter_rate", "teacher/distance"},
    "tg:1": {"teacher/alpha"},
}
QUERIES = {"ta:1": (1, 0), "ta_qf": (1, 0), "tg:1": (0, 61 * 32)}  # per deployed state, per update of 32


@pytest.fixture(scope="module")
def runs(tmp_path_factory, demo_dir):
    """Every row on two tasks, all six among them, run once and read by several tests."""
    folder = tmp_path_factory.mktemp("runs")
    done = {}

    def get(row, task):
        if (row, task) not in done:
            flags = {} if task == TASK else LIGHT
            done[row, task] = run_row(row, folder / f"{row}-{task}".replace(":", "-"), demo_dir, env_id=task, **flags)
        return done[row, task]

    return get


@pytest.mark.parametrize(("row", "task"), [*((row, TASK) for row in ROWS), *zip(ROWS, OTHERS, strict=True)])
def test_a_row_runs_and_its_report_is_its_raw_files(row, task, runs):
    run_dir = runs(row, task)
    rows, content = metrics(run_dir), report(run_dir)
    keys = set().union(*rows)
    assert OWN_KEYS[row] <= keys
    assert {k for k in keys if k.startswith("teacher/")} == OWN_KEYS[row] | {"teacher/episodic_return"}
    assert all(math.isfinite(v) for r in rows for v in r.values())
    evaluations = [(r["learner_step"], r["eval/episodic_return"]) for r in rows if "eval/episodic_return" in r]
    assert [step for step, _ in evaluations] == ([0, 20, 40, 60, 61] if task == TASK else [])
    losses = [r for r in rows if "losses/policy_loss" in r]
    assert [r["learner_step"] for r in losses] == [20, 40, 60, 61]
    assert all("losses/critic_loss" in r and "charts/UPS" in r for r in losses)
    if row == "ta_qf":
        assert all(0 <= r["teacher/q_filter_rate"] <= 1 for r in losses)

    after = [files.load_json(run_dir / f"cycle_{k:04d}/evaluation.json", "evaluation")["returns"] for k in range(3)]
    batches = [rollouts.unpack(files.load_arrays(run_dir / f"cycle_{k:04d}/batch.npz", "batch"))[0] for k in (1, 2)]
    assert [len(batch) for batch in batches] == ([1, 2] if task == TASK else [1, 1])
    deployed = [[e.reward.astype(np.float64).sum() for e in batch] for batch in batches]
    teacher = np.mean(files.load_json(run_dir / "teacher.json", "evaluation")["returns"])
    assert content["teacher"]["return"]["mean"] == pytest.approx(teacher)
    assert content["clone"]["return"]["mean"] == pytest.approx(np.mean(after[0]))
    for cycle, line in enumerate(content["cycles"], 1):
        assert line["after_learning"]["mean"] == pytest.approx(np.mean(after[cycle]))
        assert line["deployed"]["mean"] == pytest.approx(np.mean(deployed[cycle - 1]))
    means = [np.mean(a) for a in after]
    assert content["falls"]["count"] == sum(b < a for a, b in itertools.pairwise(means))
    assert content["regret"] == pytest.approx(sum(teacher - r for d in deployed for r in d))
    if evaluations:  # fewer than ten of them: the dip is below the clone's return to the mean of all
        lowest = np.mean([value for _, value in evaluations])
        assert content["dip"]["depth"] == pytest.approx(max(0.0, means[0] - lowest))
    states, gradients = QUERIES.get(row, (0, 0))
    states *= sum(len(batch) for batch in batches) * 1000
    assert content["teacher_queries"] == {"states_annotated": states, "gradients_asked": gradients}
    assert content["row"] == row and (run_dir / "learning_curve.png").stat().st_size > 10_000
    noisy = {r["learner_step"]: r["deploy/episodic_return"] for r in rows if "deploy/episodic_return" in r}
    assert noisy == {0: pytest.approx(np.mean(deployed[0])), 30: pytest.approx(np.mean(deployed[1]))}


def test_rows_differ_only_after_the_common_start(runs):
    results = {row: result(runs(row, TASK)) for row in ROWS}
    for row, content in results.items():
        different = differences(content, results["bc"])
        assert not any(name.startswith("cycle_0000") for name in different)  # the same clone and critic
        assert "cycle_0001/action" not in different  # and the same first deployment
        assert row == "bc" or any(name.startswith("cycle_0002/policy") for name in different), row


@pytest.mark.parametrize("flags", [{"num_workers": 1}, {"num_workers": 3}, {"checkpoint_every": 7}])
def test_same_seed_same_bytes(flags, runs, tmp_path, demo_dir):
    again = run_row("ta:1", tmp_path / "again", demo_dir, env_id=TASK, **flags)
    assert differences(result(again), result(runs("ta:1", TASK))) == []


def test_evaluation_never_feeds_back(runs, tmp_path, demo_dir):
    silent = run_row("ta_qf", tmp_path / "silent", demo_dir, env_id=TASK, eval_episodes=0)
    assert differences(result(silent), result(runs("ta_qf", TASK))) == ["metrics", "report"]


def test_another_seed_is_another_run(runs, tmp_path, demo_dir):
    other = run_row("bc", tmp_path / "other", demo_dir, env_id=TASK, seed=2)
    different = differences(result(other), result(runs("bc", TASK)))
    assert {"cycle_0000/policy/head.weight", "cycle_0001/obs", "cycle_0002/policy/head.weight"} <= set(different)


def test_a_task_beyond_the_six_online_and_its_policy_as_a_teacher(tmp_path, demo_dir):
    task = "point_mass-easy"
    flags = {"env_id": task, "num_cycles": 3, "keep_every": 2, "checkpoint_every": 1_000}
    run_dir = run_row("bc", tmp_path / "online", demo_dir, teacher="none", **flags)
    content = report(run_dir)
    assert content["teacher"] is None and content["clone"] is None and content["dip"] is None
    assert sorted(p.name for p in run_dir.glob("cycle_*")) == ["cycle_0000", "cycle_0002", "cycle_0003"]
    _, cycles = rollouts.unpack(files.load_arrays(run_dir / "cycle_0002/batch.npz", "batch"))
    assert cycles == [1, 2]
    snapshot = str(run_dir / "cycle_0003/snapshot.pt")
    helped = run_row("tg:1", tmp_path / "helped", demo_dir, env_id=task, teacher=snapshot)
    assert report(helped)["teacher"]["return"]["episodes"] == SMALL["report_episodes"]
    with pytest.raises(UserError, match="trained on point_mass-easy, not on cartpole-swingup"):
        run_row("bc", tmp_path / "foreign", demo_dir, teacher=snapshot)


def test_demonstrations_in_the_replay_change_learning_only(runs, tmp_path, demo_dir):
    with_demos = run_row("bc", tmp_path / "demos", demo_dir, env_id=TASK, demos_in_replay=True)
    different = differences(result(with_demos), result(runs("bc", TASK)))
    assert "cycle_0001/policy/head.weight" in different and "cycle_0001/action" not in different


def test_every_policy_is_a_snapshot_of_the_network_that_was_deployed(runs):
    run_dir = runs("bc", TASK)
    snapshot = teachers.load_snapshot(run_dir / "cycle_0001/snapshot.pt", torch.device("cpu"))
    (episode,) = rollouts.run_block(TASK, snapshot.action, 0.3, (1, 1, 2), range(1))
    stored, _ = rollouts.unpack(files.load_arrays(run_dir / "cycle_0002/batch.npz", "batch"))
    assert all(np.array_equal(a, b) for a, b in zip(episode, stored[0], strict=True))


@pytest.mark.parametrize("name", ("gbrl_bc_reg", "gbrl_teacher_action", "gbrl_teacher_grad"))
def test_a_teacher_is_refused_where_it_gives_too_little(name, tmp_path):
    with pytest.raises(UserError, match="--teacher none"):
        script(name).main(script(name).Args(teacher="none", run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def wandb_records(path):
    """The records of an offline wandb log: a 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block that is too short for a header is padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_offline_mirrors_the_file(tmp_path, demo_dir, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_dir = run_row("ta_qf", tmp_path / "tracked", demo_dir, track=True, eval_every=30)
    (log,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    history, group, summary, axes = [], None, {}, {}
    for record in wandb_records(log):
        if record.HasField("history"):
            history.append({"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item})
        if record.HasField("run"):
            group = record.run.run_group or group
        if record.HasField("metric"):
            axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        if record.HasField("summary"):
            summary |= {"/".join(i.nested_key) or i.key: i.value_json for i in record.summary.update}
    assert group == "ta_qf" and axes["*"] == "learner_step"
    assert any("learning_curve" in key for h in history for key in h)
    mirrored = [{k: float(v) for k, v in h.items() if k[0] != "_"} for h in history if "cycle" in h]
    assert mirrored == [pytest.approx(row) for row in metrics(run_dir)]
    assert any("report" in key for key in summary)
