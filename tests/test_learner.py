"""The learner's loop never waits for the device between log points, and compiles whole to the same learning."""

import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from pieces import CPU, ENV, ROWS, make_agent, make_args, make_batch, make_teacher
from torch._subclasses.fake_tensor import FakeTensorMode

from common import UserError, run
from common.replay import Replay
from common.rollouts import Episode
from common.run import Run


class Keeper:
    """What `learn` asks of a run, between two log points: `watch` is the real one, and a log point is an error."""

    def __init__(self):
        self._bad_step, self.clock = None, {}

    watch = Run.watch

    def steps(self, start, total, what):
        return range(start, total)

    def log(self, *_):
        raise AssertionError("a log point")

    evaluate = log


def learn_without_values(row, compute=None):
    """Run three learner steps, a target copy among them, on tensors that have shapes but no values."""
    script, args = make_args(row, eval_every=10_000, batch_size=16, target_period=2)
    teacher = make_teacher()
    rng = np.random.default_rng(0)
    shapes = [(21, 3), (20, 2), (20,), (20,)]
    episode = Episode(*(rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes))
    init = mock.patch.object(torch.nn.init, "trunc_normal_")  # it looks at values, once, when an agent is made
    to = mock.patch.object(torch.nn.Module, "to", lambda module, device: module)  # fake modules can't be moved
    with FakeTensorMode(allow_non_fake_inputs=True), init, to:
        agent = script.Agent(args, ENV, CPU)
        replay = Replay(100, 2, ENV.obs_size, ENV.action_size, args.n_step, args.gamma, CPU)
        replay.append([episode])
        script.annotate(args, replay, agent.bc_policy, agent.previous_policy, teacher)
        sampler = torch.Generator().manual_seed(0)
        compute = compute or script.gradients
        script.learn(args, agent, teacher, replay, sampler, Keeper(), compute, 0, 0, 3)


@pytest.mark.parametrize("row", ROWS)
def test_the_loop_reads_no_value_between_log_points(row):
    learn_without_values(row)


SYNCS = {
    "item": lambda loss: loss.item(),
    "numpy": lambda loss: loss.detach().numpy().tolist(),
    "branch": lambda loss: 1 if loss > 0 else 0,
    "tolist": lambda loss: loss.tolist(),
}


@pytest.mark.parametrize("name", SYNCS)
def test_a_planted_wait_is_found(name):
    script, _ = ROWS["bc"]

    def waiting(*args):
        result = script.gradients(*args)
        SYNCS[name](result[2]["losses/critic_loss"])
        return result

    with pytest.raises(Exception, match=r"(?i)data.?dependent|fake|meta|\.numpy\(\)|_local_scalar_dense|symbolic"):
        learn_without_values("bc", waiting)


def hundred_updates(script, args, compute, teacher):
    agent = make_agent(script, args)
    for step in range(100):
        progress = torch.full((), step / 100)
        critic_grads, policy_grads, _ = compute(args, agent, teacher, make_batch(step, 256), progress)
        script.apply_gradients(agent.critic, agent.critic_optimizer, critic_grads, args.max_grad_norm)
        script.apply_gradients(agent.policy, agent.policy_optimizer, policy_grads, args.max_grad_norm)
    return torch.nn.utils.parameters_to_vector([*agent.policy.parameters(), *agent.critic.parameters()])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("row", ["ta_qf", "tg"])
def test_compiled_learning_is_the_same_learning(row):
    script, args = make_args(row)
    teacher = make_teacher()
    torch._dynamo.reset()
    compute = run.compiled(script.gradients, CPU)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = hundred_updates(script, args, compute, teacher)
    eager = hundred_updates(script, args, script.gradients, teacher)
    assert (compiled - eager).abs().max() < 1e-5  # seen: 1e-6; a hundred steps of 1e-4 would make 1e-2
    assert not torch.equal(eager, torch.zeros_like(eager))


def test_a_missing_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C"):
        run.compiled(lambda: None, CPU)
