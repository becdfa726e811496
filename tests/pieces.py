"""Small parts for tests of the maths: a made-up task, agents, batches, a teacher, and each row with telling numbers."""

import tempfile
from pathlib import Path

import torch

import gbrl_bc_reg
import gbrl_d4pg
import gbrl_teacher_action
import gbrl_teacher_grad
from common import teachers
from common.envs import EnvSpec

CPU = torch.device("cpu")
ENV = EnvSpec("made-up", 3, 2, 20)
SCRIPTS = (gbrl_d4pg, gbrl_bc_reg, gbrl_teacher_action, gbrl_teacher_grad)
SCHEDULED = (gbrl_bc_reg, gbrl_teacher_action, gbrl_teacher_grad)  # those with an alpha
ROWS = {
    "bc": (gbrl_d4pg, {}),
    "bc_reg": (gbrl_bc_reg, {"method": "bc_reg", "bc_weight": 0.7}),
    "bc_reg_decay": (gbrl_bc_reg, {"method": "bc_reg_decay", "decay_rate": 5.0}),
    "between": (gbrl_bc_reg, {"method": "between"}),
    "ta": (gbrl_teacher_action, {"method": "ta", "beta": 3.0}),
    "ta, beta decays": (gbrl_teacher_action, {"method": "ta", "beta": 5.0, "beta_decay": True}),
    "ta_qf": (gbrl_teacher_action, {"method": "ta_qf"}),
    "tg": (gbrl_teacher_grad, {"teacher_dqda_clip": 0.9, "decay_rate": 5.0}),
}


def make_args(row, **flags):
    """The row's script and its resolved arguments."""
    script, own = ROWS[row]
    return script, script.Args(**(own | flags)).resolved(ENV)


def make_agent(script, args, seed=0):
    """An agent that looks trained: actions away from 0, LayerNorm not the identity, and targets of their own."""
    torch.manual_seed(seed)
    agent = script.Agent(args, ENV, CPU)
    for network in (agent.policy, agent.critic, agent.bc_policy, agent.previous_policy):
        torch.nn.init.normal_(network.head.weight, std=0.1)
        torch.nn.init.normal_(network.torso[1].weight, mean=1.0, std=0.2)
        torch.nn.init.normal_(network.torso[1].bias, std=0.2)
    agent.copy_targets()
    torch.nn.init.normal_(agent.policy.head.bias, std=0.2)
    torch.nn.init.normal_(agent.critic.head.bias, std=0.2)
    return agent


def make_batch(seed, size=32):
    """A batch with the columns of every row."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator) * 2 - 1

    batch = {"obs": 2 * uniform(size, 3), "next_obs": 2 * uniform(size, 3), "action": uniform(size, 2)}
    batch |= {name: uniform(size, 2) for name in ("anchor", "teacher_action", "previous_action")}
    return batch | {"n_step_return": 20 * uniform(size), "n_step_discount": torch.full((size,), 0.95)}


def save_teacher(path, script, seed=7, support=(51, -150.0, 150.0)):
    """Save a made-up agent as a snapshot; returns the agent."""
    num_atoms, v_min, v_max = support
    args = script.Args(num_atoms=num_atoms, v_min=v_min, v_max=v_max).resolved(ENV)
    agent = make_agent(script, args, seed)
    teachers.save_snapshot(path, ENV, agent.policy, agent.critic, support, {})
    return agent


def make_teacher():
    """A snapshot as a teacher."""
    with tempfile.TemporaryDirectory() as folder:
        save_teacher(Path(folder) / "teacher.pt", gbrl_d4pg)
        return teachers.load_snapshot(Path(folder) / "teacher.pt", CPU)
