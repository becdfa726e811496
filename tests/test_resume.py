"""A run that is ended at any moment goes on to the same end, bit for bit; one that isn't the same run is refused."""

import dataclasses
import hashlib
import importlib.metadata
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import FILE, TOY, differences, live, make_args, own, report, result, run_method, script
from tqdm import tqdm

from common import UserError, envs, files, launch, snapshots
from common import run as run_module
from common.metrics import Metrics
from common.replay import Replay
from common.run import Run
from common.workers import Workers

STEPS = ((0, 3), (0, 39), (0, 50), (1, 0), (1, 20), (2, 40), (2, 50), (2, 60))
ONLINE = {"teacher": "none", "num_cycles": 8, "keep_every": 3}
ONLINE_STEPS = [(cycle, step) for cycle in range(1, 9) for step in range(7, 61, 10)]
ENDS = {  # method, flags, how it is ended, and at how many moments at least
    "killed": ("ta:1", {}, {"renames": True}, 30),
    "signalled": ("bc_reg_decay:5", {"demos_in_replay": True}, {"renames": True, "number": signal.SIGTERM}, 25),
    "online": ("bc", ONLINE, {"renames": True, "steps": ONLINE_STEPS}, 25),
    "tracked, in workers": ("ta_qf", {"track": True, "num_workers": 1}, {"steps": ((0, 50), (2, 60))}, 2),
}


def end_everywhere(method, args, steps=STEPS, **how):
    """End a run at each moment, and resume it each time; returns the number of moments."""
    seen = []
    while (moment := live(method, args, steps=steps, seen=seen, **how)) is not None:
        seen.append(moment)
    return len(seen)


def names(run_dir):
    return {path.relative_to(run_dir) for path in run_dir.rglob("*") if "wandb" not in str(path.relative_to(run_dir))}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_is_ended_everywhere_comes_to_the_same_end(end, tmp_path, demo_dir, monkeypatch):
    method, flags, how, at_least = ENDS[end]
    if "track" in flags:
        import wandb  # noqa: F401 (once for all lives)

        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of another test, which would outlive a killed run
    left_alone = run_method(method, tmp_path / "alone", demo_dir, **(TOY | flags | {"track": False}))
    _, args = make_args(method, tmp_path / "run", tmp_path / "demos", **(TOY | flags))
    assert end_everywhere(method, args, **how) >= at_least
    assert differences(result(tmp_path / "run"), result(left_alone)) == []
    assert names(tmp_path / "run") == names(left_alone)
    ids = {path.name.split("-")[-1] for path in tmp_path.glob("run/wandb/offline-run-*")}
    assert len(ids) == ("track" in flags)


SIGNALS_ITSELF = """
class Signals(Pusher):
    def action_gradient(self, obs, action):
        if len(obs) == 32 and not os.path.exists(f"{HERE}/mark"):  # an update's batch
            open(f"{HERE}/mark", "w").close()
            os.kill(os.getpid(), 15)
        return super().action_gradient(obs, action)
"""


def test_a_signal_saves_and_says_how_to_go_on_from_any_folder(tmp_path):
    own(tmp_path, "Signals", SIGNALS_ITSELF)
    module, args = make_args("tg:1", "run", "demos", **TOY)
    args = dataclasses.replace(args, env_id="mine.py:Point", teacher="mine.py:Signals")

    def call(folder, *words):
        return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)

    words = launch.command(args, module.__file__).split()[1:]
    done = call(tmp_path, *words, "--run-dir", "run")
    assert done.returncode == 128 + signal.SIGTERM and "Traceback" not in done.stderr
    said, _, hint = done.stderr.splitlines()[-1].partition("; go on with: python ")
    assert said == "interrupted by SIGTERM"
    assert files.load_torch(tmp_path / "run" / "checkpoint.pt", "checkpoint")["step"] == 1  # the step was finished
    refused = call(tmp_path, words[0], "--resume", "run", "--seed", "2")
    assert refused.returncode == 1 and "was started with --seed 1, not 2" in refused.stderr
    (tmp_path / "elsewhere").mkdir()
    assert call(tmp_path / "elsewhere", *shlex.split(hint)).returncode == 0
    assert list((tmp_path / "elsewhere").iterdir()) == []  # the demonstrations aren't made again


@pytest.mark.parametrize(
    ("owner", "name", "flags", "moments"),
    [
        (Workers, "episodes", {"num_cycles": 3}, [(0, 0), (1, 0), (4, 61)]),  # of demonstrations, then of scores
        (Workers, "steps", {"keep_every": 5}, [(1, 0), (2, 32)]),  # of deployments
        (Metrics, "save", {"checkpoint_every": 15}, [(0, 15), (0, 45), (1, 30)]),
        (snapshots, "save", {}, [(1, 0), (3, 61)]),
        (tqdm, "update", {}, [(0, 0), (0, 1), (0, 4)]),  # after demonstrations, then between two steps
        (Replay, "annotate", {"num_cycles": 3, "learner_steps": 3}, [(0, 1), (2, 0)]),  # in a cycle without an update
    ],
)
def test_a_signal_loses_no_step_wherever_it_comes(owner, name, flags, moments, tmp_path, demo_dir, monkeypatch):
    flags = TOY | {"checkpoint_every": 1000} | flags
    expected = result(run_method("ta:1", tmp_path / "alone", demo_dir, **flags))
    module, args = make_args("ta:1", tmp_path / "run", tmp_path / "demos", **flags)
    calls_left, honest = [], getattr(owner, name)

    def signal_at_last(*arguments, **named):
        if calls_left:
            calls_left.pop()
            if not calls_left:
                signal.raise_signal(signal.SIGTERM)
        return honest(*arguments, **named)

    monkeypatch.setattr(owner, name, signal_at_last)
    for life, moment in enumerate(moments):  # the first is ended at the first call, the second at its second
        calls_left.extend([name] * (life + 1))
        with pytest.raises(KeyboardInterrupt):
            module.main(args)
        path = tmp_path / "run" / "checkpoint.pt"
        content = files.load_torch(path, "checkpoint") if path.exists() else {"cycle": 0, "step": 0}
        assert (content["cycle"], content["step"]) == moment
    assert differences(result(module.main(args)), expected) == []


def test_a_checkpoint_counts_no_line_that_a_crash_of_the_machine_could_lose(tmp_path, demo_dir, monkeypatch):
    path, synced, checked = tmp_path / "run" / "metrics.jsonl", {}, []

    def fsync(file, honest=os.fsync):
        synced[os.fstat(file).st_ino] = os.fstat(file).st_size
        honest(file)

    def replace(source, target, honest=os.replace):
        if Path(target) == tmp_path / "run" / "checkpoint.pt":
            kept = path.read_bytes()[: synced[path.stat().st_ino]]
            checked.append(kept.count(b"\n") - torch.load(source, weights_only=True)["lines"])
        honest(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    run_method("ta:1", tmp_path / "run", demo_dir, **TOY)
    assert len(checked) > 5 and not any(checked)


# ---- the same run, and no other


def copied(stopped, tmp_path, demo_dir):
    return make_args("ta:1", shutil.copytree(stopped, tmp_path / "copy"), demo_dir, **TOY)


def test_other_flags_are_refused_and_free_ones_taken(stopped, alone, tmp_path, demo_dir):
    module, args = copied(stopped, tmp_path, demo_dir)
    for flag, value in {"seed": 2, "gamma": 0.9, "decay_rate": 5.0, "scale": 0.5}.items():
        with pytest.raises(UserError, match=f"was started with --{flag.replace('_', '-')} .*, not {value};"):
            module.main(dataclasses.replace(args, **{flag: value}))
    with pytest.raises(UserError, match=r"a run of gbrl_teacher_action\.py, not of gbrl_d4pg\.py"):
        launch.saved_args(script("gbrl_d4pg").Args, stopped)
    path = Path(args.run_dir) / "checkpoint.pt"
    content = files.load_torch(path, "checkpoint")
    sampler, content["state"]["parts"]["sampler"] = content["state"]["parts"]["sampler"], torch.zeros(16).byte()
    files.save_torch(path, content)  # as a GPU's generator has it
    with pytest.raises(UserError, match="another kind of device than cpu"):
        module.main(args)
    content["state"]["parts"]["sampler"], content["seconds"]["cloning"] = sampler, 1e6
    files.save_torch(path, content)
    run_dir = module.main(dataclasses.replace(args, num_workers=1, checkpoint_every=7))
    assert report(run_dir)["seconds"]["cloning"] == 1e6 < report(run_dir)["wall_s"]  # time counts on
    assert differences(result(run_dir), result(alone("ta:1"))) == []


def test_files_of_your_own_may_move_but_not_change(alone, tmp_path, demo_dir):
    first, second = (alone("bc") / f"cycle_000{k}" / "snapshot.pt" for k in (1, 2))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]

    def arguments(folder):
        flags = TOY | {"env_id": f"{folder}/toy.py:Point", "teacher": f"{folder}/teacher.pt"}
        return make_args("ta:1", tmp_path / "run", demo_dir, **flags)

    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(FILE, old / "toy.py")
    shutil.copy(first, old / "teacher.pt")
    assert live("ta:1", arguments(old)[1], steps=[(1, 20)]) == (1, 20)
    old.rename(new)
    module, args = arguments(new)
    for name, content, sentence in (
        ("toy.py", FILE.read_bytes() + b"# changed\n", "was started with --env-id .*, not .*; start in a new folder"),
        ("teacher.pt", second.read_bytes(), "--teacher of SHA-256 {}, not of SHA-256 {};".format(*hashes)),
    ):
        before = (new / name).read_bytes()
        (new / name).write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            module.main(args)
        (new / name).write_bytes(before)
    assert report(module.main(args))["teacher"]["sha256"] == hashes[0]


def test_other_code_or_packages_are_named_and_booked(stopped, tmp_path, demo_dir, monkeypatch, capsys):
    module, args = copied(stopped, tmp_path, demo_dir)
    shutil.copytree(Path(run_module.__file__).parent, tmp_path / "common")
    monkeypatch.setattr(run_module, "__file__", str(tmp_path / "common" / "run.py"))
    (tmp_path / "common" / "new.py").touch()
    version, new = importlib.metadata.version, ("numpy", "gymnasium")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name in new else version(name))
    (changes,) = report(module.main(args))["changes"]
    packages = {name: [version(name), "0.1"] for name in new}
    assert changes == packages | {"common/new.py": [None, hashlib.sha256(b"").hexdigest()]}
    assert "warning: numpy, gymnasium, common/new.py changed since this run was started" in capsys.readouterr().out


def test_a_folder_in_use_is_refused(tmp_path, demo_dir):
    module, args = make_args("bc", tmp_path / "run", demo_dir, **TOY)
    with Run(args, "bc", envs.spec(args.env_id), None, module.__file__):
        command = [sys.executable, module.__file__, "--resume", args.run_dir]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and "run is in use by another process" in done.stderr
    shutil.rmtree(tmp_path / "run")
    module.main(args)


def test_two_runs_of_the_same_second_get_folders_of_their_own(tmp_path, demo_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_module.time, "time", lambda: 1_700_000_000.5)
    module, args = make_args("ta:1", "unused", demo_dir, **TOY)
    args.run_dir = None
    both = [Run(args, "ta:1", envs.spec(args.env_id), None, module.__file__) for _ in range(2)]
    assert [one.dir.name for one in both] == [f"toy.py-Point__ta-1__1__170000000{i}" for i in range(2)]


# ---- --pretrained


def test_a_clone_that_is_taken_over_is_as_one_that_was_made(alone, tmp_path, demo_dir, monkeypatch):
    """Also if the run is ended at each moment, and from a run that took the clone over itself."""
    shutil.copytree(alone("bc"), tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    args = make_args("ta:1", "second", "demos", pretrained="first", **TOY)[1]
    assert end_everywhere("ta:1", args, renames=True) > 25
    assert differences(result(tmp_path / "second"), result(alone("ta:1"))) == []
    assert names(tmp_path / "second") == names(alone("ta:1"))
    assert [report(run)["clone"]["from"] for run in (alone("ta:1"), tmp_path / "second")] == [None, "first"]
    shutil.rmtree("first")
    run_dir = run_method("tg:1", "third", "demos", pretrained="second", **TOY)
    assert differences(result(run_dir), result(alone("tg:1"))) == []


def test_a_clone_of_another_run_is_refused(alone, tmp_path, demo_dir):
    live("bc", make_args("bc", tmp_path / "unfinished", demo_dir, **TOY)[1], steps=[(0, 50)])
    shutil.copytree(alone("bc"), tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.jsonl").write_text("cycle\n")
    other = {"teacher": str(alone("bc") / "cycle_0001" / "snapshot.pt")}
    for source, flags, sentence in (
        (alone("bc"), {"seed": 2}, "--seed 1, not 2; give --pretrained another run"),
        (alone("ta_qf"), {}, "--method ta_qf, not ta"),
        (alone("bc"), {"bc_steps": 41}, "--bc-steps 40, not 41"),
        (alone("bc"), other, "--teacher of SHA-256 .*, not of "),
        (tmp_path / "unfinished", {}, "no run that has finished its pre-training"),
        (tmp_path / "nowhere", {}, "no run that has finished its pre-training"),
        (tmp_path / "damaged", {}, "metrics.jsonl has lost lines that its run wrote"),
    ):
        with pytest.raises(UserError, match=f"{source}.*{sentence}"):
            run_method("ta:1", tmp_path / "run", demo_dir, pretrained=str(source), **(TOY | flags))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]  # nothing of it is left
