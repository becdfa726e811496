"""Gymnasium's tasks with bounded actions as environments of your own; `pip install gymnasium==1.4.0`.

    python gbrl_d4pg.py --env-id examples/gymnasium_env.py:Pendulum --teacher none --scale 0.02 --num-cycles 200 \\
        --keep-every 20 --v-min -1600 --v-max 0

trains online, for there is no teacher yet; its last policy can be the --teacher of another run. For another task, add a
class that names it. --v-min and --v-max must hold its discounted returns.
"""

import gymnasium
import numpy as np

from common.envs import EnvSpec


class GymnasiumEnv:
    """A task with a time limit: a Box of observations, flattened, and a bounded Box of actions, scaled to [-1, 1]."""

    task: str

    def __init__(self) -> None:
        """Make the task. Raises ValueError for one that doesn't fit."""
        self._env = gymnasium.make(self.task, disable_env_checker=True)
        observed, acted, limit = self._env.observation_space, self._env.action_space, self._env.spec.max_episode_steps
        boxes = isinstance(observed, gymnasium.spaces.Box) and isinstance(acted, gymnasium.spaces.Box)
        if not boxes or not acted.is_bounded() or limit is None:
            raise ValueError(f"{self.task}: need Boxes, bounded for actions, and a time limit")
        self._middle, self._half_range = (acted.high + acted.low) / 2, (acted.high - acted.low) / 2
        self.spec = EnvSpec(self.task, int(np.prod(observed.shape)), int(np.prod(acted.shape)), limit)

    def reset(self, seed: int, obs: np.ndarray) -> None:
        """Start the episode of this seed; its first observation goes into `obs`, (obs_size,)."""
        obs[:] = self._env.reset(seed=seed)[0].ravel()

    def step(self, action: np.ndarray, obs: np.ndarray) -> tuple[float, float, bool]:
        """Take `action`, (action_size,) in [-1, 1]; returns reward, discount and whether the episode is over.

        Only a termination has discount 0: at the time limit, Gymnasium's truncation, the target still bootstraps.
        """
        wanted = self._middle + self._half_range * action.reshape(self._middle.shape)
        observation, reward, terminated, truncated, _ = self._env.step(wanted)
        obs[:] = observation.ravel()
        return float(reward), float(not terminated), terminated or truncated


class Pendulum(GymnasiumEnv):
    """Swing up a pendulum: always 200 steps."""

    task = "Pendulum-v1"


class MountainCar(GymnasiumEnv):
    """Drive out of a valley: at most 999 steps, fewer where the car gets to the top."""

    task = "MountainCarContinuous-v0"
