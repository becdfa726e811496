"""On a GPU, the same seed gives the same bytes, also killed or compiled, and nothing waits between log points."""

import subprocess
import sys

import pieces
import pytest
import torch
from small import METHODS, ROOT, SMALL, differences, kill_at, result, words

from common import launch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes_also_when_killed(method, compiled, tmp_path):
    flags = words(SMALL | {"demo_dir": tmp_path / "demos", "compile": compiled})
    command = [sys.executable, str(ROOT / "benchmark" / "methods.py"), f"--name={method}", *flags, "--run-dir"]
    kill_at([*command, str(tmp_path / "killed")], "cycle 1, step 20: ", ROOT)
    for name in ("first", "second", "killed"):
        done = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0 and "learning on CPU" not in done.stdout, done.stderr
        assert differences(result(tmp_path / "first"), result(tmp_path / name)) == []


@pytest.mark.parametrize("method", pieces.METHODS)
def test_nothing_waits_for_the_gpu_between_log_points(method):
    script, args = pieces.make_args(method, eval_every=10_000, batch_size=16, target_period=2)
    launch.configure_torch(args)  # deterministic, as in a run
    agent, teacher = script.Agent(args, pieces.ENV, CUDA), pieces.make_teacher(CUDA)
    replay = pieces.make_replay(args, pieces.make_episode(), device=CUDA)
    script.annotate(args, replay, agent.bc_policy, agent.previous_policy, teacher)
    for mode in ("default", "error"):  # first calls may wait
        torch.cuda.set_sync_debug_mode(mode)
        try:
            script.learn(args, agent, teacher, replay, pieces.NoLog(), script.compute_gradients, 0, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
