"""What you change in a copy of a script: it trains, resumes and reports, and is never taken for what it isn't."""

import importlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import toy
from small import CPU, LINE, ROOT, SMALL, TOY, differences, kill_at, make_args, metrics, own, report, result, words

from common import UserError, envs, evaluate, files, rollouts, snapshots, teachers

FORKS = {  # patterns and what they become
    "another activation": {r"nn.ELU\(\)": "nn.ReLU()"},
    "another critic": {r"self.head\((.*obs, action.*)\)": r"self.head(\1).relu()"},
    "another width, with noise of torch's global generator": {
        "hidden: int = 256": "hidden: int = 64",
        r"head\(256, ": "head(64, ",
        r"= target_policy\(.*": r"\g<0> + torch.randn_like(batch['action'])",
    },
    "a flag less": {r"    dqda_clip: .*\n.*\n": "", "args.dqda_clip": "1.0"},
}


def changed(text, changes):
    for pattern, new in changes.items():
        text, count = re.subn(pattern, new, text)
        assert count > 0
    return text


class Stop(Exception):
    """Ends a run as an error of the fork would."""


@pytest.mark.parametrize("name", FORKS)
def test_a_fork_trains_resumes_and_reports(name, alone, tmp_path, demo_dir, monkeypatch):
    (tmp_path / "fork.py").write_text(changed((ROOT / "gbrl_teacher_action.py").read_text(), FORKS[name]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fork", raising=False)
    fork, calls = importlib.import_module("fork"), []

    def run(folder):
        flags = vars(make_args("ta:1", tmp_path / folder, demo_dir, **TOY)[1])
        return fork.main(fork.Args(**{name: value for name, value in flags.items() if hasattr(fork.Args, name)}))

    def stopping(*args, honest=fork.compute_gradients):
        calls.append(1)
        if len(calls) == 53:  # in the second cycle, eight steps after a checkpoint
            raise Stop
        return honest(*args)

    whole = run("whole")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(fork, "compute_gradients", stopping)
        run("stopped")
    assert differences(result(run("stopped")), result(whole)) == []
    unchanged = differences(result(alone("ta:1")), result(whole)) == ["report"]  # which names the script
    assert unchanged == (name == "a flag less")

    path, env = whole / "cycle_0002" / "snapshot.pt", envs.spec(TOY["env_id"])
    if name == "another activation":
        for use in (
            lambda: snapshots.load(path, CPU),
            lambda: teachers.load(str(path), env, "actions", CPU),
            lambda: evaluate.main(evaluate.Args((whole,))),
            lambda: evaluate.film([path], tmp_path / "film.gif", 0),
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


QUIET = {  # a method of one's own with one flag, one metric and one changed line in the loss
    r"(    # ---- this script's own): none\n": r"\1\n    action_weight: float = 0.01\n",
    'return "bc"': 'return "quiet"',
    r"(    loss = .*\.mean\(\))\n    return loss.*": r"""    size = action.square().sum(-1).mean()
\1 + args.action_weight * size
    return loss, {"losses/policy_loss": -q.mean(), "losses/action_size": size}""",
}


def test_a_method_of_ones_own_takes_three_places_and_a_line_of_the_table(tmp_path):
    for name in ("common", "benchmark"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "gbrl_quiet.py").write_text(changed((ROOT / "gbrl_d4pg.py").read_text(), QUIET))
    table, line = tmp_path / "benchmark" / "methods.py", '    "quiet": Method("gbrl_quiet.py", {}, False),\n'
    table.write_text(changed(table.read_text(), {"METHODS = {\n": rf"\g<0>{line}"}))
    command = [sys.executable, "benchmark/methods.py", "--name=quiet,action-weight:0.5", *words(SMALL | TOY)]
    kill_at([*command, "--run-dir=run"], "cycle 1, step 20: ", tmp_path)
    resume = [sys.executable, "gbrl_quiet.py", "--resume=run"]
    subprocess.run(resume, cwd=tmp_path, check=True, capture_output=True)
    assert report(tmp_path / "run")["name"].startswith("quiet,action-weight:0.5")
    assert any("losses/action_size" in line for line in metrics(tmp_path / "run"))


CLIMBER = """
class Climber(Pusher):
    def action(self, obs):
        with torch.enable_grad():
            action = torch.zeros(len(obs), 1, requires_grad=True)
            height = -(action - super().action(obs)).square().sum()
            return action + torch.autograd.grad(height, action)[0] / 2
"""


def test_a_teacher_of_ones_own_may_take_gradients(tmp_path):
    climber, pusher = own(tmp_path, "Climber", CLIMBER), toy.Pusher(None, None)
    actors = teachers.load(climber, envs.spec(LINE), "actions", CPU).action, pusher.action
    played = [rollouts.run_block(LINE, actor, 0.3, (5,), range(3)) for actor in actors]
    assert all(map(np.array_equal, *(rollouts.pack(episodes).values() for episodes in played)))
