"""What an environment step costs in a deployment, how deployment scales over workers, and what evaluation costs.

    python benchmark/deployment.py

Everything is timed in turns, and medians over the turns are compared. The policies are the shipped experts.

1. One worker against bare dm_control: a block of ten episodes, policy, noise and bookkeeping included, against the same
   ten episodes by `env.step` with the actions that were taken. What the difference is made of: the policy's forward
   passes, and `env.step` again, the ten episodes in lockstep with a forward pass in between, as in a block. And what
   a bare step is made of: MuJoCo's physics alone, `mj_step` with the same controls; the rest is dm_control's Python.
2. Two workers against one, on `--episodes` episodes.
3. A learner with an evaluation every 100 updates in a worker of its own against one without evaluations.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

import gbrl_d4pg
from common import envs, files, rollouts, teachers
from common.rollouts import Episode
from common.workers import Workers

SIGMA = 0.3  # of the noise, as in a run


@dataclass
class Args:
    """What to time."""

    env_ids: tuple[str, ...] = (
        "walker-run", "cheetah-run", "finger-spin", "pendulum-swingup", "cartpole-swingup", "cartpole-balance",
    )  # fmt: skip
    """tasks for the cost of a step; the first is the one for workers and evaluation"""
    turns: int = 5
    """turns, of which the median counts"""
    episodes: int = 40
    """episodes for the scaling over workers"""
    updates: int = 3_000
    """updates for the cost of evaluation"""


def replay_actions(env: envs.SuiteEnv, episodes: list[Episode]) -> None:
    """Step through the episodes by bare `env.step` with the actions that were taken."""
    for i, episode in enumerate(episodes):
        env.dm_env.task.random.seed(rollouts.episode_seeds((0,), i)[0])
        env.dm_env.reset()
        for action in episode.action:
            env.dm_env.step(action)


def replay_in_lockstep(ten: list[envs.SuiteEnv], episodes: list[Episode], actor: rollouts.Actor) -> tuple[float, float]:
    """Seconds in the policy and in bare `env.step`, the episodes stepped in lockstep as in a block."""
    for i, env in enumerate(ten):
        env.dm_env.task.random.seed(rollouts.episode_seeds((0,), i)[0])
        env.dm_env.reset()
    obs = torch.from_numpy(np.stack([episode.obs for episode in episodes], axis=1))  # (T + 1, 10, obs_size)
    actions = np.stack([episode.action for episode in episodes], axis=1)
    in_policy = in_env = 0.0
    with torch.inference_mode():
        for row, action in zip(obs, actions, strict=False):  # the last observation has no action
            began = time.perf_counter()
            actor(row)
            asked = time.perf_counter()
            for env, one in zip(ten, action, strict=True):
                env.dm_env.step(one)
            in_policy += asked - began
            in_env += time.perf_counter() - asked
    return in_policy, in_env


def replay_physics(env: envs.SuiteEnv, episodes: list[Episode]) -> None:
    """Step MuJoCo's model through the episodes with their actions as controls, and do nothing else."""
    model, data = env.dm_env.physics.model.ptr, env.dm_env.physics.data.ptr
    substeps = round(env.dm_env.control_timestep() / env.dm_env.physics.timestep())
    for i, episode in enumerate(episodes):
        env.dm_env.task.random.seed(rollouts.episode_seeds((0,), i)[0])
        env.dm_env.reset()
        for action in episode.action:
            data.ctrl[:] = action
            mujoco.mj_step(model, data, substeps)


def cost_of_a_step(env_id: str, turns: int) -> None:
    """Print microseconds of a step: in a block and its parts, by bare `env.step`, and of physics alone."""
    teacher = teachers.load("expert", envs.spec(env_id), "actions", torch.device("cpu"))
    env, ten, times = envs.SuiteEnv(env_id), [envs.SuiteEnv(env_id) for _ in range(10)], ([], [], [], [], [])
    low, high = env.dm_env.action_spec().minimum, env.dm_env.action_spec().maximum
    if (low != -1).any() or (high != 1).any():
        raise SystemExit(f"{env_id}: its actions aren't in [-1, 1], so the stored ones can't be replayed as they are")
    for _ in range(turns):
        began = [time.perf_counter()]
        episodes = rollouts.run_block(env_id, teacher.action, SIGMA, (0,), range(10))
        began.append(time.perf_counter())
        replay_actions(env, episodes)
        began.append(time.perf_counter())
        replay_physics(env, episodes)
        began.append(time.perf_counter())
        parts = replay_in_lockstep(ten, episodes, teacher.action)
        for values, took in zip(times, [*np.diff(began), *parts], strict=True):
            values.append(took)
        steps = sum(len(episode.reward) for episode in episodes)
    block, bare, physics, policy, lockstep = (1e6 * statistics.median(values) / steps for values in times)
    columns = f"{block:10.0f}{policy:10.0f}{lockstep:10.0f}{bare:10.0f}{physics:10.0f}{block / bare:10.2f}"
    print(f"{env_id:18}{columns}", flush=True)


def scaling(env_id: str, episodes: int, turns: int) -> None:
    """Print steps per second with one and with two workers."""
    teacher = teachers.load("expert", envs.spec(env_id), "actions", torch.device("cpu"))
    rates: dict[int, list[float]] = {1: [], 2: []}
    pools = {n: Workers(envs.spec(env_id), n) for n in rates}
    for pool in pools.values():
        pool.episodes(teacher.action, SIGMA, (1,), range(20), "starting")  # the processes start and load the task
    for turn in range(turns):
        for n, pool in pools.items():
            began = time.perf_counter()
            pool.episodes(teacher.action, SIGMA, (2, turn), range(episodes), "timing")
            rates[n].append(episodes * envs.spec(env_id).episode_length / (time.perf_counter() - began))
    for pool in pools.values():
        pool.close()
    one, two = (statistics.median(values) for values in rates.values())
    print(f"{env_id}, {episodes} episodes: {one:.0f} steps/s with 1 worker, {two:.0f} with 2: {two / one:.2f} times")


def cost_of_evaluation(env_id: str, updates: int, turns: int) -> None:
    """Print the seconds of learning with an evaluation every 100 updates and with none, in runs that take turns."""
    times: dict[int, list[float]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for episodes, took in times.items():
                run_dir = Path(folder) / f"{turn}_{episodes}"
                flags = {"actor_steps": 10_000, "learner_steps": updates, "num_cycles": 1, "report_episodes": 1}
                args = gbrl_d4pg.Args(
                    env_id=env_id, teacher="none", run_dir=str(run_dir), num_workers=1, eval_episodes=episodes, **flags
                )
                with contextlib.redirect_stdout(io.StringIO()):
                    gbrl_d4pg.main(args)
                phases = files.load_json(run_dir / "report.json", "report")["seconds"]
                took.append(phases["learning"] + phases["waiting for evaluations"])
    without, with_evaluations = (statistics.median(values) for values in times.values())
    print(
        f"{env_id}, {updates} updates: {without:.1f} s with no evaluation, {with_evaluations:.1f} s with one every "
        f"100: {100 * (with_evaluations / without - 1):+.0f} %"
    )


def main(args: Args) -> None:
    """Print all three."""
    torch.set_num_threads(1)
    names = ("block", "policy", "lockstep", "env.step", "mj_step", "ratio")
    print("microseconds a step", "".ljust(18) + "".join(name.rjust(10) for name in names), sep="\n")
    for env_id in args.env_ids:
        cost_of_a_step(env_id, args.turns)
    scaling(args.env_ids[0], args.episodes, args.turns)
    cost_of_evaluation(args.env_ids[0], args.updates, args.turns)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
