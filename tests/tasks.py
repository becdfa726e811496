"""Made-up tasks that take microseconds, for --env-id tests/tasks.py:Class, and a teacher of one's own."""

import numpy as np

from common.envs import EnvSpec


class Walk:
    """A point that is pushed about; its time limit is no termination."""

    spec = EnvSpec("walk", 3, 2, 20)

    def reset(self, seed, obs):
        self._rng, self._t = np.random.default_rng(seed), 0
        obs[:] = self._state = self._rng.normal(size=3)

    def step(self, action, obs):
        self._t += 1
        self._state = 0.9 * self._state + 0.1 * self._rng.normal(size=3) + 0.5 * np.append(action, 0)
        obs[:] = self._state
        return -np.abs(self._state).sum(), 1.0, self._t == self.spec.episode_length


class Falls(Walk):
    """Ends by a termination, mostly within its time limit of 50 steps, sooner the more it is pushed."""

    spec = EnvSpec("falls", 3, 2, 50)

    def step(self, action, obs):
        reward, discount, over = super().step(action, obs)
        fallen = self._rng.random() < 0.02 + 0.1 * np.abs(action).mean()
        return reward, 0.0 if fallen else discount, fallen or over


class Pusher:
    """Pushes back, and its gradient leads to its own action."""

    def __init__(self, env_id, device):
        pass

    def action(self, obs):
        return -obs[:, :2].clamp(-1, 1)

    def action_gradient(self, obs, action):
        return self.action(obs) - action
