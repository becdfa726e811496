"""A task and teachers of your own, quick enough for hundreds of runs: push a point to the middle of a line."""

from types import SimpleNamespace

import numpy as np


class Point:
    """Two observations, place and speed. An episode is 20 steps, or fewer where the point leaves the line."""

    observation_space = SimpleNamespace(shape=(2,), low=-np.inf, high=np.inf)
    action_space = SimpleNamespace(shape=(1,), low=-1.0, high=1.0)
    max_episode_steps, end = 20, 1.5

    def reset(self, seed):
        self.state, self.steps = np.random.default_rng(seed).uniform(-1, 1, 2), 0
        return self.state, {}

    def step(self, action):
        place, speed = self.state
        self.state, self.steps = np.array([place + 0.2 * speed, speed + 0.2 * action[0]]), self.steps + 1
        out = abs(self.state[0]) > self.end
        return self.state, np.exp(-(place**2)), out, self.steps == 20, {}


class Line(Point):
    """A line without an end: always 20 steps."""

    end = np.inf


class Ledge(Point):
    """A line that breaks in most episodes, after a number of steps that depends on the seed."""

    def reset(self, seed):
        self.breaks = np.random.default_rng(seed).integers(1, 30)
        return super().reset(seed)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or self.steps == self.breaks, truncated, info


class Pusher:
    """A proportional-derivative controller, whose gradient leads to its own action."""

    def __init__(self, env_id, device):
        pass

    def action(self, obs):
        return -(obs[:, :1] + obs[:, 1:]).clamp(-1, 1)

    def action_gradient(self, obs, action):
        return self.action(obs) - action
