"""Each method end to end, and the promise that the same seed gives the same bytes."""

import functools
import math

import numpy as np
import pytest
import torch
from small import CPU, LINE, METHODS, SMALL, TOY, differences, keep_replays, metrics, report, result, run_method, script

from common import UserError, envs, files, rollouts, teachers

FULL = {"env_id": "cheetah-run", "actor_steps": 4_000}
QUERIES = {"ta:1": (1, 0), "ta_qf": (1, 0), "tg:1": (0, 61 * 32)}  # per deployed state, per update of 32


@pytest.fixture(scope="module")
def runs(tmp_path_factory, demo_dir):
    """A function of a method: its run on one task, made once."""
    folder = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda method: run_method(method, folder / method.replace(":", "-"), demo_dir, **FULL))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_and_says_what_it_did(method, runs):
    run_dir = runs(method)
    lines, content = metrics(run_dir), report(run_dir)
    assert all(math.isfinite(v) for line in lines for v in line.values())
    evaluated = [line for line in lines if "eval/episodic_return" in line]
    assert [line["learner_step"] for line in evaluated] == [0, 20, 40, 60, 61]
    learned = [line for line in lines if "losses/policy_loss" in line]
    assert [line["learner_step"] for line in learned] == [20, 40, 60, 61]
    assert all("losses/critic_loss" in line and "charts/UPS" in line for line in learned)
    assert all(0 <= line.get("teacher/q_filter_rate", 0) <= 1 for line in learned)

    batches = [files.load_arrays(run_dir / f"cycle_{k:04d}/batch.npz", "batch") for k in (1, 2)]
    assert all((batch["discount"] == 1).all() for batch in batches)  # a time limit isn't a termination
    deployed = [[e.reward.astype(np.float64).sum() for e in rollouts.unpack(batch)] for batch in batches]
    assert [len(returns) for returns in deployed] == [2, 2]
    started = {line["learner_step"]: line for line in lines if "deploy/episodic_return" in line}
    assert list(started) == [0, 30] and all("losses/overestimation" in line for line in started.values())
    noisy = [line["deploy/episodic_return"] for line in started.values()]
    assert noisy == pytest.approx([np.mean(returns) for returns in deployed])
    assert [cycle["deployed"]["mean"] for cycle in content["cycles"]] == pytest.approx(noisy)
    assert all(-1 <= line["teacher/dqda_cosine"] <= 1 for line in started.values())
    kept = {line["cycle"]: line for line in lines if "report/episodic_return" in line}
    for cycle, level in enumerate([content["clone"]["return"], *(c["after_learning"] for c in content["cycles"])]):
        found = [kept[cycle][f"report/{name}"] for name in ("episodic_return", "ci_low", "ci_high")]
        assert found == pytest.approx([level["mean"], *level["ci95"]])
    (scored,) = [line["teacher/episodic_return"] for line in lines if "teacher/episodic_return" in line]
    assert scored == pytest.approx(content["teacher"]["return"]["mean"])
    assert [line["learner_step"] for line in lines if "charts/SPS" in line] == [0, 30]
    states, gradients = QUERIES.get(method, (0, 0))
    states *= 1000 * sum(map(len, deployed))
    queries = {"states_annotated": states, "gradients_asked": gradients}
    queries |= {"demonstration_queries": 2 * 1000 * SMALL["demo_episodes"]}  # to act, and for a*
    assert content["teacher_queries"] == queries | {"diagnosis_queries": 1000 * sum(map(len, deployed))}
    assert content["name"].split(",")[0] == method and (run_dir / "learning_curve.png").stat().st_size > 10_000


def test_rows_differ_only_after_the_common_start(runs):
    results = {method: result(runs(method)) for method in METHODS}
    for method, content in results.items():
        different = differences(content, results["bc"])
        assert not any(name.startswith("cycle_0000") for name in different)  # the same clone and critic
        assert "cycle_0001/action" not in different  # and the same first deployment
        assert method == "bc" or any(name.startswith("cycle_0002/policy") for name in different), method


def test_same_seed_same_bytes_and_another_seed_is_another_run(runs, tmp_path, demo_dir):
    again = run_method("ta:1", tmp_path / "again", demo_dir, **FULL, num_workers=2, checkpoint_every=7)
    assert differences(result(again), result(runs("ta:1"))) == []
    other = run_method("ta:1", tmp_path / "other", demo_dir, **FULL, seed=2)
    different = differences(result(other), result(runs("ta:1")))
    assert {"cycle_0000/policy/head.weight", "cycle_0001/obs", "cycle_0002/policy/head.weight"} <= set(different)


def test_evaluation_never_feeds_back_and_demonstrations_in_the_replay_change_learning_only(alone, tmp_path, demo_dir):
    def run(name, **flags):
        return result(run_method("ta_qf", tmp_path / name, demo_dir, **TOY, **flags))

    plain = result(alone("ta_qf"))
    assert differences(run("silent", eval_episodes=0), plain) == ["metrics", "report"]
    different = differences(run("demos", demos_in_replay=True), plain)
    assert "cycle_0001/policy/head.weight" in different and "cycle_0001/action" not in different


def test_a_run_clones_what_was_meant_and_its_replays_and_episodes_are_as_the_flags_say(tmp_path, demo_dir, monkeypatch):
    module, blocks, steps, evaluated = script("gbrl_d4pg"), [], [], []
    honest_block, honest_step = rollouts.run_block, module.optimizer_step

    def run_block(env_id, actor, sigma, stream, indices):
        blocks.append((stream, sigma, len(indices)))
        if stream[1:2] == (rollouts.EVALUATE,):
            evaluated.append(actor.state_dict()["head.weight"].clone())
        return honest_block(env_id, actor, sigma, stream, indices)

    def optimizer_step(network, optimizer, max_grad_norm):
        taken = int(optimizer.state[network.head.weight].get("step", 0))
        steps.append((type(network).__name__, optimizer.param_groups[0]["lr"], max_grad_norm, taken))
        return honest_step(network, optimizer, max_grad_norm)

    replays = keep_replays(module, monkeypatch)
    monkeypatch.setattr(module, "optimizer_step", optimizer_step)
    monkeypatch.setattr("common.workers.run_block", run_block)
    flags = TOY | {"env_id": LINE, "demo_sigma": 0.2, "sigma": 0.4, "seed": 7}
    flags |= {"n_step": 3, "gamma": 0.9, "eval_episodes": 3, "learning_rate": 2e-4, "max_grad_norm": 7.0}
    run_dir = run_method("bc", tmp_path / "run", tmp_path / "demos", **flags)
    _, demos = replays
    assert {(replay._n_step, replay._gamma) for replay in replays} == {(3, 0.9)}
    batch = demos.sample(64, torch.Generator().manual_seed(0))
    teacher = teachers.load(TOY["teacher"], envs.spec(LINE), "actions", CPU)
    assert torch.equal(batch["teacher_action"], teacher.action(batch["obs"]))
    assert not torch.equal(batch["teacher_action"], batch["action"])
    expected = [((int(teacher.sha256, 16),), 0.2, 2)]
    expected += [((7, rollouts.REPORT), 0.0, 2)] * 4  # teacher, clone and two cycles
    expected += [((7, rollouts.EVALUATE, n), 0.0, 3) for n in range(5)]  # at steps 0, 20, 40, 60 and 61
    expected += [((7, rollouts.DEPLOY, cycle), 0.4, 10) for cycle in (1, 2)]
    assert sorted(blocks) == sorted(expected)
    assert steps[0] == ("Policy", 1e-3, 7, 0)  # of 40 in cloning
    assert steps[40:60] == [("Critic", 2e-4, 7, n) for n in range(20)]
    learning = [(("Critic", 2e-4, 7, 20 + n), ("Policy", 2e-4, 7, n)) for n in range(61)]  # only the policy's is fresh
    assert steps[60:] == [step for both in learning for step in both]
    snapshots = [files.load_torch(run_dir / f"cycle_{cycle:04d}" / "snapshot.pt", "snapshot") for cycle in range(3)]
    kept = [snapshot["policy"]["head.weight"] for snapshot in snapshots]
    assert torch.equal(evaluated[0], kept[0]) and torch.equal(evaluated[-1], kept[2])
    assert not any(torch.equal(policy, known) for policy in evaluated[1:-1] for known in kept)  # inside of cycles


def test_noise_has_the_standard_deviation_that_was_asked_for():
    noise = rollouts.exploration_noise(np.random.SeedSequence(0), 0.3, 10_000, 4)
    assert noise.std(0) == pytest.approx(0.3, rel=0.03) and noise.mean(0) == pytest.approx(0, abs=0.01)
    assert abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.04  # each action dimension has its own


@pytest.mark.parametrize("task", ("cheetah-run", "quadruped-walk"))
def test_a_task_is_dm_controls_own_with_its_actions_scaled(task):
    """The quadruped's joints have other ranges than [-1, 1]."""
    env, own = envs.Env(task), envs.Env(task).task.dm_env  # which has been used before
    own.task.random.seed(5)
    obs, spec, timestep = np.zeros(env.spec.obs_size, np.float32), own.action_spec(), own.reset()
    env.reset(5, obs)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, env.spec.action_size)).astype(np.float32):
        flat = np.concatenate([np.ravel(value) for value in timestep.observation.values()])
        np.testing.assert_allclose(obs, flat, rtol=1e-3, atol=1e-3)
        reward, discount, over = env.step(action, obs)
        timestep = own.step(spec.minimum + (spec.maximum - spec.minimum) * (action.astype(np.float64) + 1) / 2)
        assert reward == pytest.approx(timestep.reward, abs=1e-3)
        assert (discount, over) == (timestep.discount, timestep.last())


def test_a_task_beyond_the_six_online_and_its_policy_as_a_teacher(tmp_path, demo_dir):
    task = "point_mass-easy"
    flags = {"env_id": task, "actor_steps": 3_000, "num_cycles": 3, "keep_every": 2, "checkpoint_every": 1_000}
    run_dir = run_method("bc", tmp_path / "online", demo_dir, teacher="none", **flags)
    content = report(run_dir)
    assert all(content[name] is None for name in ("teacher", "clone", "dip", "regret", "regret_per_episode"))
    assert [cycle["deployed"]["episodes"] for cycle in content["cycles"]] == [2, 1]  # since the kept cycle before
    assert sorted(p.name for p in run_dir.glob("cycle_*")) == [f"cycle_000{k}" for k in range(4)]
    assert [(run_dir / f"cycle_000{k}/snapshot.pt").exists() for k in range(4)] == [True, False, True, True]
    snapshot = str(run_dir / "cycle_0003/snapshot.pt")
    helped = run_method("tg:1", tmp_path / "helped", demo_dir, env_id=task, teacher=snapshot)
    assert report(helped)["teacher"]["return"]["episodes"] == SMALL["report_episodes"]
    with pytest.raises(UserError, match=r"it is for point_mass-easy with sizes .*, not cartpole-swingup with"):
        run_method("bc", tmp_path / "foreign", demo_dir, teacher=snapshot)
