"""A run that is ended at any moment goes on to the same end, bit for bit; one that isn't the same run is refused."""

import dataclasses
import hashlib
import importlib.metadata
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import TOY, differences, live, make_args, metrics, own, report, result, run_method, script

from common import UserError, envs, files, launch
from common import run as run_module
from common.run import Run

STEPS = ((0, 3), (0, 39), (0, 50), (1, 0), (1, 20), (2, 40), (2, 50), (2, 60))
ONLINE = {"teacher": "none", "num_cycles": 20, "keep_every": 3}
ONLINE_STEPS = [(cycle, step) for cycle in range(1, 21) for step in range(7, 61, 10)]
ENDS = {  # method, flags, how it is ended, and at how many moments at least
    "killed": ("ta:1", {}, {"renames": True}, 30),
    "signalled": ("bc_reg_decay:5", {"demos_in_replay": True}, {"renames": True, "number": signal.SIGTERM}, 25),
    "online": ("bc", ONLINE, {"renames": True, "steps": ONLINE_STEPS}, 50),
    "online, signalled": ("bc", ONLINE, {"steps": ONLINE_STEPS, "number": signal.SIGTERM}, 6),
    "tracked, in workers": ("ta_qf", {"track": True, "num_workers": 1}, {"steps": ((0, 50), (2, 60))}, 2),
    "compiled": ("bc", {"compile": True}, {"steps": ((2, 50),)}, 1),
}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def torment(method, args, steps=STEPS, **how):
    """Let a run be ended at each moment, and go on each time; returns the moments."""
    seen = []
    while (moment := live(method, args, steps=steps, seen=seen, **how)) is not None:
        seen.append(moment)
    return seen


def names(run_dir):
    return {path.relative_to(run_dir) for path in run_dir.rglob("*") if "wandb" not in path.parts}


@pytest.mark.parametrize("end", [pytest.param(end, marks=needs_compiler if end == "compiled" else ()) for end in ENDS])
def test_a_run_that_is_ended_everywhere_comes_to_the_same_end(end, tmp_path, demo_dir, monkeypatch):
    method, flags, how, at_least = ENDS[end]
    if "track" in flags:
        import wandb  # noqa: F401 (once for all lives)

        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of another test, which would outlive a killed run
    left_alone = run_method(method, tmp_path / "alone", demo_dir, **(TOY | flags | {"track": False}))
    _, args = make_args(method, tmp_path / "run", tmp_path / "demos", **(TOY | flags))
    assert len(torment(method, args, **how)) >= at_least
    assert differences(result(tmp_path / "run"), result(left_alone)) == []
    more = {Path("wandb.json")} if "track" in flags else set()
    assert names(tmp_path / "run") == names(left_alone) | more
    if method != "bc":  # it was ended in critic evaluation, before this line was written
        (line,) = [line for line in metrics(tmp_path / "run") if "teacher/episodic_return" in line]
        assert line["pretrain_step"] == 60
    if "track" in flags:
        assert len({path.name.split("-")[-1] for path in tmp_path.glob("run/wandb/offline-run-*")}) == 1


def test_a_signal_saves_at_the_end_of_a_cycle_that_is_not_kept_too(tmp_path, demo_dir):
    flags = TOY | ONLINE | {"env_id": TOY["env_id"].replace("Point", "Line")}  # three updates a cycle
    _, args = make_args("bc", tmp_path / "run", demo_dir, **flags)
    assert live("bc", args, steps=[(5, 14)], number=signal.SIGTERM) == (5, 14)
    content = files.load_torch(tmp_path / "run" / "checkpoint.pt", "checkpoint")
    assert (content["cycle"], content["step"]) == (6, 15)


SIGNALS_ITSELF = """
class Signals(Pusher):
    def action_gradient(self, obs, action):
        if len(obs) == 32 and not os.path.exists(f"{HERE}/mark"):  # an update's batch
            open(f"{HERE}/mark", "w").close()
            os.kill(os.getpid(), NUMBER)
        return super().action_gradient(obs, action)
"""


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_saves_and_says_how_to_go_on_from_any_folder(number, tmp_path):
    own(tmp_path, "Signals", SIGNALS_ITSELF.replace("NUMBER", str(int(number))))
    task, teacher = "mine.py:Point", "mine.py:Signals"
    module, args = make_args("tg:1", "run", "demos", **(TOY | {"env_id": task, "teacher": teacher}))
    words = launch.command(args, module.__file__).split()[1:]
    done = subprocess.run([sys.executable, *words, "--run-dir", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 128 + number and "Traceback" not in done.stderr
    said, _, hint = done.stderr.splitlines()[-1].partition("; go on with: python ")
    assert said == f"interrupted by {number.name}"
    assert files.load_torch(tmp_path / "run" / "checkpoint.pt", "checkpoint")["step"] == 1  # the step was finished
    other = [sys.executable, words[0], "--resume", "run", "--seed", "2"]
    refused = subprocess.run(other, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1 and "was started with --seed 1, not 2" in refused.stderr
    assert not (tmp_path / "demos").exists()  # of a class of your own nothing is cached
    (tmp_path / "elsewhere").mkdir()
    subprocess.run([sys.executable, *shlex.split(hint)], cwd=tmp_path / "elsewhere", check=True, capture_output=True)
    assert list((tmp_path / "elsewhere").iterdir()) == []  # the demonstrations aren't made again
    flags = TOY | {"env_id": f"{tmp_path}/{task}", "teacher": f"{tmp_path}/{teacher}"}
    left_alone = run_method("tg:1", tmp_path / "alone", tmp_path / "demos", **flags)
    assert differences(result(tmp_path / "run"), result(left_alone)) == []


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
    run_dir = module.main(dataclasses.replace(args, num_workers=1, checkpoint_every=7))
    assert differences(result(run_dir), result(alone("ta:1"))) == []


def test_time_counts_on(stopped, tmp_path, demo_dir):
    module, args = copied(stopped, tmp_path, demo_dir)
    path = Path(args.run_dir) / "checkpoint.pt"
    content = files.load_torch(path, "checkpoint")
    content["seconds"]["cloning"] = 1e6
    files.save_torch(path, content)
    run_dir = module.main(args)
    assert 1e6 < report(run_dir)["wall_s"] < 1e6 + 1e4 and report(run_dir)["seconds"]["cloning"] == 1e6
    assert metrics(run_dir)[-1]["wall_s"] == report(run_dir)["wall_s"]


def test_another_teacher_is_refused_with_both_hashes(alone, tmp_path, demo_dir):
    first, second = (alone("bc") / f"cycle_000{k}" / "snapshot.pt" for k in (1, 2))
    shutil.copy(first, tmp_path / "teacher.pt")
    module, args = make_args("ta:1", tmp_path / "run", demo_dir, **(TOY | {"teacher": str(tmp_path / "teacher.pt")}))
    live("ta:1", args, steps=[(1, 20)])
    shutil.copy(second, tmp_path / "teacher.pt")
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    with pytest.raises(UserError, match="was started with --teacher of SHA-256 {}, not of SHA-256 {};".format(*hashes)):
        module.main(args)
    shutil.copy(first, tmp_path / "teacher.pt")
    assert report(module.main(args))["teacher"]["sha256"] == hashes[0]


def test_other_code_or_packages_are_named_and_booked(stopped, tmp_path, demo_dir, monkeypatch, capsys):
    module, args = copied(stopped, tmp_path, demo_dir)
    shutil.copytree(Path(run_module.__file__).parent, tmp_path / "common")
    monkeypatch.setattr(run_module, "__file__", str(tmp_path / "common" / "run.py"))
    (tmp_path / "common" / "new.py").touch()
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "numpy" else version(name))
    named = files.load_json(Path(args.run_dir) / "versions.json", "versions")
    assert {"python", "torch", "numpy", "dm-control", "mujoco"} <= named.keys()
    (changes,) = report(module.main(args))["changes"]
    assert changes == {"numpy": [version("numpy"), "1.0"], "common/new.py": [None, hashlib.sha256(b"").hexdigest()]}
    assert "warning: numpy, common/new.py changed since this run was started" in capsys.readouterr().out


def test_what_was_learned_on_another_kind_of_device_is_told(stopped, tmp_path, demo_dir):
    module, args = copied(stopped, tmp_path, demo_dir)
    path = Path(args.run_dir) / "checkpoint.pt"
    content = files.load_torch(path, "checkpoint")
    content["state"]["parts"]["sampler"] = torch.zeros(16, dtype=torch.uint8)  # as a GPU's generator has it
    files.save_torch(path, content)
    with pytest.raises(UserError, match="another kind of device than cpu"):
        module.main(args)


def test_a_folder_in_use_is_refused(tmp_path, demo_dir):
    module, args = make_args("bc", tmp_path / "run", demo_dir, **TOY)
    user = Run(args, "bc", envs.spec(args.env_id), None, module.__file__)
    with pytest.raises(UserError, match="in use by another process"):
        module.main(args)
    user._lock.release()
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


@pytest.mark.parametrize("method", ("bc", "bc_reg_decay:5", "ta:1", "tg:1"))
def test_a_clone_that_is_taken_over_is_as_one_that_was_made(method, alone, tmp_path):
    module, args = make_args(method, tmp_path / "run", tmp_path / "demos", pretrained=str(alone("bc")), **TOY)
    if method == "ta:1":  # when it is ended everywhere too, in taking it over as well
        assert len(torment(method, args, renames=True)) > 25
    else:
        module.main(args)
    assert differences(result(tmp_path / "run"), result(alone(method))) == []
    assert names(tmp_path / "run") == names(alone(method))
    assert not (tmp_path / "demos").exists()  # nothing was cloned


def test_a_clone_is_taken_over_from_a_run_that_took_it_over_and_no_longer_needed(
    alone, tmp_path, demo_dir, monkeypatch
):
    shutil.copytree(alone("bc"), tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    live("ta:1", make_args("ta:1", "second", demo_dir, pretrained="first", **TOY)[1], steps=[(1, 3)])
    shutil.rmtree("first")
    for method, run_dir, before in (("ta:1", "second", "first"), ("tg:1", "third", "second")):
        run_dir = run_method(method, run_dir, demo_dir, pretrained=before, **TOY)
        assert differences(result(run_dir), result(alone(method))) == []


def test_a_clones_lines_are_tracked_but_not_in_its_own_wandb_run(alone, tmp_path, demo_dir, monkeypatch):
    import wandb

    logged, started = [], []

    class Mine:
        id, step, summary = "mine", 0, {}

        def log(self, values, step):
            logged.append((step, values))

        def define_metric(self, *_, **__): ...
        def save(self, *_, **__): ...
        def finish(self, **_): ...

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", lambda **about: (started.append(about), Mine())[1])
    run_dir = run_method("ta:1", tmp_path / "run", demo_dir, pretrained=str(alone("bc")), track=True, **TOY)
    (about,) = started
    assert about["id"] == files.load_json(run_dir / "wandb.json", "id")["id"] and about["job_type"] == "run"
    assert about["group"].startswith("toy.py:Point, teacher toy.py:Pusher, 2 cycles, 400 steps, 61 updates, ta:1,")
    assert len(about["group"]) <= 128 and all(len(tag) <= 64 for tag in about["tags"])
    lines = metrics(run_dir)
    assert logged[:-1] == list(enumerate(lines)) and logged[-1][0] == len(lines)
    assert {"cycles", "learning_curve"} <= logged[-1][1].keys()
    assert any("teacher/episodic_return" in line for _, line in logged)  # of cycle 0


def test_a_clone_of_another_run_is_refused(alone, tmp_path, demo_dir):
    live("bc", make_args("bc", tmp_path / "unfinished", demo_dir, **TOY)[1], steps=[(0, 50)])
    shutil.copytree(alone("bc"), tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.jsonl").write_text("cycle\n")
    shutil.copytree(alone("bc"), tmp_path / "lost")
    (tmp_path / "lost" / "metrics.jsonl").unlink()
    other = {"teacher": str(alone("bc") / "cycle_0001" / "snapshot.pt")}
    refused = [
        (alone("bc"), {"seed": 2}, "--seed 1, not 2"),
        (alone("bc"), {"bc_steps": 41}, "--bc-steps 40, not 41"),
        (alone("bc"), other, "--teacher of SHA-256 .*, not of "),
        (tmp_path / "unfinished", {}, "no run that has finished its pre-training"),
        (tmp_path / "nowhere", {}, "no run that has finished its pre-training"),
        (tmp_path / "damaged", {}, "metrics.jsonl has lost lines that its run wrote"),
        (tmp_path / "lost", {}, "metrics.jsonl has lost lines that its run wrote"),
    ]
    for source, flags, sentence in refused:
        module, args = make_args("ta:1", tmp_path / "run", demo_dir, pretrained=str(source), **(TOY | flags))
        with pytest.raises(UserError, match=f"{source}.*{sentence}"):
            module.main(args)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]  # nothing of it is left
