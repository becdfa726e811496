"""What the growing batch costs in memory, whether its size slows an update, and the memory of a whole run.

    python benchmark/memory.py

1. Bytes per transition of the paper's replay on walker-run, for each row, against the bare numbers that it must hold.
2. An update's time at `--large` transitions against 100,000, in turns.
3. The paper's 2M-step run of `ta_qf` on walker-run, with few updates, because they take time but no memory: the largest
   sum over its processes of their proportional set size, above what the same processes have after their imports.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

from speed import ROWS, WALKER, filled, make_args, make_step, make_teacher, median_ms  # noqa: E402

import gbrl_d4pg  # noqa: E402
from common import launch  # noqa: E402
from common.replay import Replay  # noqa: E402

CPU = torch.device("cpu")


@dataclass
class Args:
    """How much."""

    large: int = 10_000_000
    """transitions of the large replay"""
    turns: int = 20
    """turns of ten updates with each"""
    actor_steps: int = 2_000_000
    """environment steps of the run, 0 for no run"""
    num_workers: int = 2
    """worker processes of the run"""


def stored(replay: Replay) -> float:
    """Bytes per transition of all tensors of a full replay."""
    parts = [replay._columns.values() if name == "_columns" else [value] for name, value in vars(replay).items()]
    tensors = [value for part in parts for value in part if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors) / len(replay)


def bytes_per_transition() -> None:
    """Print, for each row, the replay's bytes per transition against its numbers' own."""
    for row in ROWS:
        script, args = make_args(row)
        agent, replay = script.Agent(args, WALKER, CPU), filled(100_000, CPU)
        before = stored(replay)
        script.annotate(args, replay, agent.bc_policy, agent.previous_policy, make_teacher(CPU))
        # observation, action, n-step return, n-step discount, next index: 4 bytes each number
        bare = 4 * (WALKER.obs_size + WALKER.action_size + 3) + stored(replay) - before
        print(f"{row:16}{stored(replay):8.1f} bytes a transition, {bare:.0f} bare")


def time_at_size(large: int, turns: int) -> None:
    """Print an update's milliseconds with a small and a large replay."""
    steps = {size: make_step("ta_qf", filled(size, CPU), CPU, False)[0] for size in (100_000, large)}
    times: dict[int, list[float]] = {size: [] for size in steps}
    for turn in range(turns + 1):
        for size, step in steps.items():
            value = median_ms(step, 10, CPU)
            if turn > 0:  # the first turn warms up
                times[size].append(value)
    small, big = (statistics.median(values) for values in times.values())
    print(f"an update: {small:.2f} ms at 100,000 transitions, {big:.2f} ms at {large:,}: {big / small:.2f} times")


def proportional_mb(pid: int) -> float:
    """Sum of the proportional set sizes of a process and its descendants, MB; shared pages are counted once."""
    total, waiting = 0, [pid]
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        try:
            waiting += [int(child) for path in folder.glob("task/*/children") for child in path.read_text().split()]
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:  # it ended in between
            continue
    return total / 1024


def peak_mb(actor_steps: int, num_workers: int) -> float:
    """Largest memory of a run of `ta_qf` on walker-run with a few updates."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--env-id", "walker-run", "--actor-steps", str(actor_steps), "--learner-steps", "400"]
        flags += ["--bc-steps", "100", "--critic-steps", "100", "--num-workers", str(num_workers)]
        flags += ["--demo-dir", str(Path(folder) / "demos"), "--run-dir", str(Path(folder) / "run")]
        if actor_steps < 100_000:
            flags += ["--demo-episodes", "2", "--num-cycles", "1", "--report-episodes", "2"]
        words = [sys.executable, str(ROOT / "gbrl_teacher_action.py"), *flags]
        child, peak = subprocess.Popen(words, stderr=subprocess.DEVNULL), 0.0
        while child.poll() is None:
            peak = max(peak, proportional_mb(child.pid))
            time.sleep(0.2)
        if child.returncode != 0:
            sys.exit("the run failed")
    return peak


def main(args: Args) -> None:
    """Print all three."""
    launch.configure_torch(gbrl_d4pg.Args())
    bytes_per_transition()
    time_at_size(args.large, args.turns)
    if args.actor_steps:
        imports = peak_mb(1_000, args.num_workers)
        peak = peak_mb(args.actor_steps, args.num_workers)
        print(f"{args.actor_steps:,} steps: {peak - imports:.0f} MB above the {imports:.0f} MB of a run of 1,000")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
