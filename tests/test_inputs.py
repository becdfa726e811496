"""Bad input gets one sentence before any work starts; the answers of your own code are checked."""

import concurrent.futures
import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys
import traceback
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from small import CPU, SCRIPTS, SMALL, TOY, equal, own, run_method, script

from common import UserError, envs, launch, teachers
from common.rollouts import episode_seeds, run_block
from common.workers import Workers

SPEC = envs.spec(TOY["env_id"])
BAD = [
    ({"env_id": "cartpole-swing_up"}, "cartpole-swingup"),
    ({"env_id": "nonsense"}, "no such task"),
    ({"env_id": "Nonsense-v1"}, "--env-id Nonsense-v1.*(doesn't exist|Gymnasium)"),
    ({"env_id": "lqr-lqr_2_1"}, "no bounds|no time limit"),
    ({"teacher": "nowhere.pt"}, r"no .*nowhere\.pt"),
    ({"teacher": "nowhere.py:Teacher"}, "no file"),
    ({"teacher": TOY["teacher"].replace("Pusher", "Nobody")}, r"toy\.py defines no Nobody"),
    ({"teacher": "mid", "env_id": "hopper-hop"}, r"there is no .*hopper-hop-mid\.pt"),
    ({"sigma": -0.1}, "--sigma .*: it should be greater than or equal to 0"),
    ({"num_cycles": 5}, "--num-cycles 5: .* 4 episodes"),
    ({"v_min": 1.0, "v_max": 0.0}, "v-min < v-max"),
    ({"buffer_size": 3_999}, "--buffer-size 3999"),
    ({"teacher": "none", "demos_in_replay": True}, "--demos-in-replay needs a teacher"),
    ({"run_dir": "/proc/run"}, "can't be written"),
]


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [*(("gbrl_d4pg", *bad) for bad in BAD), *((name, {"teacher": "none"}, "--teacher none") for name in SCRIPTS[1:])],
)
def test_bad_input_is_refused_before_any_work(name, flags, sentence, tmp_path):
    module = script(name)
    args = module.Args(**(SMALL | {"run_dir": str(tmp_path / "run"), "demo_dir": str(tmp_path / "demos")} | flags))
    with pytest.raises(UserError, match=sentence):
        module.main(args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_number_may_be_infinite_except_the_clips_and_none_nan(name):
    clips = {"dqda_clip", "teacher_dqda_clip", "max_grad_norm"}
    for flag, hint in typing.get_type_hints(script(name).Args).items():
        if hint is bool or not {int, float} & {hint, *typing.get_args(hint)}:
            continue
        for value in (np.nan, -np.inf, *([] if flag in clips else [np.inf])):
            with pytest.raises(UserError, match=f"^--{flag.replace('_', '-')} {value}: it should be "):
                launch.checked(script(name).Args(**{flag: value}))


def test_a_folder_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "chapter.tex").write_text("...")
    with pytest.raises(UserError, match="neither empty nor a run"):
        run_method("bc", tmp_path, tmp_path / "demos", **TOY)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["chapter.tex"]


def test_mujoco_4_is_a_sentence_with_the_cure(monkeypatch):
    honest = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0" if name == "mujoco" else honest(name))
    envs._suite.cache_clear()
    with pytest.raises(UserError, match=r"pip install dm-control==1\.0\.50 mujoco==3\.17\.0"):
        envs.Env("cartpole-swingup")
    envs._suite.cache_clear()


# ---- the command line


def call(name, *words, **environment):
    command = [sys.executable, script(name).__file__, *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--env-id=cheetah-rum",), ".*cheetah-run"),
        (("--track",), "--track: you aren't logged in; run `wandb login`, set WANDB_MODE=offline, or "),
    ],
)
def test_mistakes_are_one_line_and_a_status(words, said, tmp_path):
    nowhere = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": "", "WANDB_MODE": "online"}
    done = call("gbrl_teacher_grad", *words, "--run-dir", f"{tmp_path}/run", **nowhere)
    assert (done.returncode, done.stdout) == (1, "") and not (tmp_path / "run").exists()
    assert re.match(f"error: {said}", done.stderr) and done.stderr.count("\n") == 1


def test_help_gives_every_flag_with_the_source_of_its_default():
    done = call("gbrl_teacher_action", "--help", COLUMNS="160", NO_COLOR="1")
    assert done.returncode == 0 and "--beta-decay" in done.stdout and "[paper 3.4]" in done.stdout
    for name in SCRIPTS:
        source = Path(script(name).__file__).read_text() + Path(launch.__file__).read_text()
        for field in dataclasses.fields(script(name).Args):
            text = re.search(rf'^    {field.name}: .*\n    """(.*)"""$', source, re.MULTILINE)
            assert text is not None and re.search(r"\[(paper|Acme|CleanRL|ours).*\]$", text[1]), field.name


# ---- a teacher of one's own

# What stands in its class, and what is said of it.
WRONG = {
    "def action(self, obs): raise RuntimeError('no idea')": r"action raised RuntimeError\('no idea'\)",
    "def action(self, obs): sys.exit(0)": r"action raised SystemExit\(0\)",
    "def action(self, obs): return torch.zeros(len(obs), 3)": r"action returned torch.float32 \(2, 3\)",
    "def action(self, obs): return obs[:, :1].to('meta')": r"action returned .* on meta, expected .* on cpu",
    "def action(self, obs): return obs[:, :1] + 2": "action returned entries of size 2",
    "def __init__(self): pass": r"building it raised TypeError",
    "action_gradient = property()": "it gives actions, and this method needs action_gradients",
}


@pytest.mark.parametrize("code", WRONG)
def test_what_a_teacher_does_wrong_is_told_with_its_name_and_line(code, tmp_path):
    """A wrong answer is one sentence; what the class raises itself comes through, with its line and one sentence."""
    name = own(tmp_path, "Mine", f"class Mine(Pusher):\n    {code}\n")
    with pytest.raises(Exception) as caught:
        teachers.load(name, SPEC, "action_gradients", CPU)
    text = "".join(traceback.format_exception(caught.value))
    assert re.search(f"{re.escape(name)}: {WRONG[code]}", text), text
    assert isinstance(caught.value, UserError) == (" raised " not in WRONG[code])
    if "raise" in code or "exit" in code:
        assert f'File "{tmp_path}/mine.py"' in text and code.partition(": ")[2] in text


@pytest.mark.parametrize(("code", "error"), [("def", "SyntaxError"), ("raise ValueError", "ValueError")])
def test_a_file_that_cannot_be_imported_is_told_with_its_name(code, error, tmp_path):
    name = own(tmp_path, "Mine", code)
    with pytest.raises(RuntimeError, match=f"mine.py: importing it raised {error}"):
        envs.load_class(name)


@pytest.mark.parametrize("workers", (0, 1))
def test_an_exception_of_your_own_that_cannot_be_copied_comes_back_from_a_worker(workers, tmp_path):
    code = "def action(self, obs): return super().action(obs) if len(obs) < 10 else {}[lambda: 'a KeyError']"
    name = own(tmp_path, "Mine", f"class Mine(Pusher):\n    {code}\n")
    teacher, pool = teachers.load(name, SPEC, "demonstrations", CPU), Workers(SPEC, workers)
    with pytest.raises(RuntimeError) as caught:
        pool.episodes(teacher.action, 0.3, (7,), range(2), "raises")
    pool.close()
    text = "".join(traceback.format_exception(caught.value))
    assert f"{name}: action raised " in text and f'File "{tmp_path}/mine.py"' in text, text


COUNTED = """
open(f"{HERE}/imports", "a").write(f"{os.getpid()}\\n")


class Mine(Pusher):
    def __init__(self, env_id, device):
        open(f"{HERE}/teachers", "a").write(f"{os.getpid()}\\n")
"""


def test_a_file_is_imported_and_a_teacher_built_once_in_a_process(tmp_path):
    teacher, pool = teachers.load(own(tmp_path, "Mine", COUNTED), SPEC, "actions", CPU), Workers(SPEC, 1)
    there = pool.episodes(teacher.action, 0.3, (7,), range(30), "there")
    pool.close()
    assert equal(there, Workers(SPEC, 0).episodes(teacher.action, 0.3, (7,), range(30), "here"))
    for what in ("imports", "teachers"):
        pids = (tmp_path / what).read_text().split()
        assert len(pids) == len(set(pids)) == 2


def test_content_counts_not_the_place_but_two_files_of_one_name_are_two(tmp_path):
    names = [f"{tmp_path}/{folder}/mine.py:Mine" for folder in ("one", "two")]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("class Mine: pass\nclass Other: pass\n")
    assert envs.digest(names[0]) == envs.digest(names[1]) != envs.digest(names[0].replace("Mine", "Other"))
    assert envs.load_class(names[0]) is envs.load_class(names[0]) is not envs.load_class(names[1])


def test_a_gradient_that_is_not_finite_names_the_teacher(tmp_path, demo_dir):
    code = "class Mine(Pusher):\n    def action_gradient(self, obs, action): return action / (len(obs) != 32)\n"
    sentence = r"policy has parameters that aren't finite in cycle 1 at step 15: .* teacher .*mine\.py:Mine"
    with pytest.raises(UserError, match=sentence):
        run_method("tg:1", tmp_path / "run", demo_dir, **(TOY | {"teacher": own(tmp_path, "Mine", code)}))


def test_a_teacher_that_writes_into_what_it_is_given_changes_nothing(tmp_path):
    code = "class Mine(Pusher):\n    def action(self, obs): return obs.zero_()[:, :1]\n"
    code += "    def action_gradient(self, obs, action): return action.zero_()\n"
    teacher = teachers.load(own(tmp_path, "Mine", code), SPEC, "action_gradients", CPU)
    obs, action = torch.ones(4, 2), torch.ones(4, 1)
    assert not teacher.action(obs).any() and not teacher.action_gradient(obs, action).any()
    assert obs.all() and action.all()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def step(self, action): return *super().step(action), False", "step must return obs, reward, terminated, "),
        ("def step(self, action): return self.state, 'a lot', False, False, {}", "step returned the reward 'a lot'"),
        ("def step(self, action): return np.nan * self.state, 0, 0, 0, {}", ".*an observation that isn.t finite"),
        ("def step(self, action): return self.state[:1], 0, False, False, {}", "observation of 1 numbers; .* has 2"),
        ("def reset(self, seed): return self.__dict__", "reset must return obs, info, as Gymnasium's"),
        ("def reset(self, seed): return np.random.rand(2), {}", "another start the second time; draw it from the seed"),
        ("action_space = SimpleNamespace(shape=(1,), low=-1.0, high=np.inf)", "its actions have no bounds"),
        ("action_space = SimpleNamespace(shape=(1,), low=0, high=3, dtype='int64')", "only real numbers"),
        ("observation_space = SimpleNamespace(shape=(), n=3)", "observation_space must be a Box or a Dict of Boxes"),
        ("max_episode_steps = None", "no time limit; your own class gives it as max_episode_steps"),
    ],
)
def test_what_a_task_answers_wrongly_is_one_sentence(code, sentence, tmp_path):
    name = own(tmp_path, "Mine", f"class Mine(Point):\n    {code}\n")
    with pytest.raises(UserError, match=f"{name}.* {sentence}"):
        run_block(name, lambda obs: torch.zeros(len(obs), 1), 0.0, (1,), range(1))


DICT = """
def box(shape, low, high):
    return SimpleNamespace(shape=shape, low=low, high=high, dtype=np.float64)


class Mine:
    observation_space = SimpleNamespace(spaces={"b": box((2, 2), -9, 9), "a": box((), -9, 9)})
    action_space = box((1, 2), np.array([[-1.0, 0.0]]), np.array([[3.0, 0.5]]))
    spec = SimpleNamespace(max_episode_steps=6)

    def reset(self, seed=None, options=None):
        self.steps = 0
        return {"a": np.float32(seed % 7), "b": np.arange(4).reshape(2, 2)}, {}

    def step(self, action):
        assert action.shape == (1, 2) and action.dtype == np.float64
        self.steps += 1
        obs = {"a": action.sum(), "b": np.repeat(action, 2, 0)}
        return obs, np.array([self.steps / 2]), self.steps == 3 and action[0, 0] > 2.9, False, {}
"""


@pytest.mark.parametrize("push", (1.0, -0.5))
def test_dict_observations_asymmetric_bounds_and_both_ends_of_an_episode(push, tmp_path):
    """The space's order counts, not the observation's; a termination has discount 0, the time limit has 1."""
    name = own(tmp_path, "Mine", DICT)
    assert envs.spec(name) == envs.EnvSpec(name, 5, 2, 6)
    (episode,) = run_block(name, lambda obs: torch.tensor([[push, 0.0]]).repeat(len(obs), 1), 0.0, (1,), range(1))
    steps, seed = 3 if push == 1 else 6, episode_seeds((1,), 0)[0]
    action = [3.0 if push == 1 else 0.0, 0.25]  # the middle of [0, 0.5], and the end or the half of [-1, 1] there
    assert episode.obs[0].tolist() == [0, 1, 2, 3, seed % 7]
    assert episode.obs[1:].tolist() == [[*action, *action, sum(action)]] * steps
    assert episode.action.tolist() == [[push, 0.0]] * steps  # stored as the policy's, within [-1, 1]
    assert episode.reward.tolist() == [(t + 1) / 2 for t in range(steps)]
    assert episode.discount.tolist() == [1.0] * (steps - 1) + [0.0 if push == 1 else 1.0]


def test_numpys_numbers_and_paths_are_plain_values():
    args = launch.checked(script("gbrl_d4pg").Args(seed=np.int64(3), demo_dir=Path("demos")))
    assert [(type(value), value) for value in (args.seed, args.demo_dir)] == [(int, 3), (str, "demos")]


def test_threads_and_determinism_are_as_the_flags_say():
    for threads, deterministic in ((2, False), (1, True)):  # and so as they were
        args = script("gbrl_d4pg").Args(torch_threads=threads, torch_deterministic=deterministic)
        assert launch.configure_torch(args) == launch.learner_device(args)
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, deterministic)


def test_the_words_of_a_wandb_sweep_are_taken():
    words = {"--compile=True": "--compile", "--cuda=False": "--no-cuda", "--seed=3.0": "--seed=3", "--seed=1.5": None}
    words |= {"--actor-steps=2e6": "--actor-steps=2000000", "--sigma=0.5": None, "--env-id=x": None}
    expected = [plain or word for word, plain in words.items()]
    assert launch.plain_words([*words], script("gbrl_d4pg").Args) == expected


def test_a_run_in_a_thread_and_with_a_notebooks_back_end_is_a_run(tmp_path, demo_dir, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        run_dir = thread.submit(run_method, "bc", tmp_path / "run", demo_dir, **TOY).result()
    assert (run_dir / "learning_curve.png").stat().st_size > 10_000
