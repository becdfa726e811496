"""Small parts for tests of the maths: a made-up task, agents, batches, a teacher, and methods with telling numbers."""

import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

import methods
import numpy as np
import torch
from small import CPU, script
from small import SCRIPTS as NAMES

import gbrl_d4pg
from common import snapshots
from common.envs import EnvSpec
from common.replay import Replay
from common.rollouts import Episode

ENV = EnvSpec("made-up", 3, 2, 20)
SCRIPTS = tuple(map(script, NAMES))
METHODS = (
    "bc", "bc_reg,bc-weight:0.7", "bc_reg_decay:5", "between:1", "ta:1,beta:3", "ta:1,beta-decay", "ta_qf",
    "ta_qf,beta:3", "tg:5,teacher-dqda-clip:0.9",
)  # fmt: skip


def parse(method, **flags):
    """The method's script and its arguments as its command line gives them."""
    script, args = methods.load(method)
    return script, dataclasses.replace(args, **flags)


def make_args(method, **flags):
    """The method's script and its resolved arguments."""
    script, args = parse(method, **flags)
    return script, script.resolve(args, ENV)


def make_agent(script, args, seed=0):
    """An agent that looks trained: actions away from 0, LayerNorm not the identity, and targets of their own."""
    with mock.patch.object(script.rollouts, "stream_seed", lambda *_: seed):
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
    """A batch with the columns of every method."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator) * 2 - 1

    batch = {"obs": 2 * uniform(size, 3), "next_obs": 2 * uniform(size, 3), "action": uniform(size, 2)}
    batch |= {name: uniform(size, 2) for name in ("anchor", "teacher_action", "previous_action")}
    return batch | {"n_step_return": 20 * uniform(size), "n_step_discount": torch.full((size,), 0.95)}


def make_episode(seed=0, length=20):
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(length + 1, 3)), rng.uniform(-1, 1, (length, 2)), rng.normal(size=length), np.ones(length)
    return Episode(*(part.astype(np.float32) for part in parts))


def make_replay(args, *batches, device=CPU):
    """A replay of batches of one episode each, with room for one more of 20 steps."""
    replay = Replay(20 * len(batches) + 20, ENV.obs_size, ENV.action_size, args.n_step, args.gamma, device)
    for episode in batches:
        replay.append([episode])
    return replay


def progress(total, cycle=0.0):
    return gbrl_d4pg.Progress(torch.tensor(total), torch.tensor(cycle))


def train(script, args, compute, steps, done=None, prepare=lambda agent, batch: None):
    """The weights after so many updates on batches that are the same for every method; `prepare` may change a batch."""
    agent, teacher = make_agent(script, args), make_teacher()
    for step in range(steps):
        batch = make_batch(step)
        prepare(agent, batch)
        compute(args, agent, teacher, batch, progress(step / steps if done is None else done))
        script.optimizer_step(agent.critic, agent.critic_optimizer, args.max_grad_norm)
        script.optimizer_step(agent.policy, agent.policy_optimizer, args.max_grad_norm)
        if (step + 1) % 20 == 0:
            agent.copy_targets()
    networks = agent.policy, agent.critic, agent.target_policy, agent.target_critic
    return torch.cat([torch.nn.utils.parameters_to_vector(network.parameters()) for network in networks]).detach()


def make_teacher(device=CPU):
    """A snapshot as a teacher."""
    agent = make_agent(*make_args("bc"), seed=7)
    with tempfile.TemporaryDirectory() as folder:
        snapshots.save(Path(folder) / "teacher.pt", ENV, agent.policy, agent.critic, {})
        return snapshots.load(Path(folder) / "teacher.pt", device)


class NoLog:
    """The part of a run that `learn` needs: it counts all steps, and a log point is an error."""

    def steps(self, first, last, desc):
        return range(first, last)

    def log(self, *_, **__):
        raise AssertionError("a log point")
