"""The learner's loop never waits for the device between log points, and compiles whole to the same learning."""

import shutil
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from pieces import CPU, ENV, METHODS, StubRun, make_agent, make_args, make_batch, make_teacher, progress
from small import ROOT, TOY, own, report, run_method
from torch._subclasses.fake_tensor import FakeTensorMode

from common import UserError, launch
from common.replay import Replay
from common.rollouts import Episode

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def wait(*_, **__):
    """Stands for a copy from the device, which nothing else shows on a CPU."""
    raise AssertionError("data-dependent: a copy to the CPU")


def staying(tensor, *args, _to=torch.Tensor.to, **flags):
    """`Tensor.to` that refuses the word "cpu"; a device, as `clip_grad_norm_` gives it, is the tensor's own here."""
    return wait() if "cpu" in (*args, *flags.values()) else _to(tensor, *args, **flags)


def learn_without_values(method, compute=None):
    """Run three learner steps, a target copy among them, on tensors that have shapes but no values."""
    script, args = make_args(method, eval_every=10_000, batch_size=16, target_period=2)
    teacher = make_teacher()
    rng = np.random.default_rng(0)
    shapes = [(21, 3), (20, 2), (20,), (20,)]
    episode = Episode(*(rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes))
    init = mock.patch.object(torch.nn.init, "trunc_normal_")  # it looks at values, once, when an agent is made
    to = mock.patch.object(torch.nn.Module, "to", lambda module, device: module)  # fake modules can't be moved
    copies = mock.patch.multiple(torch.Tensor, cpu=wait, to=staying)
    with FakeTensorMode(allow_non_fake_inputs=True), init, to:
        agent = script.Agent(args, ENV, CPU)
        replay = Replay(100, ENV.obs_size, ENV.action_size, args.n_step, args.gamma, CPU)
        replay.append([episode])
        script.annotate(args, replay, agent.bc_policy, agent.previous_policy, teacher)
        with copies:
            script.learn(args, agent, teacher, replay, StubRun(), compute or script.compute_gradients, 0, 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_loop_reads_no_value_between_log_points(method):
    learn_without_values(method)


SYNCS = {
    "item": lambda loss: loss.item(),
    "to": lambda loss: loss.detach().to("cpu"),
    "branch": lambda loss: 1 if loss > 0 else 0,
}


@pytest.mark.parametrize("name", SYNCS)
def test_a_planted_wait_is_found(name):
    script, _ = make_args("bc")

    def waiting(*args):
        metrics = script.compute_gradients(*args)
        SYNCS[name](metrics["losses/critic_loss"])
        return metrics

    with pytest.raises(Exception, match=r"(?i)data.?dependent|fake|meta|\.numpy\(\)|_local_scalar_dense|symbolic"):
        learn_without_values("bc", waiting)


def hundred_updates(script, args, compute, teacher):
    agent = make_agent(script, args)
    for step in range(100):
        compute(args, agent, teacher, make_batch(step, 256), progress(step / 100, step / 100))
        script.optimizer_step(agent.critic, agent.critic_optimizer, args.max_grad_norm)
        script.optimizer_step(agent.policy, agent.policy_optimizer, args.max_grad_norm)
    return torch.nn.utils.parameters_to_vector([*agent.policy.parameters(), *agent.critic.parameters()])


@needs_compiler
@pytest.mark.parametrize("method", ["ta_qf"])
def test_compiled_learning_is_the_same_learning(method):
    """A first call that compiles, then no other: `launch.compiled` makes that an error."""
    script, args = make_args(method)
    teacher = make_teacher()
    compute = launch.compiled(script.compute_gradients, CPU)
    compiled, eager = (hundred_updates(script, args, c, teacher) for c in (compute, script.compute_gradients))
    assert (compiled - eager).abs().max() < 1e-5  # seen: 1e-6; a hundred steps of 1e-4 would make 1e-2


@needs_compiler
def test_a_whole_run_compiles_once_and_books_its_phases(tmp_path, demo_dir, capsys):
    """Neither alpha nor another cycle nor more data compiles anew."""
    mine = f"{ROOT}/examples/torch_teacher.py:PolicyWithCritic"  # a teacher of one's own is compiled too
    flags = {"env_id": "pendulum-swingup", "num_cycles": 3, "actor_steps": 3_000, "learner_steps": 61}
    run_dir = run_method("tg:1", tmp_path / "run", demo_dir, compile=True, teacher=mine, **flags)
    assert capsys.readouterr().out.count("compiling the update took") == 1
    assert report(run_dir)["teacher_queries"]["gradients_asked"] == 61 * 32
    seconds = report(run_dir)["seconds"]
    phases = {"demonstrations", "cloning", "critic evaluation", "deploying", "annotating", "learning"}
    assert phases | {"waiting for evaluations", "report episodes", "writing"} <= seconds.keys()


def test_returns_that_the_atoms_cannot_stand_for_are_told():
    script, args = make_args("bc", gamma=0.5)
    agent = make_agent(script, args)
    for reward, holds in ((70, True), (80, False), (-80, False)):  # discounted returns of twice as much
        episode = Episode(np.zeros((21, 3), np.float32), np.zeros((20, 2)), np.full(20, reward), np.ones(20))
        with warnings.catch_warnings(record=True) as told:
            script.diagnose(args, agent, None, [episode])
        assert [f"from {2 * reward} to {2 * reward}, which --v-min" in str(w.message) for w in told] == [True] * (
            not holds
        )


@needs_compiler
def test_a_teacher_that_cannot_be_compiled_is_a_sentence(tmp_path, demo_dir):
    slope = "action if obs.sum() > 0 else -action"
    code = f"class Mine(Pusher):\n    def action_gradient(self, obs, action): return {slope}\n"
    flags = TOY | {"teacher": own(tmp_path, "Mine", code)}
    with pytest.raises(UserError, match="--compile: the update can't be compiled as one graph"):
        run_method("tg:1", tmp_path / "run", demo_dir, compile=True, **flags)


def test_a_missing_compiler_is_a_sentence_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C"):
        run_method("bc", tmp_path / "run", tmp_path, compile=True)
    assert not (tmp_path / "run").exists()
