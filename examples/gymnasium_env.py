"""An environment of your own: any class with Gymnasium's methods, spaces and a time limit.

    python gbrl_d4pg.py --env-id examples/gymnasium_env.py:Pendulum --teacher none --num-cycles 50 --keep-every 10 \\
        --actor-steps 10000 --samples-per-insert 128 --batch-size 128 --learning-rate 1e-3

Gymnasium's own tasks need no class: `--env-id Pendulum-v1`. This one divides the reward by ten, so that the discounted
returns, -1410 to 0 there, lie within the critic's default support of -150 to 150. The command trains online, because
there is no teacher yet; its last policy can be the --teacher of another run.
"""

import gymnasium
import numpy as np


class Pendulum(gymnasium.Wrapper):
    """Swing up a pendulum: always 200 steps, the time limit that Gymnasium's `spec` states."""

    def __init__(self) -> None:
        """Make the task that this class wraps."""
        super().__init__(gymnasium.make("Pendulum-v1"))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take Gymnasium's step, and return a tenth of its reward."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward / 10, terminated, truncated, info
