"""Milliseconds of one learner step for each row, against the time that its matrix products alone would take.

    python benchmark/speed.py [--compile] [--transitions 100000]

A step is what `learn` does: sampling, both gradients, clipping, both Adam steps, the non-finite watch, a target copy
every hundred. The bound is the row's own multiply-adds at the speed of `torch.mm` on 256x256 in this process. Rows and
the product are timed in turns, so that a machine whose speed drifts treats them alike. Sizes are walker-run's, the data
is random.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import methods
import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

import gbrl_d4pg
from common import launch, snapshots
from common.envs import EnvSpec
from common.replay import Replay
from common.rollouts import Episode

WALKER = EnvSpec("walker-run", 24, 6, 1000)
ROWS = [f"{name}:1" if row.decays else name for name, row in methods.METHODS.items()]


@dataclass
class Args:
    """What to time."""

    compile: bool = False
    """time the compiled update too"""
    transitions: int = 100_000
    """transitions in the replay"""
    rounds: int = 20
    """turns of ten steps each"""
    torch_threads: int = 1
    """threads of the learner"""
    cuda: bool = False
    """time on the GPU"""


def filled(transitions: int, device: torch.device) -> Replay:
    """A full replay of random walker-run episodes; the same thousand episodes again and again."""
    rng, num_episodes = np.random.default_rng(0), transitions // 1000
    replay = Replay(num_episodes * 1000, WALKER.obs_size, WALKER.action_size, 5, 0.99, device)
    shapes = [(1001, WALKER.obs_size), (1000, WALKER.action_size), (1000,), (1000,)]
    count = min(num_episodes, 1000)
    episodes = [Episode(*(rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes)) for _ in range(count)]
    for start in range(0, num_episodes, 1000):
        replay.append(episodes[: num_episodes - start])
    return replay


def make_teacher(device: torch.device) -> snapshots.Snapshot:
    """A teacher of the shipped architecture with random weights."""
    agent = gbrl_d4pg.Agent(gbrl_d4pg.Args(), WALKER, device)
    with tempfile.TemporaryDirectory() as folder:
        snapshots.save(Path(folder) / "teacher.pt", WALKER, agent.policy, agent.critic, {})
        return snapshots.load(Path(folder) / "teacher.pt", device)


def make_args(row: str) -> tuple[ModuleType, Any]:
    """The row's script and its resolved flags."""
    script, args = methods.load(row)
    return script, script.resolve(args, WALKER)


def make_step(row: str, replay: Replay, device: torch.device, compiled: bool) -> tuple[Callable[[], None], int]:
    """One learner step of a row as a function, and its multiply-adds."""
    script, args = make_args(row)
    agent = script.Agent(args, WALKER, device)
    teacher = make_teacher(device)
    script.annotate(args, replay, agent.bc_policy, agent.previous_policy, teacher)
    sampler, count = torch.Generator(device).manual_seed(0), [0]
    compute = script.compute_gradients
    if compiled:
        compute = launch.compiled(compute, device)

    def step() -> None:
        batch = replay.sample(args.batch_size, sampler)
        progress = script.Progress(*(torch.full((), 0.5, device=device) for _ in range(2)))
        compute(args, agent, teacher, batch, progress)
        script.optimizer_step(agent.critic, agent.critic_optimizer, args.max_grad_norm)
        script.optimizer_step(agent.policy, agent.policy_optimizer, args.max_grad_norm)
        count[0] += 1
        if count[0] % args.target_period == 0:
            agent.copy_targets()

    counter = FlopCounterMode(display=False)
    with counter:
        halfway = script.Progress(*(torch.full((), 0.5, device=device) for _ in range(2)))
        script.compute_gradients(args, agent, teacher, replay.sample(args.batch_size, sampler), halfway)
    agent.critic_optimizer.zero_grad()
    agent.policy_optimizer.zero_grad()
    return step, counter.get_total_flops() // 2


def median_ms(function: Callable[[], object], times: int, device: torch.device) -> float:
    """Median milliseconds of one call."""
    seconds = []
    for _ in range(times):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def main(args: Args) -> None:
    """Time all rows in turns and print a table."""
    run_args = gbrl_d4pg.Args(torch_threads=args.torch_threads, cuda=args.cuda, compile=args.compile)
    device = launch.configure_torch(run_args)
    replay = filled(args.transitions, device)
    # A copy of the replay each: the columns that a row annotates are its own.
    steps = {(row, False): make_step(row, copy.deepcopy(replay), device, False) for row in ROWS}
    if args.compile:
        steps |= {(row, True): make_step(row, copy.deepcopy(replay), device, True) for row in ROWS}
        torch._dynamo.config.error_on_recompile = False  # rows of one script are compilations of one function
        for row in ROWS:
            print(row, end=": ", flush=True)
            steps[row, True][0]()  # says how long compiling took
    a, b, out = (torch.rand(256, 256, device=device) for _ in range(3))
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in steps}
    products = []
    for turn in range(args.rounds + 1):
        products.append(median_ms(lambda: torch.mm(a, b, out=out), 50, device))
        for key, (step, _) in steps.items():
            value = median_ms(step, 10, device)
            if turn > 0:  # the first turn warms up
                times[key].append(value)
    speed = 256**3 / min(products)  # multiply-adds per millisecond
    print(
        f"torch.mm 256x256: {min(products):.3f} ms, the fastest median of {len(products)}; {device}, "
        f"{args.torch_threads} threads"
    )
    print(f"{'row':16}{'':10}{'ms':>8}{'bound':>8}{'ratio':>8}{'vs bc':>8}")
    for (row, is_compiled), values in times.items():
        ms, bound = statistics.median(values), steps[row, is_compiled][1] / speed
        kind = "compiled" if is_compiled else "eager"
        base = statistics.median(times["bc", is_compiled])
        print(f"{row:16}{kind:10}{ms:8.2f}{bound:8.2f}{ms / bound:8.2f}{ms / base:8.2f}")


if __name__ == "__main__":
    main(tyro.cli(Args))
