"""Measure the milliseconds of one update for each method. For the speed of deployments, see a run's `charts/SPS`.

    python benchmark/speed.py [--compile] [--transitions 100000]

An update is sampling, both gradients, clipping, both Adam steps, and a target copy every hundred. The methods take
turns, so that a drift of the machine's speed affects all alike. Sizes are those of walker-run; the data is random.
"""

import copy
import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import methods
import numpy as np
import torch
import tyro
from torch.utils.benchmark import Timer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

import gbrl_d4pg
from common import launch, teachers
from common.envs import EnvSpec
from common.replay import Replay
from common.rollouts import Episode

WALKER = EnvSpec("walker-run", 24, 6, 1000)
METHODS = [f"{name}:1" if method.decays else name for name, method in methods.METHODS.items()]


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
    """A full replay, which repeats one random episode of walker-run."""
    shapes = [(1001, WALKER.obs_size), (1000, WALKER.action_size), (1000,), (1000,)]
    rng, num_episodes = np.random.default_rng(0), max(1, transitions // 1000)
    episode = Episode(*(rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes))
    replay = Replay(num_episodes * 1000, WALKER.obs_size, WALKER.action_size, 5, 0.99, device)
    replay.append([episode] * num_episodes)
    return replay


def make_step(method: str, replay: Replay, device: torch.device, compiled: bool) -> Callable[[], None]:
    """One update of a method as a function."""
    script, args = methods.load(method)
    args = script.resolve(args, WALKER)
    agent = script.Agent(args, WALKER, device)
    teacher = teachers.load("expert", WALKER, "action_gradients", device)
    script.annotate(args, replay, agent.bc_policy, agent.previous_policy, teacher)
    sampler, count = torch.Generator(device).manual_seed(0), itertools.count(1)
    compute = launch.compiled(script.compute_gradients, device) if compiled else script.compute_gradients

    def step() -> None:
        batch = replay.sample(args.batch_size, sampler)
        progress = script.Progress(*(torch.full((), 0.5, device=device) for _ in range(2)))
        compute(args, agent, teacher, batch, progress)
        script.optimizer_step(agent.critic, agent.critic_optimizer, args.max_grad_norm)
        script.optimizer_step(agent.policy, agent.policy_optimizer, args.max_grad_norm)
        if next(count) % args.target_period == 0:
            agent.copy_targets()

    return step


def main(args: Args) -> None:
    """Time all methods in turns and print a table."""
    run_args = gbrl_d4pg.Args(torch_threads=args.torch_threads, cuda=args.cuda, compile=args.compile)
    device = launch.configure_torch(run_args)
    replay, kinds = filled(args.transitions, device), (False, True) if args.compile else (False,)
    # Each method has its own copy of the replay, because it annotates its own columns.
    steps = {
        (method, kind): make_step(method, copy.deepcopy(replay), device, kind) for kind in kinds for method in METHODS
    }
    if args.compile:
        torch._dynamo.config.error_on_recompile = False  # methods of one script compile the same function again
        for method in METHODS:
            print(method, end=": ", flush=True)
            steps[method, True]()  # prints the compile time
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in steps}
    for _ in range(args.rounds):
        for key, step in steps.items():
            timer = Timer("step()", globals={"step": step}, num_threads=args.torch_threads)
            times[key].append(1000 * timer.timeit(10).mean)  # warms up, and waits for a GPU
    print(f"{device}, {args.torch_threads} threads\n{'method':16}{'':10}{'ms':>8}{'vs bc':>8}")
    for (method, kind), values in times.items():
        ms, base = statistics.median(values), statistics.median(times["bc", kind])
        print(f"{method:16}{'compiled' if kind else 'eager':10}{ms:8.2f}{ms / base:8.2f}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
