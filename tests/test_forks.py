"""What somebody changes in a copy of a script: it trains, resumes and reports, and is never taken for what it isn't."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from pieces import CPU
from small import ROOT, TOY, differences, make_args, report, result

from common import UserError, envs, evaluate, files, snapshots, teachers

FORKS = {  # patterns and what they become
    "another activation": {r"nn.ELU\(\)": "nn.ReLU()"},
    "renamed layers": {"self.torso": "self.body"},
    "another critic": {r"self.head\((.*obs, action.*)\)": r"self.head(\1).relu()"},
    "another width": {"hidden: int = 256": "hidden: int = 64", r"head\(256, ": "head(64, "},
    "noise of torch's global generator": {r"= target_policy\(.*": r"\g<0> + torch.randn_like(batch['action'])"},
    "a flag less": {r"    dqda_clip: .*\n.*\n": "", "args.dqda_clip": "1.0"},
}


class Stop(Exception):
    """Ends a run as an error of the fork would."""


def make_fork(name, folder, monkeypatch):
    """A changed copy of a script, imported from `folder`."""
    text = (ROOT / "gbrl_teacher_action.py").read_text()
    for pattern, new in FORKS[name].items():
        text, count = re.subn(pattern, new, text)
        assert count > 0
    (folder / "fork.py").write_text(text)
    spec = importlib.util.spec_from_file_location("fork", folder / "fork.py")
    monkeypatch.setitem(sys.modules, "fork", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules["fork"])
    return sys.modules["fork"]


def run_fork(fork, run_dir, demo_dir):
    flags = vars(make_args("ta:1", run_dir, demo_dir, **TOY)[1])
    return fork.main(fork.Args(**{name: value for name, value in flags.items() if hasattr(fork.Args, name)}))


@pytest.mark.parametrize("name", FORKS)
def test_a_fork_trains_resumes_and_reports(name, alone, tmp_path, demo_dir, monkeypatch):
    def run(folder):
        return run_fork(fork, tmp_path / folder, demo_dir)

    def stopping(*args):
        calls.append(1)
        if len(calls) == 53:  # in the second cycle, eight steps after a checkpoint
            raise Stop
        return honest(*args)

    fork, calls = make_fork(name, tmp_path, monkeypatch), []
    honest = fork.compute_gradients
    whole = run("whole")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(fork, "compute_gradients", stopping)
        run("stopped")
    assert differences(result(run("stopped")), result(whole)) == []
    assert report(whole)["teacher_queries"]["states_annotated"] >= 400
    unchanged = differences(result(alone("ta:1")), result(whole)) == ["report"]  # which names the script
    assert unchanged == (name == "a flag less")

    path, env = whole / "cycle_0002" / "snapshot.pt", envs.spec(TOY["env_id"])
    if name in ("another activation", "renamed layers"):
        for use in (
            lambda: snapshots.load(path, CPU),
            lambda: teachers.load(str(path), env, "actions", CPU),
            lambda: evaluate.main(evaluate.Args(whole)),
            lambda: evaluate.film(path, tmp_path / "film.gif", 0),
        ):
            with pytest.raises(UserError, match="can't be used as a teacher, scored or filmed"):
                use()
    else:
        policy = fork.Policy(env.obs_size, env.action_size)
        policy.load_state_dict(files.load_torch(path, "snapshot")["policy"])
        obs = torch.randn(100, env.obs_size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(teachers.load(str(path), env, "actions", CPU).action(obs), policy(obs))
    if name == "another critic":
        with pytest.raises(UserError, match="it gives actions, and this method needs action_gradients"):
            teachers.load(str(path), env, "action_gradients", CPU)


def test_a_fork_is_a_command_with_workers(tmp_path, demo_dir, monkeypatch):
    fork = make_fork("another activation", tmp_path, monkeypatch)
    whole = run_fork(fork, tmp_path / "whole", demo_dir)
    args = json.loads((whole / "args.json").read_text())["args"]
    changed = {k: v for k, v in args.items() if v != getattr(fork.Args(), k)} | {"num_workers": 2}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in changed.items() if k != "run_dir"]
    command = [sys.executable, "fork.py", *words, "--run-dir=again"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    assert differences(result(tmp_path / "again"), result(whole)) == []
