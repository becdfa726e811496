"""A method whose help is switched off is D4PG bit for bit, and what a cycle holds fixed stays fixed bit for bit."""

import itertools

import numpy as np
import pytest
import torch
from pieces import make_args, parse, train
from small import LINE, TOY, differences, report, result, run_method

from common import files, rollouts


def worse_action(agent, batch):
    """Make the teacher's action one that the student's critic likes less, so that the Q-filter never fires."""
    action = agent.policy(batch["obs"]).detach().requires_grad_()
    slope = torch.autograd.grad(agent.critic.q_value(batch["obs"], action).sum(), action)[0]
    batch["teacher_action"] = action.detach() - 0.02 * slope / slope.norm(dim=1, keepdim=True)


OFF = {  # flags, and how it is trained
    "bc_reg": ({"bc_weight": 0.0}, {}),  # lambda = 0
    "bc_reg_decay:5": ({}, {"done": 1.0}),  # alpha = 0
    "between:1": ({}, {"done": 1.0}),
    "ta:1": ({"beta": 0.0}, {"done": 1.0}),
    "ta:1,beta-decay": ({}, {"done": 1.0}),
    "tg:1": ({}, {"done": 1.0}),
    "ta_qf": ({}, {"prepare": worse_action}),
}


@pytest.mark.parametrize("method", OFF)
def test_help_switched_off_is_d4pg_bit_for_bit_and_switched_on_is_not(method):
    def weights(method, flags=None, how=None):
        script, args = make_args(method, **(flags or {}))
        return train(script, args, script.compute_gradients, 50, **(how or {}))

    assert torch.equal(weights(method, *OFF[method]), weights("bc"))
    assert not torch.equal(weights(method), weights("bc"))


# ---- what a run holds fixed, and its budget


def flat(*networks):
    return torch.cat([value.flatten() for network in networks for value in network.state_dict().values()])


@pytest.mark.parametrize(
    ("method", "column"), [("bc_reg", "anchor"), ("between:1", "anchor"), ("ta:1", "previous_action")]
)
def test_a_run_keeps_its_anchors_and_spends_its_exact_budget(method, column, tmp_path, demo_dir, monkeypatch):
    """7 episodes of 20 steps and 31 updates in 3 cycles."""
    script, deployed, updates, used, online = parse(method)[0], [], [], [], []

    def run_block(env_id, actor, sigma, stream, indices):
        if stream[:2] == (1, rollouts.DEPLOY):
            deployed.append((stream[2], len(indices), len(updates), flat(actor)))
        return honest_block(env_id, actor, sigma, stream, indices)

    def recorded(args, agent, teacher, batch, progress):
        updates.append((*map(float, progress), flat(agent.bc_policy), flat(agent.previous_policy)))
        online.append(flat(agent.policy, agent.critic))
        held = agent.bc_policy if method == "bc_reg" else agent.previous_policy
        torch.testing.assert_close(batch[column], held(batch["obs"]), rtol=0, atol=1e-5)
        return honest_gradients(args, agent, teacher, batch, progress)

    def critic_loss(critic, target_policy, target_critic, batch):
        used.append(flat(target_policy, target_critic))
        return honest_loss(critic, target_policy, target_critic, batch)

    honest_block, honest_gradients, honest_loss = rollouts.run_block, script.compute_gradients, script.critic_loss
    monkeypatch.setattr("common.workers.run_block", run_block)
    monkeypatch.setattr(script, "compute_gradients", recorded)
    monkeypatch.setattr(script, "critic_loss", critic_loss)
    flags = TOY | {"env_id": LINE, "actor_steps": 145, "learner_steps": 31, "num_cycles": 3, "target_period": 4}
    run_dir = run_method(method, tmp_path / "run", demo_dir, **flags)

    assert [moment[:3] for moment in deployed] == [(1, 2, 0), (2, 2, 8), (3, 3, 17)]
    in_cycle = [n / length for length in (8, 9, 14) for n in range(length)]
    assert [total for total, *_ in updates] == pytest.approx([n / 31 for n in range(31)])
    assert [cycle for _, cycle, *_ in updates] == pytest.approx(in_cycle)
    snapshots = [files.load_torch(run_dir / f"cycle_{cycle:04d}" / "snapshot.pt", "policy") for cycle in range(4)]
    kept = [torch.cat([value.flatten() for value in snapshot["policy"].values()]) for snapshot in snapshots]
    assert not any(torch.equal(*pair) for pair in itertools.combinations(kept, 2))  # every cycle learned something
    assert all(torch.equal(policy, kept[cycle - 1]) for cycle, *_, policy in deployed)
    for n, (*_, clone, previous) in enumerate(updates):
        assert torch.equal(clone, kept[0]) and torch.equal(previous, kept[0 if n < 8 else 1 if n < 17 else 2])
        assert torch.equal(used[20 + n], online[4 * (n // 4)])  # both, and the first from before learning
    assert [torch.equal(*pair) for pair in itertools.pairwise(used[:20])] == 4 * [True, True, True, False] + 3 * [True]


def test_budgets_stay_true_where_episodes_end_early_with_any_number_of_workers(tmp_path, demo_dir):
    """240 steps a cycle in episodes of 1 to 20 steps, and every transition sampled 4 times in the cycle it arrives."""
    flags = {"actor_steps": 960, "learner_steps": None, "samples_per_insert": 4.0, "batch_size": 8, "num_cycles": 4}
    flags = TOY | {"env_id": LINE.replace("Line", "Ledge")} | flags
    runs = [run_method("ta:1", tmp_path / str(n), demo_dir, num_workers=n, **flags) for n in (0, 2)]
    assert differences(*map(result, runs)) == []
    steps = [0]
    for cycle in range(1, 5):
        batch = files.load_arrays(runs[0] / f"cycle_{cycle:04d}" / "batch.npz", "batch")
        steps.append(steps[-1] + len(batch["reward"]))
        assert 240 * cycle <= steps[-1] < 240 * cycle + batch["length"][-1]  # no episode more than it takes
        assert (batch["discount"][np.cumsum(batch["length"]) - 1] == 0).mean() > 0.5  # most end early
    updates = [cycle["learner_step"] for cycle in report(runs[0])["cycles"]]
    assert updates == [*(int(4 * step / 8) for step in steps[1:4]), 480]
