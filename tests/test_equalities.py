"""A method whose help is switched off is D4PG bit for bit, and what a cycle holds fixed stays fixed bit for bit."""

import ast
import hashlib
import inspect
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import CPU, ENV, ROWS, SCHEDULED, SCRIPTS, make_agent, make_args, make_batch, make_teacher, save_teacher

from common import envs, files, rollouts, run
from common.rollouts import Episode

STEPS = 50


def train(row, progress=None, teacher=make_teacher, prepare=None, loss=None, **flags):
    """The agent after 50 updates on batches that are the same for every row.

    `prepare(agent, batch)` may change a batch's annotations, and `loss(agent, batch)` replaces the row's policy loss.
    """
    script, args = make_args(row, **flags)
    agent = make_agent(script, args)
    helper = LiveCritic(agent) if teacher is LiveCritic else teacher()
    for step in range(STEPS):
        batch = make_batch(step)
        if prepare is not None:
            prepare(agent, batch)
        now = torch.tensor(step / STEPS if progress is None else progress)
        critic_gradients, policy_gradients, metrics = script.gradients(args, agent, helper, batch, now)
        if "teacher/q_filter_rate" in metrics and prepare is not None:
            assert metrics["teacher/q_filter_rate"] == (1 if prepare is better_action else 0)
        if loss is not None:
            policy_gradients = torch.autograd.grad(loss(agent, batch), tuple(agent.policy.parameters()))
        script.apply_gradients(agent.critic, agent.critic_optimizer, critic_gradients, args.max_grad_norm)
        script.apply_gradients(agent.policy, agent.policy_optimizer, policy_gradients, args.max_grad_norm)
        if (step + 1) % 20 == 0:
            agent.copy_targets()
    return agent


class LiveCritic:
    """A teacher whose gradients are those of the student's own critic."""

    def __init__(self, agent):
        self.agent = agent

    def action_gradient(self, obs, action):
        action = action.detach().requires_grad_()
        return torch.autograd.grad(self.agent.critic.q_value(obs, action).sum(), action)[0]


def moved_action(agent, batch, distance):
    action = agent.policy(batch["obs"]).detach().requires_grad_()
    slope = torch.autograd.grad(agent.critic.q_value(batch["obs"], action).sum(), action)[0]
    batch["teacher_action"] = action.detach() + distance * slope / slope.norm(dim=1, keepdim=True)


def better_action(agent, batch):
    """Make the teacher's action one that the student's critic prefers to the student's."""
    moved_action(agent, batch, 0.02)


def worse_action(agent, batch):
    """Make it one that the student's critic likes less, so that the Q-filter never fires."""
    moved_action(agent, batch, -0.02)


def weights(agent):
    networks = (agent.policy, agent.critic, agent.target_policy, agent.target_critic)
    return [parameter for network in networks for parameter in network.state_dict().values()]


def bit_equal(a, b):
    return all(map(torch.equal, weights(a), weights(b)))


@pytest.fixture(scope="module")
def d4pg():
    return train("bc")


OFF = {
    "bc_reg": {"bc_weight": 0.0},  # lambda = 0
    "bc_reg_decay": {"progress": 1.0},  # alpha = 0
    "between": {"progress": 1.0},
    "ta": {"progress": 1.0, "beta": 0.0},
    "ta, beta decays": {"progress": 1.0},
    "tg": {"progress": 1.0},
    "ta_qf": {"prepare": worse_action},
}


@pytest.mark.parametrize("row", OFF)
def test_help_switched_off_is_d4pg_bit_for_bit(row, d4pg):
    assert bit_equal(train(row, **OFF[row]), d4pg)


@pytest.mark.parametrize("row", OFF)
def test_help_switched_on_is_not(row, d4pg):
    assert not bit_equal(train(row), d4pg)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_no_branch_makes_it_so(script):
    """Methods are chosen by name; no number decides which terms are computed."""
    functions = [script.policy_loss, *([script.Args.alpha] if script in SCHEDULED else [])]
    for function in functions:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            assert not isinstance(node, ast.While | ast.Match | ast.Try)
            if isinstance(node, ast.If | ast.IfExp):
                read = {ast.unparse(n) for n in ast.walk(node.test) if isinstance(n, ast.Attribute)}
                assert read <= {"args.method", "args.beta_decay", "self.alpha_form"} and read, ast.unparse(node.test)
                assert "progress" not in ast.unparse(node.test)


def test_a_q_filter_that_always_fires_is_imitation_bit_for_bit(d4pg):
    def imitation(agent, batch):
        return (batch["teacher_action"] - agent.policy(batch["obs"])).square().sum(-1).mean()

    filtered = train("ta_qf", prepare=better_action)
    assert bit_equal(filtered, train("bc", prepare=better_action, loss=imitation))
    assert not bit_equal(filtered, d4pg)


def policy_gradient(row, progress, critic_seed=0, teacher=None, **flags):
    """The row's policy gradient of one batch, with the critic of another agent."""
    script, args = make_args(row, **flags)
    agent = make_agent(script, args)
    agent.critic = make_agent(script, args, critic_seed).critic
    helper = LiveCritic(agent) if teacher is LiveCritic else make_teacher()
    return script.gradients(args, agent, helper, make_batch(1), torch.tensor(progress))[1]


def test_at_alpha_1_teacher_actions_replace_the_critic():
    for row in ("ta", "ta, beta decays"):
        one, other = (policy_gradient(row, 0.0, critic_seed) for critic_seed in (0, 1))
        assert all(map(torch.equal, one, other)) and any(part.any() for part in one)
        later, other = (policy_gradient(row, 0.1, critic_seed) for critic_seed in (0, 1))
        assert not any(map(torch.equal, later, other))


def test_at_alpha_1_teacher_gradients_replace_the_critic():
    one, other = (policy_gradient("tg", 0.0, critic_seed) for critic_seed in (0, 1))
    assert all(map(torch.equal, one, other)) and any(part.any() for part in one)


@pytest.mark.parametrize("progress", [0.0, 0.02, 0.2, 0.5, 0.9, 1.0])
def test_the_students_own_critic_as_teacher_is_d4pg_for_every_alpha(progress):
    own = policy_gradient("tg", progress, teacher=LiveCritic, teacher_dqda_clip=1.0)
    for a, b in zip(own, policy_gradient("bc", progress), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert max(part.abs().max() for part in own) > 1e-3


def test_the_students_own_critic_as_teacher_learns_as_d4pg(d4pg):
    own = train("tg", teacher=LiveCritic, teacher_dqda_clip=1.0)
    for a, b in zip(weights(own), weights(d4pg), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# ---- what a run holds fixed, and its budget


@settings(derandomize=True, deadline=None)
@given(total=st.integers(0, 300_000), parts=st.integers(1, 50))
def test_split_is_whole_exact_and_even(total, parts):
    sizes = run.split(total, parts)
    assert len(sizes) == parts and sum(sizes) == total and max(sizes) - min(sizes) <= 1
    assert sizes == [int(np.floor(k * total / parts) - np.floor((k - 1) * total / parts)) for k in range(1, parts + 1)]


def test_split_by_hand():
    assert run.split(7, 3) == [2, 2, 3] and run.split(31, 3) == [10, 10, 11]


def fingerprint(tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("row", ["bc", "between", "ta", "ta_qf", "tg"])
def test_a_run_keeps_anchors_and_teacher_and_spends_its_exact_budget(row, tmp_path, monkeypatch):
    """7 episodes and 31 updates in 3 cycles; made-up episodes of 20 steps stand in for the simulator's."""
    script, own = ROWS[row]
    deployed, updates, target_copies = [], [], []

    def run_block(env_id, actor, sigma, stream, indices):
        if stream[:2] == (1, run.DEPLOY):
            deployed.append((stream[2], len(indices), fingerprint(actor.state_dict().values()), len(updates)))
        return [made_up_episode(actor, (*stream[-2:], i)) for i in indices]

    def recorded(args, agent, teacher, batch, progress):
        parts = agent.bc_policy.state_dict(), agent.previous_policy.state_dict(), teacher._policy, teacher._critic
        updates.append((*(fingerprint(part.values()) for part in parts), progress.item()))
        targets = (*agent.target_policy.parameters(), *agent.target_critic.parameters())
        target_copies.append(fingerprint(targets))
        return gradients(args, agent, teacher, batch, progress)

    gradients = script.gradients
    monkeypatch.setattr(script, "gradients", recorded)
    monkeypatch.setattr(envs, "spec", lambda env_id: ENV)
    monkeypatch.setattr(rollouts, "run_block", run_block)
    monkeypatch.setattr(run, "configure_torch", lambda args: CPU)  # leave the settings of other tests alone
    save_teacher(tmp_path / "teacher.pt", script)
    budget = {"actor_steps": 145, "learner_steps": 31, "num_cycles": 3, "batch_size": 8, "num_workers": 0}
    budget |= {
        "demo_episodes": 2,
        "bc_steps": 5,
        "critic_steps": 5,
        "eval_episodes": 0,
        "report_episodes": 1,
        "target_period": 4,
    }
    paths = {"teacher": str(tmp_path / "teacher.pt"), "demo_dir": str(tmp_path), "run_dir": str(tmp_path / "run")}
    run_dir = script.main(script.Args(env_id=ENV.env_id, **own, **budget, **paths))

    assert [(cycle, episodes) for cycle, episodes, _, _ in deployed] == [(1, 2), (2, 2), (3, 3)]
    assert [before for _, _, _, before in deployed] == [0, 10, 20] and len(updates) == 31
    assert [progress for *_, progress in updates] == [np.float32(n / 31) for n in range(31)]
    batches = [files.load_arrays(run_dir / f"cycle_{cycle:04d}" / "batch.npz", "batch") for cycle in (1, 2, 3)]
    assert [len(batch["reward"]) for batch in batches] == [40, 40, 60]
    snapshots = [files.load_torch(run_dir / f"cycle_{cycle:04d}" / "snapshot.pt", "policy") for cycle in range(4)]
    kept = [fingerprint(snapshot["policy"].values()) for snapshot in snapshots]
    assert len(set(kept)) == 4  # every cycle learned something
    assert [policy for _, _, policy, _ in deployed] == kept[:3]
    assert [n for n in range(1, 31) if target_copies[n] != target_copies[n - 1]] == [4, 8, 12, 16, 20, 24, 28]
    teacher = files.load_torch(tmp_path / "teacher.pt", "teacher")
    teacher = fingerprint(teacher["policy"].values()), fingerprint(teacher["critic"].values())
    for n, update in enumerate(updates):
        assert update[:4] == (kept[0], kept[0 if n < 10 else 1 if n < 20 else 2], *teacher)


def made_up_episode(actor, seed):
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(ENV.episode_length + 1, ENV.obs_size)).astype(np.float32)
    with torch.no_grad():
        action = actor(torch.from_numpy(obs[:-1])).numpy()
    reward = rng.normal(size=ENV.episode_length).astype(np.float32)
    return Episode(obs, action, reward, np.ones_like(reward))
