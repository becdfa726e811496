"""The maths against slow NumPy code and cases worked out by hand.

What the scripts share byte for byte, as test_structure.py sees to, is tested in gbrl_d4pg.py alone.
"""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from pieces import METHODS, NoLog, make_agent, make_args, make_batch, make_episode, make_replay, make_teacher, progress
from small import SCRIPTS
from small import script as load

import gbrl_d4pg as script

all_methods = pytest.mark.parametrize("method", METHODS)


# ---- the critic's target and loss


def slow_projection(atoms, probs, returns, discounts):
    """The mass of each shifted atom, shared out by a triangle that is two steps wide."""
    step, projected = atoms[1] - atoms[0], np.zeros(probs.shape)
    for b, j, i in itertools.product(range(len(probs)), range(len(atoms)), range(len(atoms))):
        target = min(max(returns[b] + discounts[b] * atoms[j], atoms[0]), atoms[-1])
        projected[b, i] += probs[b, j] * max(0.0, 1 - abs(target - atoms[i]) / step)
    return projected


def test_projection_by_hand():
    rows = [  # probabilities, return, discount, and their projection
        ([0, 1, 0, 0], 0.5, 1.0, [0, 0.75, 0.25, 0]),  # a quarter of the way from the atom 1 to the atom 3
        ([0.2, 0.3, 0.4, 0.1], 99.0, 1.0, [0, 0, 0, 1]),  # above the support
        ([0.2, 0.3, 0.4, 0.1], -99.0, 1.0, [1, 0, 0, 0]),  # below the support
        ([0, 0, 0.5, 0.5], -0.5, 0.5, [0, 0.75, 0.25, 0]),  # 3 / 2 - 0.5 = 1 is an atom, 5 / 2 - 0.5 = 2 halfway
        ([0.2, 0.3, 0.4, 0.1], 1.5, 0.0, [0, 0.75, 0.25, 0]),  # after a termination only the return is left
    ]
    *arguments, expected = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))
    torch.testing.assert_close(script.project(torch.tensor([-1.0, 1.0, 3.0, 5.0]), *arguments), expected)


def test_critic_loss_is_the_cross_entropy_from_the_projected_target():
    _, args = make_args("bc", num_atoms=11, v_min=-30.0, v_max=20.0)
    agent, batch = make_agent(script, args), make_batch(1, 8)
    with torch.no_grad():
        next_logits = agent.target_critic(batch["next_obs"], agent.target_policy(batch["next_obs"])).double().numpy()
        logits = agent.critic(batch["obs"], batch["action"]).double().numpy()
        probs = np.exp(next_logits) / np.exp(next_logits).sum(1, keepdims=True)
        columns = [batch[name].numpy() for name in ("n_step_return", "n_step_discount")]
        target = slow_projection(np.linspace(-30, 20, 11), probs, *columns)
        expected = -(target * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()
        loss = script.critic_loss(agent.critic, agent.target_policy, agent.target_critic, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# ---- the methods' action gradients


@pytest.mark.parametrize("name", SCRIPTS[1:])
@pytest.mark.parametrize("rate", [0.01, 1.0, 5.0, 20.0])
def test_alpha(name, rate):
    script = load(name)

    def alpha(total, cycle=0.3, **flags):
        return script.alpha(script.Args(**flags), progress(total, cycle), rate).item()

    assert alpha(0.0) == 1 and alpha(1.0) == 0
    for done in (0.0, 0.1, 0.5, 0.9, 1.0):
        power, end = math.exp(-rate * done), math.exp(-rate)
        faded = pytest.approx((power - end) / (1 - end), rel=1e-4)
        assert alpha(done) == faded and alpha(0.7, cycle=done, alpha_per_cycle=True) == faded
        assert alpha(done, alpha_form="plain") == pytest.approx(power, rel=1e-5)


class HandCritic:
    """Q(s, a) = s W a + sum of sin 2a, whose gradient is s W + 2 cos 2a."""

    W = torch.tensor([[0.9, -0.2], [0.3, 0.5], [-0.4, 0.1]])

    def q_value(self, obs, action):
        return ((obs @ self.W) * action).sum(-1) + torch.sin(2 * action).sum(-1)


class HandTeacher:
    """G(s, a) = s V - a, with a graph that must not be followed: nothing forbids a teacher to leave it on."""

    V = torch.nn.Parameter(torch.tensor([[0.2, 0.1], [-0.6, 0.5], [0.3, 0.3]]))

    def action_gradient(self, obs, action):
        return obs @ self.V - action


class ActionTable(torch.nn.Module):
    """A policy whose output is its parameter, so that a parameter's gradient is the action's."""

    def __init__(self, obs, actions):
        super().__init__()
        self.obs, self.actions = obs, torch.nn.Parameter(actions)

    def forward(self, obs):
        assert obs is self.obs
        return self.actions


def clipped(vectors, clip):
    """The vectors, those longer than `clip` cut to that length; there must be some, but not only those."""
    norms = [math.hypot(*row) for row in vectors]
    assert 0 < sum(norm > clip for norm in norms) < len(norms)
    return np.array([row * min(1, clip / norm) for row, norm in zip(vectors, norms, strict=True)])


@all_methods
@pytest.mark.parametrize("done", [0.0, 0.3, 1.0])
def test_action_gradient_of_a_method_against_its_formula(method, done):
    script, args = make_args(method, dqda_clip=1.4)
    batch = make_batch(5)
    table = ActionTable(batch["obs"], make_batch(6)["action"])
    batch["teacher_action"][0] = table.actions[0].detach()  # the same action is as good, and so the Q-filter fires
    loss, metrics = script.policy_loss(args, table, HandCritic(), HandTeacher(), batch, progress(done))
    gradient = torch.autograd.grad(loss, table.actions)[0].numpy()

    columns = {name: column.double().numpy() for name, column in batch.items()}
    obs, a = columns["obs"], table.actions.detach().double().numpy()
    w, v = (weight.detach().double().numpy() for weight in (HandCritic.W, HandTeacher.V))

    def q(action):
        return np.einsum("bi,ij,bj->b", obs, w, action)[:, None] + np.sin(2 * action).sum(1, keepdims=True)

    def decayed(rate):
        return (math.exp(-rate * done) - math.exp(-rate)) / (1 - math.exp(-rate))

    alpha = decayed(getattr(args, "decay_rate", 1.0))
    delta = np.where(q(columns["teacher_action"]) >= q(a), 1.0, 0.0)
    assert delta[0] == 1 and 0.2 < delta.mean() < 0.8
    q_weight, penalties = {
        "bc": (1, {}),
        "bc_reg,bc-weight:0.7": (1, {"anchor": 0.7}),
        "bc_reg_decay:5": (1 - alpha, {"anchor": alpha}),
        "between:1": (1 - alpha, {"anchor": alpha}),
        "ta:1,beta:3": (1 - alpha, {"previous_action": 3, "teacher_action": alpha}),
        "ta:1,beta-decay": (1 - alpha, {"previous_action": decayed(5), "teacher_action": alpha}),
        "ta_qf": (1 - delta, {"teacher_action": delta}),
        "ta_qf,beta:3": (1 - delta, {"previous_action": 3, "teacher_action": delta}),
        "tg:5,teacher-dqda-clip:0.9": (1 - alpha, {}),
    }[method]
    expected, value = -q_weight * clipped(obs @ w + 2 * np.cos(2 * a), 1.4), -q_weight * q(a)
    logged = {"teacher/q_filter_rate": delta.mean()} if "qf" in method else {}
    logged |= {"teacher/alpha": alpha} if ":" in method.partition(",")[0] else {}  # it has a rate
    for anchor, weight in penalties.items():
        difference = a - columns[anchor]
        expected = expected + weight * 2 * difference
        value = value + weight * (difference**2).sum(1, keepdims=True)
        logged["teacher/distance"] = (difference**2).sum(1).mean()
    if method.startswith("tg"):
        expected = expected - alpha * clipped(obs @ v - a, 0.9)
    np.testing.assert_allclose(gradient, expected / len(a), atol=1e-6)
    logged |= {"losses/policy_loss": value.mean(), "losses/q_value": q(a).mean()}
    assert {name: tensor.item() for name, tensor in metrics.items()} == pytest.approx(logged, abs=1e-6)


def test_a_gradient_of_0_and_without_a_clip_stays_as_it_is():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.equal(script.clip_norm(vectors, math.inf), vectors)
    torch.testing.assert_close(script.clip_norm(vectors, 1.0), vectors / 5)


@all_methods
def test_annotations_are_of_the_right_policies_and_renewed_when_they_change(method):
    script, args = make_args(method)
    bc_policy, *previous = (make_agent(script, args, seed).policy for seed in (1, 2, 3))
    replay, teacher = make_replay(args), make_teacher()
    for seed, policy in enumerate(previous):
        replay.append([make_episode(seed, 10)])
        script.annotate(args, replay, bc_policy, policy, teacher)
    batch = replay.sample(64, torch.Generator().manual_seed(0))
    by_teacher = {"teacher_action": teacher.action, "previous_action": previous[1]}
    expected = {"bc_reg": {"anchor": bc_policy}, "bc_reg_decay": {"anchor": bc_policy}, "ta": by_teacher}
    expected |= {"between": {"anchor": previous[1]}, "ta_qf": by_teacher}
    expected = expected.get(re.split("[:,]", method)[0], {})
    assert set(batch) == {"obs", "next_obs", "action", "n_step_return", "n_step_discount", *expected}
    with torch.no_grad():
        for name, function in expected.items():
            np.testing.assert_allclose(batch[name], function(batch["obs"]), atol=1e-6)


@all_methods
def test_a_duplicated_batch_changes_no_loss_and_no_gradient(method):
    script, args = make_args(method)
    teacher, batch, results = make_teacher(), make_batch(3), []
    for some in (batch, {name: torch.cat([column, column]) for name, column in batch.items()}):
        agent = make_agent(script, args)
        metrics = script.compute_gradients(args, agent, teacher, some, progress(0.4))
        gradients = [parameter.grad for network in (agent.policy, agent.critic) for parameter in network.parameters()]
        results.append((metrics, gradients))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    assert results[0][0]["losses/critic_loss"] > 1 and max(gradient.abs().max() for gradient in results[0][1]) > 1e-2


# ---- cycle 0, a step, and what is measured


def test_the_clone_is_of_what_the_teacher_meant_and_its_steps_fall_to_0():
    _, args = make_args("bc", bc_steps=400, batch_size=32)
    agent, demos = make_agent(script, args), make_replay(args, make_episode())  # its actions are noise
    demos.annotate("teacher_action", lambda obs: obs[:, :2].tanh())
    script.clone(args, agent, demos, NoLog())
    batch = demos.sample(64, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for policy in (agent.policy, agent.bc_policy, agent.previous_policy, agent.target_policy):
            assert (policy(batch["obs"]) - batch["teacher_action"]).abs().max() < 0.2
    assert agent.bc_optimizer.param_groups[0]["lr"] == pytest.approx(args.bc_learning_rate / 400)


def test_critic_evaluation_learns_the_values_and_copies_its_targets():
    """A reward of 30 with gamma 0 is worth 30."""
    args = make_args("bc", gamma=0.0, n_step=1, learning_rate=1e-2, critic_steps=200, target_period=50)[1]
    agent = make_agent(script, args)
    demos = make_replay(args, make_episode()._replace(reward=np.full(20, 30, np.float32)))
    before, copies, honest = torch.nn.utils.parameters_to_vector(agent.policy.parameters()), [], agent.copy_targets
    agent.copy_targets = lambda: (copies.append(1), honest())
    script.pretrain_critic(args, agent, demos, NoLog())
    batch = demos.sample(20, torch.Generator().manual_seed(0))
    q = agent.critic.q_value(batch["obs"], batch["action"])
    torch.testing.assert_close(q, torch.full((20,), 30.0), atol=3, rtol=0)
    assert len(copies) == 5  # one every 50 steps, and one at the end
    for network, target in ((agent.policy, agent.target_policy), (agent.critic, agent.target_critic)):
        assert all(map(torch.equal, network.parameters(), target.parameters()))
    assert torch.equal(torch.nn.utils.parameters_to_vector(agent.policy.parameters()), before)


def test_a_step_clips_the_gradients_norm():
    network = torch.nn.Linear(3, 2)
    before = torch.nn.utils.parameters_to_vector(network.parameters())
    (1000 * network(torch.ones(1, 3)).sum()).backward()
    script.optimizer_step(network, torch.optim.SGD(network.parameters(), 1.0), 40.0)  # moves by the gradient
    moved = torch.nn.utils.parameters_to_vector(network.parameters()) - before
    assert moved.norm().item() == pytest.approx(40, rel=1e-4)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_overestimation_and_cosine_by_hand():
    args = make_args("bc", gamma=0.9)[1]
    agent, episodes = make_agent(script, args), [make_episode(seed) for seed in range(3)]
    first = torch.from_numpy(np.stack([episode.obs[0] for episode in episodes]))
    returns = [sum(0.9**t * reward for t, reward in enumerate(episode.reward)) for episode in episodes]
    with torch.no_grad():
        q = agent.critic.q_value(first, agent.policy(first)).mean().item()
    found = script.diagnose(args, agent, None, episodes)
    assert found["losses/overestimation"] == pytest.approx(q - np.mean(returns), rel=1e-5)
    assert found["deploy/episodic_return"] == pytest.approx(np.mean([sum(episode.reward) for episode in episodes]))
    with pytest.warns(match="from 300 to 300, which --v-min"):  # the atoms can't stand for that
        script.diagnose(args, agent, None, [make_episode(length=400)._replace(reward=np.full(400, 30))])

    asked, many = [], make_episode(0, 9_000)
    many.obs[:, 0] = np.arange(9_001)

    class Turned:  # by 90 degrees in every other state, where it is three times as long
        gives_gradients = True

        def action_gradient(self, obs, action):
            asked.append(obs)
            own = script.action_gradient(agent.critic, obs, action.requires_grad_(), math.inf)[1]
            other = 3 * own.flip(1) * torch.tensor([1.0, -1.0])
            return torch.where(torch.arange(len(obs))[:, None] % 2 == 0, own, other) / own.norm(dim=1, keepdim=True)

    found = script.diagnose(args, agent, Turned(), [many])
    assert found["teacher/dqda_cosine"].item() == pytest.approx(1 / (1 + 3), rel=1e-5)
    assert found["teacher/diagnosis_queries"] == 3_000
    assert asked[0][:, 0].tolist() == list(range(0, 9_000, 3))  # at most 4,096 of all, evenly spread


# ---- networks


def slow_network(weights, x):
    """Linear, LayerNorm, tanh, Linear, ELU, Linear, ELU, Linear in float64."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].double().numpy().T + weights[f"{name}.bias"].double().numpy()

    def elu(x):
        return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)

    x = linear("torso.0", x)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = np.tanh(x * weights["torso.1.weight"].double().numpy() + weights["torso.1.bias"].double().numpy())
    return linear("head", elu(linear("torso.5", elu(linear("torso.3", x)))))


def test_layers_and_their_order_and_a_snapshot_of_them():
    snapshot, agent, batch = make_teacher(), make_agent(*make_args("bc"), seed=7), make_batch(4)
    obs, action = batch["obs"], batch["action"].requires_grad_()
    logits = slow_network(agent.critic.state_dict(), torch.cat([obs, action], 1).detach().numpy())
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    q, dqda = script.action_gradient(agent.critic, obs, action, math.inf)
    wanted = np.tanh(slow_network(agent.policy.state_dict(), obs.numpy()))
    np.testing.assert_allclose(agent.policy(obs).detach(), wanted, atol=1e-5)
    np.testing.assert_allclose(q, probs @ np.linspace(-150, 150, 51), atol=1e-3)
    assert torch.equal(snapshot.action(obs), agent.policy(obs)) and torch.equal(snapshot.q_value(obs, action), q)
    assert torch.equal(snapshot.action_gradient(obs, action), dqda) and dqda.abs().min() > 0


def test_initial_weights_are_acmes():
    torch.manual_seed(0)
    policy, critic, limit = script.Policy(3, 2), script.Critic(3, 2, 51, -150, 150), math.sqrt(3 * 0.333 / 256)
    for network in (policy, critic):
        for layer in (network.torso[0], network.torso[3], network.torso[5]):  # VarianceScaling(0.333, fan_out, uniform)
            assert 0.98 * limit < layer.weight.abs().max() < 1.001 * limit and not layer.bias.any()
            assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        assert not network.head.bias.any()
    assert critic.head.weight.std().item() == pytest.approx(0.88 / 16, rel=0.05)  # cut at 2 of 1 / 16
    assert 0.7 * 0.01 / 16 < policy.head.weight.std() < 1.1 * 0.01 / 16
