"""What somebody changes in a copy of a script: it trains, resumes and reports, and is never taken for what it isn't."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from pieces import CPU, ENV, run_made_up
from small import ROOT, differences, report, result

from common import UserError, envs, evaluate, files, snapshots, teachers

FORKS = {  # patterns and what they become
    "another activation": {r"nn.ELU\(\)": "nn.ReLU()"},
    "renamed layers": {"self.torso": "self.body"},
    "another critic": {r"self.head\((.*obs, action.*)\)": r"self.head(\1).relu()"},
    "another width": {"hidden: int = 256": "hidden: int = 64", r"head\(256, ": "head(64, "},
    "a flag less": {r"    dqda_clip: .*\n.*\n": "", '"dqda_clip"(, )?': "", "args.dqda_clip": "1.0"},
}
BUDGET = {"actor_steps": 300, "learner_steps": 60, "num_cycles": 3, "checkpoint_every": 7}


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


@pytest.mark.parametrize("name", FORKS)
def test_a_fork_trains_resumes_and_reports(name, tmp_path, monkeypatch):
    def run(folder):
        return run_made_up("ta:1", "Falls", tmp_path / folder, fork, **BUDGET)

    def stopping(*args):
        calls.append(1)
        if len(calls) == 33:  # in the second cycle, five steps after a checkpoint
            raise Stop
        return honest(*args)

    fork, calls = make_fork(name, tmp_path, monkeypatch), []
    honest = fork.compute_gradients
    alone = run("alone")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(fork, "compute_gradients", stopping)
        run("stopped")
    assert differences(result(run("stopped")), result(alone)) == []
    assert report(alone)["teacher_queries"]["states_annotated"] >= 300
    trunk = run_made_up("ta:1", "Falls", tmp_path / "trunk", **BUDGET)
    assert (differences(result(trunk), result(alone)) == ["report"]) == (name == "a flag less")  # it names the script

    path, env = alone / "cycle_0003" / "snapshot.pt", envs.spec(f"{ROOT}/tests/tasks.py:Falls")
    if name in ("another activation", "renamed layers"):
        for use in (
            lambda: snapshots.load(path, CPU),
            lambda: teachers.load(str(path), env, "actions", CPU),
            lambda: evaluate.main(evaluate.Args(alone)),
            lambda: evaluate.film(path, tmp_path / "film.gif", 0),
        ):
            with pytest.raises(UserError, match="can't be used as a teacher, scored or filmed"):
                use()
    else:
        policy = fork.Policy(ENV.obs_size, ENV.action_size)
        policy.load_state_dict(files.load_torch(path, "snapshot")["policy"])
        obs = torch.randn(100, ENV.obs_size, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(teachers.load(str(path), env, "actions", CPU).action(obs), policy(obs))
    if name == "another critic":
        with pytest.raises(UserError, match="no action_gradient"):
            teachers.load(str(path), env, "action_gradients", CPU)


def test_a_fork_is_a_command_with_workers(tmp_path, monkeypatch):
    fork = make_fork("another activation", tmp_path, monkeypatch)
    alone = run_made_up("ta:1", "Falls", tmp_path / "alone", fork, **BUDGET)
    args = json.loads((alone / "args.json").read_text())["args"]
    changed = {k: v for k, v in args.items() if v != getattr(fork.Args(), k)} | {"num_workers": 2}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in changed.items() if k != "run_dir"]
    command = [sys.executable, "fork.py", *words, "--run-dir=again"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    assert differences(result(tmp_path / "again"), result(alone)) == []
