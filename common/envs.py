"""Tasks with flat float32 observations and actions in [-1, 1]: dm_control's suite, or your own FILE.py:Class."""

import difflib
import functools
import importlib.metadata
import logging
import math
import os
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from common import UserError, foreign

# dm_control opens a rendering back end on import unless told otherwise; training needs none. Video sets its own.
os.environ.setdefault("MUJOCO_GL", "disabled")


class EnvSpec(NamedTuple):
    """Sizes of a task. `episode_length` is the time limit in control steps; an episode may end earlier.

    A task that isn't `simulated` is known by its sizes alone: its episodes come from elsewhere.
    """

    env_id: str
    obs_size: int
    action_size: int
    episode_length: int
    simulated: bool = True


@functools.cache
def _suite() -> ModuleType:
    """Import dm_control's suite, or say in one sentence which pair of packages to install."""
    version = importlib.metadata.version("mujoco")
    if int(version.split(".")[0]) >= 4:
        raise UserError(
            f"mujoco {version} doesn't work with dm-control; run: pip install dm-control==1.0.50 mujoco==3.17.0"
        )
    from dm_control import suite

    # The suite's own cheetah.xml makes MuJoCo warn at every load; its user can do nothing about it.
    logging.getLogger("absl").addFilter(lambda record: "settotalmass" not in record.getMessage())
    return suite


class Env(Protocol):
    """One task. An episode is a pure function of its seed and its actions, however often the object was used before.

    Your own is built as `Class()`, in this process and in workers. With nothing but `spec` it stands for a task
    without a simulator.
    """

    spec: EnvSpec

    def reset(self, seed: int, obs: np.ndarray) -> None:
        """Start the episode of this seed (32 bits) and write its first observation into `obs`, (obs_size,)."""
        ...

    def step(self, action: np.ndarray, obs: np.ndarray) -> tuple[float, float, bool]:
        """Take one control step with `action`, (action_size,) in [-1, 1]; the observation goes into `obs`.

        Returns reward, discount and whether the episode is over. The discount is dm_env's: 0 after a termination, 1 at
        a time limit, where the target still bootstraps.
        """
        ...


def make(env_id: str) -> Env:
    """The task `env_id`: domain-task of dm_control's suite, or FILE.py:Class. Raises UserError if there is none."""
    return ForeignEnv(env_id) if foreign.is_reference(env_id) else SuiteEnv(env_id)


def versions(env_id: str) -> list[str]:
    """What the same seed and actions need to give the same episode."""
    if foreign.is_reference(env_id):
        return [f"file {foreign.digest(env_id)}"]
    return [f"{package} {importlib.metadata.version(package)}" for package in ("dm-control", "mujoco")]


class SuiteEnv:
    """A task of dm_control's suite."""

    def __init__(self, env_id: str) -> None:
        """Load `env_id`, written `domain-task`, such as `cartpole-swingup`.

        Raises:
            UserError: no such task, unbounded actions, no time limit, or a task that needs a renderer to run.
        """
        suite = _suite()
        names = ["-".join(pair) for pair in suite.ALL_TASKS]
        if env_id not in names:
            near = difflib.get_close_matches(env_id.replace("_", "-"), names, n=3, cutoff=0.4)
            raise UserError(
                f"--env-id {env_id}: dm_control's suite has no such task"
                + (f"; the nearest names are {', '.join(near)}." if near else "; it takes domain-task.")
            )
        domain, task = env_id.split("-")
        self.dm_env = suite.load(domain, task, task_kwargs={"random": 0})
        try:
            self.dm_env.reset()
        except RuntimeError as error:  # quadruped-escape draws its terrain
            raise UserError(f"--env-id {env_id}: it can't run without a renderer ({error}).") from error
        action_spec = self.dm_env.action_spec()
        low, high = action_spec.minimum, action_spec.maximum
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise UserError(f"--env-id {env_id}: its actions have no bounds, so they can't be scaled to [-1, 1].")
        if not math.isfinite(self.dm_env._step_limit):  # dm_control has no public name for the time limit
            raise UserError(f"--env-id {env_id}: it has no time limit, and a deployment needs whole episodes.")
        self._middle, self._half_range = (high + low) / 2, (high - low) / 2
        obs_size = sum(math.prod(spec.shape) for spec in self.dm_env.observation_spec().values())
        length = math.ceil(self.dm_env._step_limit)
        self.spec = EnvSpec(env_id, obs_size, action_spec.shape[0], length)

    def reset(self, seed: int, obs: np.ndarray) -> None:
        """As `Env` says."""
        self.dm_env.task.random.seed(seed)
        _flatten(self.dm_env.reset().observation, obs)

    def step(self, action: np.ndarray, obs: np.ndarray) -> tuple[float, float, bool]:
        """As `Env` says; the discount is the suite's own."""
        timestep = self.dm_env.step(self._middle + self._half_range * action)
        _flatten(timestep.observation, obs)
        return timestep.reward, timestep.discount, timestep.last()


class ForeignEnv:
    """A class of your own as a task. It gets copies of our memory, and its errors are told with their line."""

    def __init__(self, env_id: str) -> None:
        """Build the class. Raises UserError if that can't be done, or its `spec` isn't an `EnvSpec`."""
        self._env = foreign.guard(env_id, "building it", lambda: foreign.load_class(env_id)())
        sizes = foreign.guard(env_id, "spec", lambda: [int(size) for size in self._env.spec[1:4]])
        if len(sizes) != 3 or min(sizes) < 1:
            raise UserError(f"{env_id}: spec must be EnvSpec(env_id, obs_size, action_size, episode_length).")
        self.spec = EnvSpec(env_id, *sizes, simulated=hasattr(self._env, "reset") and hasattr(self._env, "step"))
        self._obs = np.zeros(self.spec.obs_size, np.float32)

    def reset(self, seed: int, obs: np.ndarray) -> None:
        """As `Env` says."""
        foreign.guard(self.spec.env_id, "reset", lambda: self._env.reset(seed, self._obs))
        obs[:] = self._obs

    def step(self, action: np.ndarray, obs: np.ndarray) -> tuple[float, float, bool]:
        """As `Env` says."""

        def step() -> tuple[float, float, bool]:
            reward, discount, over = self._env.step(action.copy(), self._obs)
            return float(reward), float(discount), bool(over)

        answer = foreign.guard(self.spec.env_id, "step", step)
        obs[:] = self._obs
        return answer


def _flatten(observation: dict[str, np.ndarray], out: np.ndarray) -> None:
    """Write all entries, in the order of the observation spec, into `out`, (obs_size,)."""
    np.concatenate([np.ravel(value) for value in observation.values()], out=out, casting="same_kind")


@functools.cache
def spec(env_id: str) -> EnvSpec:
    """Sizes of the task `env_id`. Raises UserError as `make` does."""
    return make(env_id).spec
