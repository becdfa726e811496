"""A task and teachers of one's own, quick enough for hundreds of runs: push a point to the middle of a line."""

import numpy as np

from common.envs import EnvSpec


class Point:
    """Two observations, place and speed. An episode is 20 steps, or fewer where the point leaves the line."""

    spec, end = EnvSpec("point", 2, 1, 20), 1.5

    def reset(self, seed, obs):
        self.state, self.steps = np.random.default_rng(seed).uniform(-1, 1, 2), 0
        obs[:] = self.state

    def step(self, action, obs):
        place, speed = self.state
        self.state, self.steps = np.array([place + 0.2 * speed, speed + 0.2 * action[0]]), self.steps + 1
        obs[:] = self.state
        out = abs(self.state[0]) > self.end
        return float(np.exp(-(place**2))), float(not out), bool(out or self.steps == 20)


class Line(Point):
    """A line without an end: always 20 steps."""

    end = np.inf


class Ledge(Point):
    """A line that breaks in most episodes, after a number of steps that depends on the seed."""

    def reset(self, seed, obs):
        super().reset(seed, obs)
        self.breaks = np.random.default_rng(seed).integers(1, 30)

    def step(self, action, obs):
        reward, discount, over = super().step(action, obs)
        broken = self.steps == self.breaks
        return reward, float(discount and not broken), bool(over or broken)


class Pusher:
    """A proportional-derivative controller, whose gradient leads to its own action."""

    def __init__(self, env_id, device):
        pass

    def action(self, obs):
        return -(obs[:, :1] + obs[:, 1:]).clamp(-1, 1)

    def action_gradient(self, obs, action):
        return self.action(obs) - action
