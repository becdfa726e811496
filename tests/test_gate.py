"""What a gate before each deployment would have known, and whom it would have held back."""

import csv
import itertools

import gate
import numpy as np
import pytest
import torch
from small import report

import gbrl_d4pg
from common import UserError, envs, files, rollouts
from common.replay import Replay


def test_a_finished_run_is_judged_before_each_deployment(alone, tmp_path, capsys):
    run_dir = alone("ta:1")
    gate.main(gate.Args((run_dir,), tmp_path, steps=0))
    with open(tmp_path / "gate.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    content = report(run_dir)
    levels = [content["clone"]["return"]["mean"], *(cycle["after_learning"]["mean"] for cycle in content["cycles"])]
    assert [float(line["return_before"]) for line in lines] == pytest.approx(levels[:-1], abs=1e-3)
    assert [float(line["return_after"]) for line in lines] == pytest.approx(levels[1:], abs=1e-3)
    assert sum(line["falls"] == "True" for line in lines) == content["falls"]["significant"]
    batches = [rollouts.unpack(files.load_arrays(run_dir / f"cycle_000{k}" / "batch.npz", "batch"))[0] for k in (1, 2)]
    deployed = [np.mean([episode.discounted_return(0.99) for episode in batch]) for batch in batches]
    assert [float(line["deployed_before"]) for line in lines] == pytest.approx(deployed, abs=1e-3)
    assert float(lines[0]["deployed_after"]) == pytest.approx(deployed[1], abs=1e-3)
    # With no update the estimate is the learner's own critic's, of both policies on all starts so far.
    env, args = envs.spec(content["env_id"]), gbrl_d4pg.Args()
    old, new = (gate.load(run_dir / f"cycle_000{cycle}" / "snapshot.pt", args, env) for cycle in (1, 2))
    obs = torch.stack([torch.from_numpy(episode.obs[0]) for episode in itertools.chain(*batches)])
    for name, policy in (("fqe_before", old[0]), ("fqe_after", new[0])):
        assert float(lines[1][name]) == pytest.approx(new[1].q_value(obs, policy(obs)).mean().item(), abs=1e-3)
    assert "| all | FQE against deployed returns |" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing to judge"):
        gate.main(gate.Args((), tmp_path))


def test_fitted_q_learns_the_value_of_the_policy_and_leaves_the_runs_critic_alone(alone):
    run_dir, env, args = alone("ta:1"), envs.spec(report(alone("ta:1"))["env_id"]), gbrl_d4pg.Args(batch_size=32)
    episodes, _ = rollouts.unpack(files.load_arrays(run_dir / "cycle_0002" / "batch.npz", "batch"))
    replay = Replay(rollouts.num_steps(episodes), env.obs_size, env.action_size, 5, 0.0, torch.device("cpu"))
    replay.append([episode._replace(reward=0 * episode.reward + 7) for episode in episodes])  # worth 7 with gamma 0
    policy, critic = gate.load(run_dir / "cycle_0002" / "snapshot.pt", args, env)
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    starts = torch.stack([torch.from_numpy(episode.obs[0]) for episode in episodes])
    value = gate.fitted_q(policy, critic, replay, starts, gate.Args((), run_dir, steps=600), args)
    assert value == pytest.approx(7, abs=0.5)
    assert all(torch.equal(before[name], value) for name, value in critic.state_dict().items())


def test_who_is_held_back_is_counted():
    of = {"row": "bc", "deployed_before": 10}
    lines = [
        {**of, "falls": True, "fqe_before": 9, "fqe_after": 11},
        {**of, "falls": True, "fqe_before": 12, "fqe_after": 11},
        {**of, "falls": False, "fqe_before": 12, "fqe_after": 9},
    ]
    text = gate.summary(lines)
    assert "| bc | FQE against FQE | 1 of 2 | 1 of 1 |" in text
    assert "| all | FQE against deployed returns | 0 of 2 | 1 of 1 |" in text
