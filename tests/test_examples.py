"""The examples of teachers run through the real scripts, and are as good as the README says."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pieces import CPU, ENV, make_agent, make_args, make_batch, save_teacher
from small import SMALL, report, run_row

import gbrl_d4pg
from common import UserError, envs, files, run, teachers

TASK = "cartpole-swingup"
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SWING_UP = f"{EXAMPLES}/energy_swingup.py:EnergySwingUp"
TORCH = f"{EXAMPLES}/torch_teacher.py:PolicyWithCritic"
SHORT = {"env_id": TASK, "num_cycles": 1, "actor_steps": 1_000, "learner_steps": 20, "eval_episodes": 0}
FLOOR = 800  # 20 noise-free episodes gave 828 to 856, a slow swing-up or a fall gives far less


def test_the_controller_demonstrates_and_annotates(tmp_path):
    run_dir = run_row("ta_qf", tmp_path / "run", tmp_path / "demos", teacher=SWING_UP, **SHORT)
    returns = files.load_json(run_dir / "teacher.json", "evaluation")["returns"]
    (path,) = (tmp_path / "demos").glob("*.npz")
    demonstrated = files.load_arrays(path, "demonstrations")["reward"].reshape(SMALL["demo_episodes"], -1).sum(1)
    assert min(returns) > FLOOR and min(demonstrated) > FLOOR
    assert report(run_dir)["teacher"]["return"]["mean"] == pytest.approx(np.mean(returns))
    assert report(run_dir)["teacher_queries"] == {"states_annotated": 1_000, "gradients_asked": 0}


def test_the_controllers_numbers_are_the_suites_and_its_gains_place_the_poles():
    teacher = teachers.load(SWING_UP, envs.spec(TASK), "actions", CPU)._teacher
    model = envs.Env(TASK).dm_env.physics.model
    mass, inertia, length = model.body_mass[2], model.body_inertia[2, 1], model.body_ipos[2, 2]
    about_hinge, gravity = inertia + mass * length**2, -model.opt.gravity[2]
    assert teacher.w2 == pytest.approx(mass * gravity * length / about_hinge, rel=1e-6)
    assert teacher.b == pytest.approx(mass * length / about_hinge, rel=1e-6)
    push = np.array([teacher.kx, teacher.kt, teacher.kv, teacher.kw])  # of the state x, theta, x', theta'
    system = np.zeros((4, 4))
    system[0, 2] = system[1, 3] = 1
    system[2], system[3] = push, -teacher.b * push
    system[3, 1] += teacher.w2
    assert np.poly(system) == pytest.approx(np.poly([-3.0] * 4))
    force = 10 * teacher.action(torch.tensor([[0.1, 1.0, 0.0, 0.0, 0.0]])).item()  # upright at rest, beside the middle
    assert force == pytest.approx(0.1 * teacher.kx * (1.1 - mass * length * teacher.b), rel=1e-5)


def test_the_controller_refuses_another_task_and_gradients():
    with pytest.raises(UserError, match="written for cartpole-swingup, not for cartpole-balance"):
        teachers.load(SWING_UP, envs.spec("cartpole-balance"), "actions", CPU)
    with pytest.raises(UserError, match="no action_gradient"):
        teachers.load(SWING_UP, envs.spec(TASK), "action_gradients", CPU)


def test_the_torch_teacher_is_the_snapshot_whose_weights_it_reads():
    teacher, snapshot = (teachers.load(name, envs.spec(TASK), "action_gradients", CPU) for name in (TORCH, "expert"))
    generator = torch.Generator().manual_seed(0)
    obs, action = (torch.rand(64, size, generator=generator) * 2 - 1 for size in (5, 1))
    gradient = teacher.action_gradient(obs, action)
    torch.testing.assert_close(teacher.action(obs), snapshot.action(obs))
    torch.testing.assert_close(gradient, snapshot.action_gradient(obs, action))
    assert (gradient != 0).all() and not gradient.requires_grad


def test_the_torch_teacher_gives_gradients(tmp_path):
    run_dir = run_row("tg:1", tmp_path / "run", tmp_path / "demos", teacher=TORCH, **SHORT)
    assert report(run_dir)["teacher_queries"] == {"states_annotated": 0, "gradients_asked": 20 * SMALL["batch_size"]}
    returns = files.load_json(run_dir / "teacher.json", "evaluation")["returns"]
    snapshot = teachers.load("expert", envs.spec(TASK), "actions", CPU)
    assert np.mean(returns) == pytest.approx(snapshot.metadata["score"], rel=0.1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="--compile needs a C++ compiler")
def test_an_update_with_the_torch_teacher_compiles_whole_with_weights_of_its_own(tmp_path, monkeypatch):
    save_teacher(tmp_path / "made-up.pt", gbrl_d4pg)
    shutil.copy(EXAMPLES / "torch_teacher.py", tmp_path)
    teacher = teachers.load(f"{tmp_path}/torch_teacher.py:PolicyWithCritic", ENV, "action_gradients", CPU)
    snapshot = teachers.load_snapshot(tmp_path / "made-up.pt", CPU)
    script, args = make_args("tg")
    agent, batch, progress = make_agent(script, args), make_batch(0), torch.full((), 0.1)
    # Tracing is what a teacher can break; this back end does it all and leaves the slow writing of C++ out.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    compiled = run.compiled(script.gradients, CPU)(args, agent, teacher, batch, progress)
    eager = script.gradients(args, agent, snapshot, batch, progress)
    torch.testing.assert_close(compiled, eager)


def test_missing_weights_are_a_sentence(tmp_path):
    shutil.copy(EXAMPLES / "torch_teacher.py", tmp_path)
    with pytest.raises(UserError, match=r"there are no weights for made-up: save them as .*made-up\.pt"):
        teachers.load(f"{tmp_path}/torch_teacher.py:PolicyWithCritic", ENV, "actions", CPU)
