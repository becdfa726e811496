"""The examples: teachers of your own and Gymnasium's tasks through the real scripts, and Minari's data sets."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import tyro
from small import CPU, ROOT, SMALL, differences, report, result, run_method

import gbrl_d4pg
from common import UserError, elsewhere, envs, files, teachers

TASK = "cartpole-swingup"
EXAMPLES = ROOT / "examples"
SWING_UP = f"{EXAMPLES}/energy_swingup.py:EnergySwingUp"
TORCH = f"{EXAMPLES}/torch_teacher.py:PolicyWithCritic"
SHORT = {"env_id": TASK, "num_cycles": 1, "actor_steps": 1_000, "learner_steps": 20, "eval_episodes": 0}


def test_the_controller_demonstrates_and_annotates_as_well_as_it_says(tmp_path):
    run_dir = run_method("ta_qf", tmp_path / "run", tmp_path / "demos", teacher=SWING_UP, **SHORT)
    returns = files.load_json(run_dir / "teacher.json", "evaluation")["returns"]
    assert min(returns) > 800  # 20 episodes gave 828 to 856, a slow swing-up or a fall gives far less
    assert report(run_dir)["teacher"]["return"]["mean"] == pytest.approx(np.mean(returns))
    expected = {"states_annotated": 1_000, "gradients_asked": 0, "demonstration_queries": 4_000}
    assert report(run_dir)["teacher_queries"] == expected


def test_the_torch_teacher_is_the_snapshot_whose_weights_it_reads():
    """test_learner.py trains with it."""
    teacher, snapshot = (teachers.load(name, envs.spec(TASK), "action_gradients", CPU) for name in (TORCH, "expert"))
    generator = torch.Generator().manual_seed(0)
    obs, action = (torch.rand(64, size, generator=generator) * 2 - 1 for size in (5, 1))
    gradient = teacher.action_gradient(obs, action)
    torch.testing.assert_close(teacher.action(obs), snapshot.action(obs))
    torch.testing.assert_close(gradient, snapshot.action_gradient(obs, action))
    assert (gradient != 0).all() and not gradient.requires_grad


# ---- Gymnasium


@pytest.mark.parametrize("task", ["Pendulum-v1", "MountainCarContinuous-v0", "Pendulum"])
def test_a_task_is_gymnasiums_own_with_its_actions_scaled(task):
    """Pushed along their motion both gain energy; the car gets to the top, the pendulum is cut off after 200 steps."""
    gymnasium = pytest.importorskip("gymnasium")
    scale = 10 if task == "Pendulum" else 1  # the example's reward is a tenth
    env = envs.Env(f"{EXAMPLES}/gymnasium_env.py:{task}" if scale == 10 else task)
    own = gymnasium.make("Pendulum-v1" if scale == 10 else task)
    obs, lengths = np.zeros(env.spec.obs_size, np.float32), []
    for seed in (7, 8, 7):  # a used environment starts a seed's episode anew
        env.reset(seed, obs)
        expected, steps, over = own.reset(seed=seed)[0], 0, False
        while not over:
            assert np.array_equal(obs, expected)
            action = np.sign(obs[-1:]) * np.float32(0.9)
            reward, discount, over = env.step(action, obs)
            expected, own_reward, terminated, truncated, _ = own.step(action * own.action_space.high)
            steps, same = steps + 1, (own_reward / scale, float(not terminated), terminated or truncated)
            assert (reward, discount, over) == pytest.approx(same)
        lengths.append((steps, discount))
    assert lengths[0] == lengths[2]
    if "Pendulum" in task:
        assert lengths == [(200, 1.0)] * 3
    else:
        assert all(steps < 200 and discount == 0 for steps, discount in lengths)


def test_a_gymnasium_task_that_does_not_fit_is_one_sentence(monkeypatch):
    pytest.importorskip("gymnasium")
    for task, sentence in (
        ("CartPole-v1", "CartPole-v1: .*action_space must be a Box.*Discrete"),
        ("Pendulum-v99", "--env-id Pendulum-v99.*version"),
    ):
        with pytest.raises(UserError, match=sentence):
            envs.spec(task)
    monkeypatch.setitem(sys.modules, "gymnasium.envs.mujoco.hopper_v5", None)
    with pytest.raises(UserError, match=r"--env-id Hopper-v5: .*; install what it needs, such as gymnasium\[mujoco\]"):
        envs.Env("Hopper-v5")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match="--env-id Swimmer-v5 needs Gymnasium: pip install gymnasium"):
        envs.Env("Swimmer-v5")


def test_a_gymnasium_task_by_command_line_with_and_without_workers(tmp_path):
    flags = ["--env-id", "Pendulum-v1", "--teacher", "none", "--scale", "0.0005", "--num-cycles", "2", "--num-workers"]
    words = [sys.executable, "gbrl_d4pg.py", *flags, "2", "--run-dir", tmp_path / "with"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    run_dir = gbrl_d4pg.main(tyro.cli(gbrl_d4pg.Args, args=[*flags, "0", "--run-dir", str(tmp_path / "without")]))
    assert differences(result(tmp_path / "with"), result(run_dir)) == []


def test_preferences_are_asked_fitted_and_followed(tmp_path, capsys, monkeypatch):
    copied = tmp_path / "preference_teacher.py"  # it saves its model beside itself
    copied.write_text((EXAMPLES / "preference_teacher.py").read_text())
    with pytest.raises(UserError, match="ask first: python examples/preference_teacher"):
        run_method("tg:1", tmp_path / "run", tmp_path / "demos", teacher=f"{copied}:Preferences", **SHORT)
    module = envs.load_class(f"{copied}:Follower")
    example = sys.modules[module.__module__]
    monkeypatch.setattr(example, "EPISODES", 1)
    monkeypatch.setattr(example.Follower, "steps", 1)
    example.main(example.Args(TASK, answers=1_000, steps=300))
    text = capsys.readouterr().out
    assert float(re.search(r"0% wrong: (0\.\d+) of 10,000", text)[1]) > 0.7  # seen: 0.794; by chance it is a half
    assert text.count("for following the gradient") == 2
    run_dir = run_method("tg:1", tmp_path / "run", tmp_path / "demos", teacher=f"{copied}:Preferences", **SHORT)
    assert report(run_dir)["teacher_queries"]["gradients_asked"] == 20 * SMALL["batch_size"]


# ---- Minari


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_minari_data_set_with_actions_scaled_by_its_bounds_and_dicts_in_the_order_of_their_space(
    tmp_path, monkeypatch, capsys
):
    minari = pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    where, goal = (spaces.Box(-np.inf, np.inf, shape) for shape in ((2, 2), (1,)))
    # The first action has Humanoid-v5's bounds, -0.4 to 0.4, and the second 1 to 5.
    acted = spaces.Box(np.array([-0.4, 1], "f"), np.array([0.4, 5], "f"))
    actions = [np.array([[0.4, 1], [-0.4, 3], [0.2, 5], [0, 4]], "f"), np.array([[0.1, 2], [-0.2, 3]], "f")]
    buffers = []
    for i, action in enumerate(actions):  # the time limit ends the first, the second terminates
        n = len(action)
        over, never = [False] * (n - 1) + [True], [False] * n
        obs = {"goal": [np.full(1, t, "f") for t in range(n + 1)]}
        obs["where"] = [np.full((2, 2), 10 * t, "f") for t in range(n + 1)]
        parts = {"observations": obs, "actions": list(action), "rewards": [0.5 * t for t in range(n)]}
        parts |= {"terminations": over if i else never, "truncations": never if i else over}
        buffers.append(EpisodeBuffer(id=i, seed=i, infos={}, **parts))
    spaces_of = {"observation_space": spaces.Dict({"where": where, "goal": goal}), "action_space": acted}
    minari.create_dataset_from_buffers("made/here-v0", buffer=buffers, **spaces_of)  # Gymnasium sorts the names

    example = sys.modules[envs.load_class(f"{EXAMPLES}/minari_demonstrations.py:Args").__module__]
    example.main(example.Args("made/here-v0", tmp_path / "mine.npz"))
    assert "mine.npz: 2 episodes, 6 steps, mean return 1.75" in capsys.readouterr().out
    first, second = elsewhere.read(tmp_path / "mine.npz", envs.EnvSpec("made", 5, 2, 4))[0]
    np.testing.assert_allclose(first.action, [[1, -1], [-1, 0], [0.5, 1], [0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(second.action, [[0.25, -0.5], [-0.5, 0]], atol=1e-6)
    assert second.obs.tolist() == [[t, *[10 * t] * 4] for t in range(3)]
    assert first.reward.tolist() == [0, 0.5, 1, 1.5]
    assert (first.discount.tolist(), second.discount.tolist()) == ([1, 1, 1, 1], [1, 0])
    with pytest.raises(UserError, match="made/none-v0 isn't on this machine; get it with: minari download made/none"):
        example.main(example.Args("made/none-v0", tmp_path / "none.npz"))
