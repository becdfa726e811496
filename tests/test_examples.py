"""The examples: teachers of your own and Gymnasium's tasks through the real scripts, and Minari's data sets."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import tyro
from pieces import CPU
from small import ROOT, SMALL, differences, report, result, run_method

import gbrl_d4pg
from common import UserError, elsewhere, envs, files, rollouts, teachers

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


def test_the_torch_teacher_is_the_snapshot_whose_weights_it_reads(tmp_path):
    teacher, snapshot = (teachers.load(name, envs.spec(TASK), "action_gradients", CPU) for name in (TORCH, "expert"))
    generator = torch.Generator().manual_seed(0)
    obs, action = (torch.rand(64, size, generator=generator) * 2 - 1 for size in (5, 1))
    gradient = teacher.action_gradient(obs, action)
    torch.testing.assert_close(teacher.action(obs), snapshot.action(obs))
    torch.testing.assert_close(gradient, snapshot.action_gradient(obs, action))
    assert (gradient != 0).all() and not gradient.requires_grad
    run_dir = run_method("tg:1", tmp_path / "run", tmp_path / "demos", teacher=TORCH, **SHORT)
    expected = {"states_annotated": 0, "gradients_asked": 20 * SMALL["batch_size"]}
    expected |= {"demonstration_queries": 4_000, "diagnosis_queries": 1_000}
    assert report(run_dir)["teacher_queries"] == expected


# ---- Gymnasium


@pytest.mark.parametrize("task", ["Pendulum-v1", "MountainCarContinuous-v0", "Pendulum"])
def test_a_task_is_gymnasiums_own_with_its_actions_scaled(task):
    """Pushed along their motion both gain energy; the car gets to the top, the pendulum is cut off after 200 steps."""
    gymnasium = pytest.importorskip("gymnasium")
    scale = 10 if task == "Pendulum" else 1  # the example's reward is a tenth
    env = envs.make(f"{EXAMPLES}/gymnasium_env.py:{task}" if scale == 10 else task)
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


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("CartPole-v1", "action_space must be a Box.*Discrete"),
        ("FrozenLake-v1", "observation_space must be a Box.*Discrete"),
        ("Pendulum-v99", "Pendulum-v99.*version"),
    ],
)
def test_a_gymnasium_task_that_does_not_fit_is_one_sentence(task, sentence):
    pytest.importorskip("gymnasium")
    with pytest.raises(UserError, match=f"{task}: .*{sentence}|--env-id {sentence}"):
        envs.spec(task)


def test_without_gymnasium_its_tasks_are_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match="--env-id Swimmer-v5 needs Gymnasium: pip install gymnasium"):
        envs.make("Swimmer-v5")


def test_a_gymnasium_task_by_command_line_with_and_without_workers_and_its_policy_as_a_teacher(tmp_path):
    env_id = "Pendulum-v1"
    flags = f"--env-id {env_id} --teacher none --scale 0.0005 --num-cycles 2 --report-episodes 2 --num-workers".split()
    words = [sys.executable, "gbrl_d4pg.py", *flags, "2", "--run-dir", tmp_path / "with"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    run_dir = gbrl_d4pg.main(tyro.cli(gbrl_d4pg.Args, args=[*flags, "0", "--run-dir", str(tmp_path / "without")]))
    assert differences(result(tmp_path / "with"), result(run_dir)) == []
    flags = {"env_id": env_id, "teacher": str(run_dir / "cycle_0002" / "snapshot.pt"), "actor_steps": 1_000}
    helped = run_method("ta:1", tmp_path / "helped", tmp_path / "demos", **flags)
    assert report(helped)["teacher_queries"]["states_annotated"] == 1_000


class Pump:
    """Drives the mountain car along its motion."""

    def __init__(self, env_id, device):
        pass

    def action(self, obs):
        return torch.where(obs[:, 1:] >= 0, 1.0, -1.0)


def test_a_gymnasium_task_that_terminates(tmp_path):
    flags = {"env_id": "MountainCarContinuous-v0", "teacher": f"{__file__}:Pump", "bc_steps": 300}
    run_dir = run_method("ta:1", tmp_path / "run", tmp_path / "demos", **flags, actor_steps=2_000, num_cycles=2)
    batches = [files.load_arrays(run_dir / f"cycle_{cycle:04d}/batch.npz", "batch") for cycle in (1, 2)]
    for batch in batches:
        for episode in rollouts.unpack(batch)[0]:
            assert episode.discount[:-1].all() and episode.discount[-1] == (len(episode.reward) == 999)
    (first, second), lengths = ([len(batch["reward"]) for batch in batches]), batches[0]["length"]
    assert min(lengths) < 200 and 999 <= first < 999 + lengths[-1] and first + second >= 1998


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
    assert text.count("who follows the gradient") == 2
    run_dir = run_method("tg:1", tmp_path / "run", tmp_path / "demos", teacher=f"{copied}:Preferences", **SHORT)
    assert report(run_dir)["teacher_queries"]["gradients_asked"] == 20 * SMALL["batch_size"]


# ---- Minari


def make_minari(name, obs_space, observations, low, high, actions, ends):
    """Save a data set of episodes; `ends` says which terminate."""
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for i, (obs, action, terminates) in enumerate(zip(observations, actions, ends, strict=True)):
        over, never = [False] * (len(action) - 1) + [True], [False] * len(action)
        parts = {"observations": obs, "actions": list(action), "rewards": [0.5 * t for t in range(len(action))]}
        parts |= {"terminations": over if terminates else never, "truncations": never if terminates else over}
        buffers.append(EpisodeBuffer(id=i, seed=i, infos={}, **parts))
    box = spaces.Box(np.array(low, "f"), np.array(high, "f"))
    minari.create_dataset_from_buffers(name, buffer=buffers, observation_space=obs_space, action_space=box)


@pytest.fixture
def minari_example(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return envs.load_class(f"{EXAMPLES}/minari_demonstrations.py:Args").__module__


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_minari_data_sets_actions_are_scaled_by_its_bounds(tmp_path, minari_example, capsys):
    from gymnasium import spaces

    example, rng = sys.modules[minari_example], np.random.default_rng(0)
    observations = [list(rng.normal(size=(steps + 1, 3)).astype("f")) for steps in (4, 2)]
    # The first action has Humanoid-v5's bounds, -0.4 to 0.4, and the second 1 to 5.
    actions = [np.array([[0.4, 1], [-0.4, 3], [0.2, 5], [0, 4]], "f"), np.array([[0.1, 2], [-0.2, 3]], "f")]
    space = spaces.Box(-np.inf, np.inf, (3,))
    make_minari("made/here-v0", space, observations, [-0.4, 1], [0.4, 5], actions, [False, True])
    example.main(example.Args("made/here-v0", tmp_path / "mine.npz"))
    assert "mine.npz: 2 episodes, 6 steps, mean return 1.75" in capsys.readouterr().out
    first, second = elsewhere.read(tmp_path / "mine.npz", envs.EnvSpec("made", 3, 2, 4))[0]
    np.testing.assert_allclose(first.action, [[1, -1], [-1, 0], [0.5, 1], [0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(second.action, [[0.25, -0.5], [-0.5, 0]], atol=1e-6)
    for mine, theirs in zip((first, second), observations, strict=True):
        np.testing.assert_array_equal(mine.obs, theirs)
    assert first.reward.tolist() == [0, 0.5, 1, 1.5]
    assert first.discount.tolist() == [1, 1, 1, 1]  # cut off by the time limit
    assert second.discount.tolist() == [1, 0]


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_minari_data_sets_dicts_are_flattened_in_the_order_of_their_space(tmp_path, minari_example):
    from gymnasium import spaces

    example = sys.modules[minari_example]
    goal, where = (spaces.Box(-np.inf, np.inf, shape) for shape in ((1,), (2, 2)))
    space = spaces.Dict({"where": where, "goal": goal})
    obs = {"goal": [np.full(1, t, "f") for t in range(3)], "where": [np.full((2, 2), 10 * t, "f") for t in range(3)]}
    make_minari("made/dict-v0", space, [obs], [-1], [1], [np.array([[0.5], [1]], "f")], [False])
    example.main(example.Args("made/dict-v0", tmp_path / "mine.npz"))
    (episode,) = elsewhere.read(tmp_path / "mine.npz", None)[0]
    assert list(space.spaces) == ["goal", "where"]  # Gymnasium sorts the names of a dict
    assert episode.obs.tolist() == [[t, *[10 * t] * 4] for t in range(3)]


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_what_minari_cannot_give_is_a_sentence(tmp_path, minari_example):
    from gymnasium import spaces

    example, obs = sys.modules[minari_example], [[np.zeros(1, "f")] * 2]
    with pytest.raises(UserError, match="made/none-v0 isn't on this machine; get it with: minari download made/none"):
        example.main(example.Args("made/none-v0", tmp_path / "mine.npz"))
    for name, high, sentence in (
        ("free", np.inf, "finite bounds"),
        ("far", 0.4, "episode 0 has an action of 2.5 time"),
    ):
        make_minari(f"made/{name}-v0", spaces.Box(-1, 1, (1,)), obs, [-high], [high], [np.ones((1, 1), "f")], [False])
        with pytest.raises(UserError, match=sentence):
            example.main(example.Args(f"made/{name}-v0", tmp_path / "mine.npz"))
    assert not (tmp_path / "mine.npz").exists()
