"""A run that is ended at any moment goes on to the same end, bit for bit; one that isn't the same run is refused."""

import dataclasses
import importlib.metadata
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import TOY, differences, live, make_args, metrics, report, result, run_row, script

from common import UserError, files, folder, launch

STEPS = ((0, 3), (0, 39), (0, 50), (1, 0), (1, 20), (2, 33), (2, 50), (2, 60))
ENDS = {
    "killed": ("ta:1", {}, {"renames": True}),
    "signalled": ("bc_reg_decay:5", {"demos_in_replay": True}, {"renames": True, "number": signal.SIGTERM}),
    "online": ("bc", {"teacher": "none", "num_cycles": 20, "keep_every": 3}, {"renames": True}),
    "tracked": ("ta_qf", {"track": True}, {"steps": ((0, 50), (2, 50))}),
    "compiled": ("bc", {"compile": True}, {"steps": ((2, 50),)}),
    "random numbers of a fork": ("tg:1", {}, {}),
}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def torment(row, args, steps=STEPS, **how):
    """Let a run be ended at each moment, and go on each time; returns the moments."""
    seen = []
    while (moment := live(row, args, steps=steps, seen=seen, **how)) is not None:
        seen.append(moment)
    return seen


def names(run_dir):
    return {path.relative_to(run_dir) for path in run_dir.rglob("*") if "wandb" not in path.parts}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, demo_dir):
    """Runs that are left alone, each made once."""
    done = {}

    def get(row):
        if row not in done:
            done[row] = run_row(row, tmp_path_factory.mktemp("alone") / "run", demo_dir, **TOY)
        return done[row]

    return get


@pytest.fixture
def stopped(tmp_path, demo_dir):
    """The arguments of a run that was killed in cycle 2."""
    _, args = make_args("ta:1", tmp_path / "stopped", demo_dir, **TOY)
    assert live("ta:1", args, steps=[(2, 50)]) == (2, 50)
    return args


@pytest.mark.parametrize("end", [pytest.param(end, marks=needs_compiler if end == "compiled" else ()) for end in ENDS])
def test_a_run_that_is_ended_everywhere_comes_to_the_same_end(end, tmp_path, demo_dir, monkeypatch):
    row, flags, how = ENDS[end]
    if end == "tracked":
        import wandb  # noqa: F401 (once for all lives)

        monkeypatch.setenv("WANDB_MODE", "offline")
    if end == "random numbers of a fork":
        module = script("gbrl_teacher_grad")
        honest = module.critic_loss
        monkeypatch.setattr(module, "critic_loss", lambda *rest: honest(*rest) * torch.rand(()))
    left_alone = run_row(row, tmp_path / "alone", demo_dir, **(TOY | flags | {"track": False}))
    _, args = make_args(row, tmp_path / "run", tmp_path / "demos", **(TOY | flags))
    moments = torment(row, args, **how)
    assert len(moments) >= (30 if "renames" in how else len(how.get("steps", STEPS)))
    assert differences(result(tmp_path / "run"), result(left_alone)) == []
    assert names(tmp_path / "run") == names(tmp_path / "alone")
    if end != "online":  # it was ended in critic evaluation, before this line was written
        (line,) = [line for line in metrics(tmp_path / "run") if "teacher/episodic_return" in line]
        assert line["pretrain_step"] == 60
    if end == "tracked":
        assert len({path.name.split("-")[-1] for path in tmp_path.glob("run/wandb/offline-run-*")}) == 1


SIGNALS_ITSELF = """
class Signals(Pusher):
    def action_gradient(self, obs, action):
        import os
        if len(obs) == 32 and not os.path.exists(MARK):  # an update's batch
            open(MARK, "w").close()
            os.kill(os.getpid(), NUMBER)
        return super().action_gradient(obs, action)
"""


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_saves_and_says_how_to_go_on_from_any_folder(number, tmp_path):
    mine = Path(TOY["teacher"].partition(":")[0]).read_text() + SIGNALS_ITSELF
    (tmp_path / "mine.py").write_text(f"MARK, NUMBER = {str(tmp_path / 'mark')!r}, {int(number)}\n{mine}")
    task, teacher = "mine.py:Point", "mine.py:Signals"
    module, args = make_args("tg:1", "run", "demos", **(TOY | {"env_id": task, "teacher": teacher}))
    words = launch.command(args, module.__file__).split()[1:]
    done = subprocess.run([sys.executable, *words, "--run-dir", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 128 + number and "Traceback" not in done.stderr
    said, _, hint = done.stderr.splitlines()[-1].partition("; go on with: python ")
    assert said == f"interrupted by {number.name}"
    assert files.load_torch(tmp_path / "run" / "checkpoint.pt", "checkpoint")["step"] == 1  # the step was finished
    shutil.rmtree(tmp_path / "demos")
    (tmp_path / "elsewhere").mkdir()
    subprocess.run([sys.executable, *shlex.split(hint)], cwd=tmp_path / "elsewhere", check=True, capture_output=True)
    assert list((tmp_path / "elsewhere").iterdir()) == []  # the demonstrations aren't made again
    flags = TOY | {"env_id": f"{tmp_path}/{task}", "teacher": f"{tmp_path}/{teacher}"}
    left_alone = run_row("tg:1", tmp_path / "alone", tmp_path / "demos", **flags)
    assert differences(result(tmp_path / "run"), result(left_alone)) == []


# ---- the same run, and no other


def test_other_flags_are_refused_and_free_ones_taken(stopped, alone):
    main = script("gbrl_teacher_action").main
    for flag, value in {"seed": 2, "gamma": 0.9, "decay_rate": 5.0, "scale": 0.5}.items():
        with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} {value} can't be changed"):
            main(dataclasses.replace(stopped, **{flag: value}))
    with pytest.raises(UserError, match=r"a run of gbrl_teacher_action\.py, not of gbrl_d4pg\.py"):
        launch.saved_args(script("gbrl_d4pg").Args, Path(stopped.run_dir))
    run_dir = main(dataclasses.replace(stopped, num_workers=1, checkpoint_every=7))
    assert differences(result(run_dir), result(alone("ta:1"))) == []


def test_another_teacher_is_refused_with_both_hashes(alone, tmp_path, demo_dir):
    first, second = (alone("bc") / f"cycle_000{k}" / "snapshot.pt" for k in (1, 2))
    flags = TOY | {"teacher": str(tmp_path / "teacher.pt")}
    shutil.copy(first, tmp_path / "teacher.pt")
    module, args = make_args("ta:1", tmp_path / "run", demo_dir, **flags)
    live("ta:1", args, steps=[(1, 20)])
    shutil.copy(second, tmp_path / "teacher.pt")
    hashes = [folder.hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    with pytest.raises(UserError, match="another teacher: .* had SHA-256 {} and has {} now".format(*hashes)):
        module.main(args)
    shutil.copy(first, tmp_path / "teacher.pt")
    assert report(module.main(args))["teacher"]["sha256"] == hashes[0]


def test_other_code_or_packages_are_named_refused_and_if_accepted_booked(stopped, tmp_path, monkeypatch):
    module, version = script("gbrl_teacher_action"), importlib.metadata.version
    shutil.copytree(Path(folder.__file__).parent, tmp_path / "common")
    shutil.copy(module.__file__, tmp_path)
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "common" / "folder.py"))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "gbrl_teacher_action.py"))
    for name in ("gbrl_teacher_action.py", "common/replay.py"):
        path = tmp_path / name
        before = path.read_bytes()
        path.write_bytes(before + b"# edited\n")
        with pytest.raises(UserError, match=f"begun with other code or packages: {name}\\. .*--accept-changes"):
            module.main(stopped)
        path.write_bytes(before)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "numpy" else version(name))
    (tmp_path / "common" / "new.py").touch()
    with pytest.raises(UserError, match=rf"numpy {version('numpy')} -> 1\.0, common/new\.py\. "):
        module.main(stopped)
    accepted = dataclasses.replace(stopped, accept_changes=True)
    assert live("ta:1", accepted, steps=[(2, 60)]) == (2, 60)
    (changes,) = report(module.main(stopped))["changes"]  # which it was once and isn't since
    assert changes["numpy"] == [version("numpy"), "1.0"] and changes["common/new.py"][0] is None


def test_a_folder_in_use_is_refused(tmp_path, demo_dir):
    module, args = make_args("bc", tmp_path / "run", demo_dir, **TOY)
    used = folder.Folder(args, "bc", None, Path(module.__file__))
    with pytest.raises(UserError, match="in use by another process"):
        module.main(args)
    used.close()
    module.main(args)


def test_two_runs_of_the_same_second_get_folders_of_their_own(tmp_path, demo_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder.time, "time", lambda: 1_700_000_000.5)
    module, args = make_args("ta:1", "unused", demo_dir, **TOY)
    args.run_dir = None
    folders = [folder.Folder(args, "ta:1", None, Path(module.__file__)) for _ in range(2)]
    assert [used.path.name for used in folders] == [f"toy.py-Point__ta-1__1__170000000{i}" for i in range(2)]


# ---- --pretrained


@pytest.mark.parametrize("row", ("bc", "bc_reg_decay:5", "ta:1", "tg:1"))
def test_a_clone_that_is_taken_over_is_as_one_that_was_made(row, alone, tmp_path):
    _, args = make_args(row, tmp_path / "run", tmp_path / "demos", pretrained=str(alone("bc")), **TOY)
    if row == "bc":
        script("gbrl_d4pg").main(args)
    else:  # and when it is killed everywhere, in taking over too
        assert len(torment(row, args, renames=True)) > 25
    assert differences(result(tmp_path / "run"), result(alone(row))) == []
    assert names(tmp_path / "run") == names(alone(row))
    assert not (tmp_path / "demos").exists()  # nothing was cloned


def test_a_clone_of_another_run_is_refused(alone, stopped, tmp_path, demo_dir):
    _, unfinished = make_args("bc", tmp_path / "unfinished", demo_dir, **TOY)
    live("bc", unfinished, steps=[(0, 50)])
    shutil.copytree(alone("bc"), tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.csv").write_text("cycle\n")
    refused = [
        (alone("bc"), {"seed": 2}, "--seed 1, not 2"),
        (alone("bc"), {"bc_steps": 41}, "--bc-steps 40, not 41"),
        (alone("bc"), {"critic_steps": 0}, "--critic-steps 20, not 0"),
        (
            alone("bc"),
            {"teacher": str(alone("bc") / "cycle_0001" / "snapshot.pt")},
            "another teacher, SHA-256 .*, not ",
        ),
        (unfinished.run_dir, {}, "no run that has finished its pre-training"),
        (tmp_path, {}, "no run that has finished its pre-training"),
        (tmp_path / "damaged", {}, "its metrics.csv isn't what it wrote"),
    ]
    for source, flags, sentence in refused:
        module, args = make_args("ta:1", tmp_path / "run", demo_dir, pretrained=str(source), **(TOY | flags))
        with pytest.raises(UserError, match=f"--pretrained {source}: .*{sentence}"):
            module.main(args)
    json.loads(Path(stopped.run_dir, "args.json").read_text())
