"""Tasks with flat float32 observations and actions in [-1, 1]: dm_control's, Gymnasium's, or your own FILE.py:Class."""

import difflib
import functools
import importlib.metadata
import logging
import math
import os
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple, Protocol

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
    """What rollouts ask of a task. An episode is a pure function of its seed and its actions, also on a used object."""

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
    """The task `env_id`: dm_control's domain-task, Gymnasium's Name-v0, or FILE.py:Class. Raises UserError if none."""
    return SuiteEnv(env_id) if is_suite(env_id) else GymEnv(env_id)


def is_suite(env_id: str) -> bool:
    """Whether `env_id` can only be a task of dm_control's suite; Gymnasium's names end in a version."""
    return not foreign.is_reference(env_id) and re.search(r"-v\d+$", env_id) is None


def versions(env_id: str) -> list[str]:
    """What the same seed and actions need to give the same episode."""
    if foreign.is_reference(env_id):
        return [f"file {foreign.digest(env_id)}"]
    packages = ("dm-control" if is_suite(env_id) else "gymnasium", "mujoco")
    return [f"{package} {importlib.metadata.version(package)}" for package in packages]


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


class GymEnv:
    """A task with Gymnasium's methods and spaces: one of Gymnasium's, or a class of your own, built as `Class()`.

    A space is looked at by its `shape`, `low` and `high`, or its `spaces`, so your class needs no Gymnasium. Without
    `reset` and `step` it stands for a task that can't be simulated.
    """

    def __init__(self, env_id: str) -> None:
        """Build it. Raises UserError where its spaces or its time limit don't fit; what it raises comes through."""
        build = foreign.load_class(env_id) if foreign.is_reference(env_id) else lambda: _gymnasium(env_id)
        self._env = foreign.guard(env_id, "building it", build)
        self._observed, acted = (getattr(self._env, f"{name}_space", None) for name in ("observation", "action"))
        sizes = [math.prod(space.shape) for space in _boxes(env_id, "observation_space", self._observed)]
        if not hasattr(acted, "shape") or len(_boxes(env_id, "action_space", acted)) != 1:
            raise UserError(f"{env_id}: action_space must be one Box.")
        self._dtype = np.dtype(getattr(acted, "dtype", None) or np.float32)
        self._low, self._high = (np.broadcast_to(np.float64(bound), acted.shape) for bound in (acted.low, acted.high))
        if self._dtype.kind != "f":
            raise UserError(f"{env_id}: its actions are {self._dtype}, and only real numbers can be learned.")
        if not (np.isfinite(self._low).all() and np.isfinite(self._high).all()):
            raise UserError(f"{env_id}: its actions have no bounds, so they can't be scaled to [-1, 1].")
        limit = getattr(self._env, "max_episode_steps", None)
        limit = limit or getattr(getattr(self._env, "spec", None), "max_episode_steps", None)
        if not isinstance(limit, int | np.integer) or limit < 1:
            raise UserError(f"{env_id}: it has no time limit; give it the attribute max_episode_steps, in steps.")
        simulated = hasattr(self._env, "reset") and hasattr(self._env, "step")
        self.spec = EnvSpec(env_id, sum(sizes), math.prod(acted.shape), int(limit), simulated)

    def reset(self, seed: int, obs: np.ndarray) -> None:
        """As `Env` says."""
        self._steps = 0
        answer = foreign.guard(self.spec.env_id, "reset", lambda: self._env.reset(seed=seed))
        self._check(answer, "reset", 2)
        self._write(answer[0], obs)

    def step(self, action: np.ndarray, obs: np.ndarray) -> tuple[float, float, bool]:
        """As `Env` says; it gets a copy of the action, between its own bounds."""
        unit = action.reshape(self._low.shape).astype(np.float64)
        wanted = np.clip((self._high + self._low) / 2 + (self._high - self._low) / 2 * unit, self._low, self._high)
        answer = foreign.guard(self.spec.env_id, "step", lambda: self._env.step(wanted.astype(self._dtype)))
        self._check(answer, "step", 5)
        observation, reward, terminated, truncated, _ = answer
        self._write(observation, obs)
        self._steps += 1
        if np.size(reward) != 1 or not np.issubdtype(np.asarray(reward).dtype, np.number):
            raise UserError(f"{self.spec.env_id}: step returned the reward {reward!r}, expected one number.")
        over = bool(terminated or truncated) or self._steps >= self.spec.episode_length
        return float(np.asarray(reward).item()), float(not terminated), over

    def _check(self, answer: Any, what: str, length: int) -> None:
        if not isinstance(answer, tuple) or len(answer) != length:
            form = "obs, info" if what == "reset" else "obs, reward, terminated, truncated, info"
            raise UserError(f"{self.spec.env_id}: {what} must return {form}, as Gymnasium's does, not {answer!r}.")

    def _write(self, observation: Any, obs: np.ndarray) -> None:
        """Write what the space names, in its order, into `obs`, (obs_size,)."""
        leaves = foreign.guard(self.spec.env_id, "its observation", lambda: _leaves(self._observed, observation))
        values = np.concatenate([np.ravel(value) for value in leaves])
        if values.size != self.spec.obs_size:
            raise UserError(
                f"{self.spec.env_id}: it returned an observation of {values.size} numbers; its space has {obs.size}."
            )
        obs[:] = values


def _gymnasium(env_id: str) -> Any:
    """One of Gymnasium's tasks. Raises UserError without Gymnasium, without the task, or without what it needs."""
    try:
        import gymnasium
    except ImportError as error:
        raise UserError(f"--env-id {env_id} needs Gymnasium: pip install gymnasium") from error
    try:
        return gymnasium.make(env_id, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"--env-id {env_id}: {' '.join(str(error).split())}") from error


def _boxes(env_id: str, name: str, space: Any) -> list[Any]:
    """The Boxes of a space. Raises UserError if it has anything else."""
    boxes = _leaves(space, space)
    if not boxes or not all(hasattr(box, bound) for box in boxes for bound in ("shape", "low", "high")):
        raise UserError(f"{env_id}: {name} must be a Box or a Dict of Boxes, with shape, low and high, not {space}.")
    return boxes


def _leaves(space: Any, value: Any) -> list[Any]:
    """The parts of `value` that belong to the Boxes of `space`, in order; a space given twice gives its own parts."""
    if not isinstance(inner := getattr(space, "spaces", None), Mapping):
        return [value]
    parts = inner if value is space else value
    return [leaf for key in inner for leaf in _leaves(inner[key], parts[key])]


def _flatten(observation: dict[str, np.ndarray], out: np.ndarray) -> None:
    """Write all entries, in the order of the observation spec, into `out`, (obs_size,)."""
    np.concatenate([np.ravel(value) for value in observation.values()], out=out, casting="same_kind")


@functools.cache
def spec(env_id: str) -> EnvSpec:
    """Sizes of the task `env_id`. Raises UserError as `make` does, or if a seed doesn't decide where it starts."""
    env = make(env_id)
    if isinstance(env, GymEnv) and env.spec.simulated:
        first, again = np.zeros((2, env.spec.obs_size), np.float32)
        env.reset(0, first)
        env.reset(0, again)
        if not np.array_equal(first, again, equal_nan=True):
            raise UserError(f"{env_id}: reset(seed=0) gave another start the second time; draw it from the seed alone.")
    return env.spec
