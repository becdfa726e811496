"""The learner's loop never waits for the device between log points, and compiles whole to the same learning."""

import shutil
from unittest import mock

import pieces
import pytest
import torch
from pieces import ENV, METHODS, NoLog, make_args, make_episode, make_replay, make_teacher, train
from small import CPU, ROOT, TOY, own, report, run_method
from torch._subclasses.fake_tensor import FakeTensorMode

from common import UserError, launch

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
    teacher, episode = make_teacher(), make_episode()
    init = mock.patch.object(torch.nn.init, "trunc_normal_")  # it looks at values, once, when an agent is made
    to = mock.patch.object(torch.nn.Module, "to", lambda module, device: module)  # fake modules can't be moved
    copies = mock.patch.multiple(torch.Tensor, cpu=wait, to=staying)
    with FakeTensorMode(allow_non_fake_inputs=True), init, to:
        agent, replay = script.Agent(args, ENV, CPU), make_replay(args, episode)
        script.annotate(args, replay, agent.bc_policy, agent.previous_policy, teacher)
        with copies:
            script.learn(args, agent, teacher, replay, NoLog(), compute or script.compute_gradients, 0, 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_loop_reads_no_value_between_log_points(method):
    learn_without_values(method)


def test_a_planted_wait_is_found():
    script, _ = make_args("bc")
    for look in (torch.Tensor.item, bool, lambda loss: loss.detach().to("cpu")):
        with pytest.raises(Exception, match=r"(?i)data.?dependent|_local_scalar_dense"):
            learn_without_values(
                "bc", lambda *args, look=look: look(script.compute_gradients(*args)["losses/critic_loss"])
            )


@needs_compiler
def test_compiled_learning_is_the_same_learning():
    """A first call that compiles, then no other: a call that would compile again is an error."""
    script, args = make_args("ta_qf")
    compute = launch.compiled(script.compute_gradients, CPU)
    compiled, eager = (train(script, args, c, 100) for c in (compute, script.compute_gradients))
    assert (compiled - eager).abs().max() < 1e-5  # seen: 1e-6; a hundred steps of 1e-4 would make 1e-2
    with pytest.raises(torch._dynamo.exc.RecompileError):
        compute(args, pieces.make_agent(script, args), make_teacher(), pieces.make_batch(0, 16), pieces.progress(0.0))


@needs_compiler
def test_a_whole_run_compiles_once_and_books_its_phases(tmp_path, demo_dir, capsys):
    """Neither alpha nor another cycle nor more data compiles anew."""
    mine = f"{ROOT}/examples/torch_teacher.py:PolicyWithCritic"  # a teacher of one's own is compiled too
    flags = {"env_id": "pendulum-swingup", "num_cycles": 3, "actor_steps": 3_000, "learner_steps": 61}
    run_dir = run_method("tg:1", tmp_path / "run", demo_dir, compile=True, teacher=mine, **flags)
    assert capsys.readouterr().out.count("compiling the update took") == 1
    assert report(run_dir)["teacher_queries"]["gradients_asked"] == 61 * 32
    phases = {"demonstrations", "cloning", "critic evaluation", "deploying", "annotating", "learning"}
    assert phases | {"waiting for evaluations", "report episodes", "writing"} <= report(run_dir)["seconds"].keys()


@needs_compiler
def test_a_teacher_that_cannot_be_compiled_is_a_sentence(tmp_path, demo_dir):
    slope = "action if obs.sum() > 0 else -action"
    code = f"class Mine(Pusher):\n    def action_gradient(self, obs, action): return {slope}\n"
    flags = TOY | {"teacher": own(tmp_path, "Mine", code)}
    with pytest.raises(UserError, match="--compile: the update can't be compiled as one graph"):
        run_method("tg:1", tmp_path / "run", demo_dir, compile=True, **flags)


@needs_compiler
def test_a_teacher_may_compile_its_own_network(tmp_path, demo_dir):
    """It is asked about batches of several sizes, so it compiles anew where the update mustn't."""
    code = "class Mine(Pusher):\n    action = torch.compile(Pusher.action, dynamic=False)\n"
    flags = TOY | {"teacher": own(tmp_path, "Mine", code)}
    report(run_method("ta:1", tmp_path / "run", demo_dir, compile=True, **flags))


def test_a_missing_compiler_is_a_sentence_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C"):
        run_method("bc", tmp_path / "run", tmp_path, compile=True)
    assert not (tmp_path / "run").exists()
