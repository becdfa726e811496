"""Bad input gets one sentence before any work starts; `--help` documents every flag."""

import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import SCRIPTS, SMALL, run_row, script

from common import UserError, envs, files, teachers

BAD = [
    ({"env_id": "cartpole-swing_up"}, "cartpole-swingup"),
    ({"env_id": "nonsense"}, "no such task"),
    ({"env_id": "lqr-lqr_2_1"}, "no bounds|no time limit"),
    ({"env_id": "quadruped-escape"}, "renderer"),
    ({"teacher": "nowhere.pt"}, "no nowhere.pt"),
    ({"teacher": "nowhere.py:Teacher"}, "no file"),
    ({"teacher": "mid", "env_id": "hopper-hop"}, "there is no .*hopper-hop-mid.pt"),
    ({"scale": 0.0}, "--scale must be above 0"),
    ({"scale": float("nan")}, "--scale must be above 0"),
    ({"num_cycles": 4}, "--num-cycles 4: .* 3 episodes"),
    ({"num_cycles": 0}, "--num-cycles must be above 0"),
    ({"num_atoms": 1}, "1 atoms"),
    ({"v_min": 1.0, "v_max": 0.0}, "v-min < v-max"),
    ({"gamma": 1.1}, "--gamma 1.1"),
    ({"sigma": -0.1}, "--sigma must not be negative"),
    ({"eval_episodes": 11}, "--eval-episodes 11"),
    ({"buffer_size": 2_999}, "--buffer-size 2999"),
    ({"run_dir": "/proc/run"}, "can't be written"),
]


@pytest.mark.parametrize(("flags", "sentence"), BAD)
def test_bad_input_is_refused_before_any_work(flags, sentence, tmp_path):
    module = script("gbrl_d4pg")
    args = module.Args(**(SMALL | {"run_dir": str(tmp_path / "run"), "demo_dir": str(tmp_path / "demos")} | flags))
    with pytest.raises(UserError, match=sentence):
        module.main(args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        ("gbrl_bc_reg", {"decay_rate": 0.0}, "--decay-rate"),
        ("gbrl_bc_reg", {"bc_weight": -1.0}, "--bc-weight"),
        ("gbrl_teacher_action", {"beta": -1.0}, "--beta"),
        ("gbrl_teacher_action", {"beta": 0.0, "beta_decay": True}, "--beta"),
        ("gbrl_teacher_grad", {"teacher_dqda_clip": 0.0}, "--teacher-dqda-clip"),
    ],
)
def test_a_script_checks_its_own_flags(name, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        script(name).Args(**flags).resolved(envs.spec("cartpole-swingup"))


def test_no_flags_is_the_papers_protocol_and_scale_a_fraction_of_it():
    spec = envs.spec("cartpole-swingup")
    full, small = script("gbrl_d4pg").Args().resolved(spec), script("gbrl_d4pg").Args(scale=0.02).resolved(spec)
    assert (full.actor_steps, full.learner_steps, full.demo_episodes) == (2_000_000, 250_000, 1_000)
    assert (full.num_cycles, full.batch_size, full.n_step, full.num_atoms) == (4, 256, 5, 51)
    assert (full.v_min, full.v_max, full.learning_rate, full.buffer_size) == (-150, 150, 1e-4, 10_000_000)
    assert (small.actor_steps, small.learner_steps, small.critic_steps) == (40_000, 5_000, 2_000)
    assert (small.demo_episodes, small.bc_steps) == (100, full.bc_steps)


def test_a_truncated_snapshot_and_a_folder_in_the_way(tmp_path):
    good = teachers.SHIPPED / "cartpole-swingup-expert.pt"
    (tmp_path / "short.pt").write_bytes(good.read_bytes()[:1000])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    module, before = script("gbrl_d4pg"), sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"short\.pt is damaged"):
        module.main(module.Args(**SMALL, teacher=str(tmp_path / "short.pt"), run_dir=str(tmp_path / "run")))
    with pytest.raises(UserError, match="neither empty nor a run"):
        module.main(module.Args(**SMALL, run_dir=str(tmp_path / "thesis")))
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != ".lock"] == before


def test_mujoco_4_is_a_sentence_with_the_cure(monkeypatch):
    honest = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0" if name == "mujoco" else honest(name))
    envs._suite.cache_clear()
    with pytest.raises(UserError, match=r"pip install dm-control==1\.0\.50 mujoco==3\.17\.0"):
        envs.Env("cartpole-swingup")
    envs._suite.cache_clear()


def test_a_mistake_on_the_command_line_is_one_line_and_a_status(tmp_path):
    command = [sys.executable, str(teachers.SHIPPED.parent / "gbrl_teacher_grad.py"), "--env-id", "cheetah-rum"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "cheetah-run" in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_gives_every_flag_with_the_source_of_its_default(name):
    source = Path(script(name).__file__).read_text()
    for field in dataclasses.fields(script(name).Args):
        text = re.search(rf'^    {field.name}: .*\n    """(.*)"""$', source, re.MULTILINE)
        assert text is not None, field.name
        assert re.search(r"\[(paper|Acme|CleanRL|ours).*\]$", text[1]), field.name


def test_the_scripts_help_prints(tmp_path):
    environment = os.environ | {"COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, str(teachers.SHIPPED.parent / "gbrl_teacher_action.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert "--beta-decay" in text and "equation 6, or 7 with the Q-filter" in text and "[paper 3.4]" in text


TEACHER = """
import torch
class Good:
    def __init__(self, env_id, device): self.size = 1
    def action(self, obs): return -obs[:, :1].clamp(-1, 1)
    def action_gradient(self, obs, action): return -action
class Raises(Good):
    def action(self, obs): raise RuntimeError("no idea")
class Wide(Good):
    def action(self, obs): return torch.zeros(len(obs), 2)
class Nan(Good):
    def action(self, obs): return torch.full((len(obs), 1), float("nan"))
class Far(Good):
    def action(self, obs): return torch.full((len(obs), 1), 2.0)
class NoSlope(Good):
    def action_gradient(self, obs, action): raise RuntimeError("flat")
class WideSlope(Good):
    def action_gradient(self, obs, action): return torch.zeros(len(obs), 2)
class NanSlope(Good):
    def action_gradient(self, obs, action): return action / 0
class LateNan(Good):
    def action_gradient(self, obs, action): return 1 / (obs[:, :1].abs() < 1e-6).float() - action
class BatchNan(Good):  # finite until learning asks about a batch of 32
    def action_gradient(self, obs, action): return action / (len(obs) != 32)
class Mute:
    def __init__(self, env_id, device): pass
    def action(self, obs): return torch.zeros(len(obs), 1)
class Broken:
    def __init__(self): pass
"""
ANSWERS = {
    "Raises": "Raises: action raised RuntimeError.*no idea",
    "Wide": r"Wide: action returned torch.float32 \(2, 2\)",
    "Nan": "Nan: action returned entries of size nan",
    "Far": "Far: action returned entries of size 2",
    "NoSlope": "NoSlope: action_gradient raised RuntimeError.*flat",
    "WideSlope": r"WideSlope: action_gradient returned torch.float32 \(2, 2\)",
    "NanSlope": r"NanSlope: action_gradient returned \[nan\] at observation \[0.0, .* and action \[0.0\]",
    "Broken": "Broken: building it raised TypeError",
    "Missing": "defines no Missing",
    "Mute": "no action_gradient",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_bad_teacher_class_is_reported_by_name(name, tmp_path):
    (tmp_path / "mine.py").write_text(TEACHER)
    with pytest.raises(UserError, match=ANSWERS[name]):
        spec = envs.spec("cartpole-swingup")
        teachers.load(f"{tmp_path}/mine.py:{name}", spec, "action_gradients", torch.device("cpu"))


def test_a_gradient_that_is_not_finite_on_real_states_is_reported_before_learning(tmp_path, demo_dir):
    (tmp_path / "mine.py").write_text(TEACHER)
    teacher = f"{tmp_path}/mine.py:LateNan"
    with pytest.raises(UserError, match=r"LateNan: action_gradient returned \[inf\] at observation \[-?0\.\d"):
        run_row("tg:1", tmp_path / "run", demo_dir, teacher=teacher)
    assert not (tmp_path / "run" / "cycle_0000").exists()


def test_a_gradient_that_stops_being_finite_names_the_teacher(tmp_path, demo_dir):
    (tmp_path / "mine.py").write_text(TEACHER)
    match = r"cycle 1, or an action_gradient of teacher .*mine\.py:BatchNan, stopped being finite at its step 0"
    with pytest.raises(UserError, match=match):
        run_row("tg:1", tmp_path / "run", demo_dir, teacher=f"{tmp_path}/mine.py:BatchNan")


def test_a_good_teacher_class_pickles_and_answers(tmp_path):
    import pickle

    (tmp_path / "mine.py").write_text(TEACHER)
    spec, obs = envs.spec("cartpole-swingup"), torch.rand(3, 5)
    teacher = teachers.load(f"{tmp_path}/mine.py:Good", spec, "action_gradients", torch.device("cpu"))
    again = pickle.loads(pickle.dumps(teacher))
    assert torch.equal(teacher.action(obs), again.action(obs)) and teacher.sha256 == again.sha256
    assert torch.equal(teacher.action_gradient(obs, torch.ones(3, 1)), -torch.ones(3, 1))


def test_demonstrations_are_cached_extended_and_made_again(tmp_path):
    from common.rollouts import Workers

    spec, workers = envs.spec("cartpole-balance"), Workers(0)
    teacher = teachers.load("expert", spec, "demonstrations", torch.device("cpu"))

    def demos(n):
        return teachers.demonstrations(teacher, spec, n, 0.0, tmp_path, workers)

    two = demos(2)
    (path,) = tmp_path.glob("*.npz")
    stamp = path.stat().st_mtime_ns
    assert len(demos(1)) == 1 and path.stat().st_mtime_ns == stamp  # read, not made
    three = demos(3)
    assert all((a == b).all() for x, y in zip(two, three, strict=False) for a, b in zip(x, y, strict=True))
    whole = path.read_bytes()
    for damage in (whole[:100], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damage)
        assert (demos(1)[0].obs == two[0].obs).all()
    arrays = files.load_arrays(path, "demonstrations")
    own = str(arrays["origin"])
    for word in ("cartpole-balance", teacher.sha256, "sigma 0", "dm-control 1", "mujoco 3"):
        assert word in own
        foreign = {"origin": own.replace(word, f"{word}9"), "obs": arrays["obs"] + 1}
        files.save_arrays(path, **(arrays | foreign))
        assert (demos(1)[0].obs == two[0].obs).all(), word
    files.save_arrays(path, **(arrays | {"obs": arrays["obs"] + 1}))
    assert (demos(1)[0].obs == two[0].obs + 1).all()  # its own origin: taken as it is
