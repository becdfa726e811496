"""What wandb gets of a run: its records are read from the file that an offline run leaves."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import methods
import yaml
from small import ROOT, SMALL, TOY, differences, make_args, metrics, report, result, run_method
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from common import metrics as metrics_module


def records(data):
    """The records of a `.wandb` file: 7 bytes, then LevelDB's log format, in blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def history(path):
    """The lines that a `.wandb` file holds, by wandb's step."""
    lines = {}
    for record in records(path.read_bytes()):
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            assert items["_step"] not in lines
            lines[items["_step"]] = items
    return lines


def call(command, folder, **env):
    """Run it as a user does, tracked offline in `folder`."""
    folder.mkdir(exist_ok=True)
    env = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)} | env
    env.pop("WANDB_SERVICE", None)  # of another test
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_after_a_kill_wandb_gets_every_line_once_and_with_its_number(tmp_path, stopped):
    """The killed part wasn't tracked, or its file was cut: what wandb lacks is sent when tracking begins."""
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    script, _ = make_args("ta:1", run_dir, tmp_path / "demos", **TOY)
    resume = [str(ROOT / f"{script.__name__}.py"), "--resume", str(run_dir), "--track"]
    for words in (resume, ["-m", "common.metrics", str(run_dir)]):  # the whole run, sent by hand, is the same run
        shutil.rmtree(run_dir / "wandb", ignore_errors=True)
        done = call([sys.executable, *words], tmp_path, HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
        (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
        lines, sent = metrics(run_dir), history(path)
        assert path.stem == "run-" + json.loads((run_dir / "wandb.json").read_text())["id"]
        assert [{key: sent[i][key] for key in line} for i, line in enumerate(lines)] == lines
        assert "learning_curve" in "".join(sent[len(lines)]) and len(sent) == len(lines) + 1  # its report comes last
    (run,) = [record.run for record in records(path.read_bytes()) if record.HasField("run")]
    group = "toy.py:Point, teacher toy.py:Pusher, 2 cycles, 400 steps, 61 updates, ta:1,"
    assert run.run_group.startswith(group) and len(run.run_group) <= 128 and run.display_name == "run"
    assert all(len(tag) <= 64 for tag in run.tags)  # wandb takes no longer ones
    summaries = [str(record.summary) for record in records(path.read_bytes()) if record.HasField("summary")]
    assert json.dumps(report(run_dir)["name"]) in "".join(summaries).replace('\\"', '"')


def test_a_run_goes_on_when_wandb_fails(alone, tmp_path, demo_dir, monkeypatch, capsys):
    monkeypatch.setattr(metrics_module, "check_login", lambda: None)
    monkeypatch.setattr(metrics_module, "start_wandb", lambda folder: object())  # has none of wandb's methods
    run_dir = run_method("bc", tmp_path / "run", demo_dir, track=True, **TOY)
    assert differences(result(run_dir), result(alone("bc"))) == []
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: wandb failed")]
    assert len(said) == 1 and said[0].endswith(f"python -m common.metrics {run_dir}")


def test_the_sweep_of_figure_6_runs_as_wandb_starts_it(tmp_path):
    """wandb's own functions make the words; a small budget comes as further parameters."""
    config = yaml.safe_load((ROOT / "examples" / "wandb_sweep.yaml").read_text())
    for name in config["parameters"]["name"]["values"]:
        methods.load(name)
    done = subprocess.run([sys.executable, ROOT / config["program"], "--name=ta"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ta isn't a method of the table: bc, ")
    small = {key: value for key, value in SMALL.items() if key != "demo_dir"} | {"cuda": False, "bc_steps": 40.0}
    chosen = {"name": "bc_reg_decay:5", "env_id": "pendulum-swingup", "seed": 5, "scale": 0.1} | small
    words = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    words |= {"env": ["/usr/bin/env"], "program": [str(ROOT / config["program"])]}
    command = []
    for word in create_sweep_command(config["command"]):
        command += words[word[2:-1]] if word.startswith("${") else [word]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    named = {"WANDB_PROJECT": "mine", "WANDB_RUN_GROUP": "together", "WANDB_NAME": "one"}
    named |= {"WANDB_TAGS": "a,expert,b", "WANDB_JOB_TYPE": "probe"}
    done = call(command, tmp_path, WANDB_RUN_ID="abcd1234", PATH=path, **named)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("runs/figure_6/abcd1234/wandb/offline-run-*/*.wandb")
    (run,) = [record.run for record in records(path.read_bytes()) if record.HasField("run")]
    assert (run.project, run.run_group, run.display_name) == ("mine", "together", "one")
    assert run.job_type == "probe" and len(run.tags) == 5  # each once
    assert {"pendulum-swingup", "expert", "a", "b"} < set(run.tags)
    axes = [record.metric for record in records(path.read_bytes()) if record.HasField("metric")]
    found = {(axis.glob_name or axis.name, axis.step_metric) for axis in axes}
    assert found >= {("*", "learner_step"), ("losses/bc_loss", "pretrain_step")}
    content = json.loads((tmp_path / "runs/figure_6/abcd1234/args.json").read_text())
    assert content["name"].startswith("bc_reg_decay:5") and content["args"]["seed"] == 5
    assert path.parent.name.endswith("-abcd1234")
