"""Tasks with flat float32 observations and actions in [-1, 1]: dm_control's, Gymnasium's, or your own FILE.py:Class.

This module also loads and calls your own classes, both tasks and teachers.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib.metadata
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from common import UserError

# dm_control opens a rendering back end on import unless told otherwise; training needs none. Video sets its own.
os.environ.setdefault("MUJOCO_GL", "disabled")


class EnvSpec(NamedTuple):
    """Sizes of a task. `episode_length` is the time limit in control steps; an episode may end earlier.

    A task that isn't `simulated` has sizes only; its episodes come from files.
    """

    env_id: str
    obs_size: int
    action_size: int
    episode_length: int
    simulated: bool = True


@functools.cache
def _suite() -> ModuleType:
    """Import dm_control's suite. Raises UserError with the versions to install if MuJoCo is too new."""
    version = importlib.metadata.version("mujoco")
    if int(version.split(".")[0]) >= 4:
        raise UserError(
            f"mujoco {version} doesn't work with dm-control; run: pip install dm-control==1.0.50 mujoco==3.17.0"
        )
    from dm_control import suite

    # The suite's own cheetah.xml makes MuJoCo warn at every load, and you can't change that.
    logging.getLogger("absl").addFilter(lambda record: "settotalmass" not in record.getMessage())
    return suite


class Env:
    """A task that rollouts can step. An episode depends on its seed and actions only, also when an object is reused.

    `task` has Gymnasium's methods and spaces: one of dm_control's, one of Gymnasium's, or a class of your own. We only
    read a space's `shape`, `low` and `high`, or its `spaces`, so your class doesn't need Gymnasium. A class without
    `reset` and `step` is a task that can't be simulated.
    """

    def __init__(self, env_id: str) -> None:
        """Build dm_control's domain-task, Gymnasium's Name-v0, or FILE.py:Class, which is called without arguments.

        Raises:
            UserError: there is no such task; its actions have no bounds, or it has no time limit.
            RuntimeError: its own code raises.
        """
        build = functools.partial(SuiteTask if is_suite(env_id) else _gymnasium, env_id)
        self.task = guard(env_id, "building it", load_class(env_id) if is_own(env_id) else build)
        self._observed, acted = (getattr(self.task, f"{name}_space", None) for name in ("observation", "action"))
        obs_size = sum(math.prod(box.shape) for box in _boxes(env_id, "observation_space", self._observed))
        if _boxes(env_id, "action_space", acted) != [acted]:
            raise UserError(f"{env_id}: action_space must be one Box.")
        self._dtype = np.dtype(getattr(acted, "dtype", None) or np.float32)
        if self._dtype.kind != "f":
            raise UserError(f"{env_id}: its actions are {self._dtype}, and only real numbers can be learned.")
        self._low, self._high = (np.broadcast_to(np.float64(bound), acted.shape) for bound in (acted.low, acted.high))
        self._middle, self._half_range = (self._high + self._low) / 2, (self._high - self._low) / 2
        if not (np.isfinite(self._low).all() and np.isfinite(self._high).all()):
            raise UserError(f"--env-id {env_id}: its actions have no bounds, so they can't be scaled to [-1, 1].")
        limit = getattr(self.task, "max_episode_steps", None)
        limit = limit or getattr(getattr(self.task, "spec", None), "max_episode_steps", None)
        if limit is None or not 1 <= limit < math.inf:
            raise UserError(f"--env-id {env_id}: it has no time limit; your own class gives it as max_episode_steps.")
        simulated = hasattr(self.task, "reset") and hasattr(self.task, "step")
        self.spec = EnvSpec(env_id, obs_size, self._low.size, math.ceil(limit), simulated)

    def reset(self, seed: int, obs: np.ndarray) -> None:
        """Start the episode of this 32-bit seed and write its first observation into `obs`, (obs_size,)."""
        self._steps = 0
        observation, _ = self._ask("reset", "obs, info", seed=seed)
        self._write(observation, obs)

    def step(self, action: np.ndarray, obs: np.ndarray) -> tuple[float, float, bool]:
        """Take one control step with `action`, (action_size,) in [-1, 1]; write the observation into `obs`.

        Returns reward, discount and whether the episode is over. The discount is 0 after a termination, and 1 at a time
        limit, where the target still bootstraps.
        """
        wanted = self._middle + self._half_range * action.reshape(self._low.shape)
        wanted = wanted.clip(self._low, self._high).astype(self._dtype)  # rounding may lead beyond a bound
        answer = self._ask("step", "obs, reward, terminated, truncated, info", wanted)
        observation, reward, terminated, truncated, _ = answer
        self._write(observation, obs)
        self._steps += 1
        try:
            number = float(np.asarray(reward).item())
        except (TypeError, ValueError):
            raise UserError(f"{self.spec.env_id}: step returned the reward {reward!r}, expected one number.") from None
        return number, float(not terminated), bool(terminated or truncated) or self._steps >= self.spec.episode_length

    def _ask(self, what: str, form: str, *args: Any, **kwargs: Any) -> tuple:
        """Call a method. Raises UserError unless its answer has as many parts as `form`."""
        answer = guard(self.spec.env_id, what, getattr(self.task, what), *args, **kwargs)
        if not isinstance(answer, tuple) or len(answer) != len(form.split()):
            raise UserError(f"{self.spec.env_id}: {what} must return {form}, as Gymnasium's does, not {answer!r}.")
        return answer

    def _write(self, observation: Any, obs: np.ndarray) -> None:
        """Write the parts that the space names, in the space's order, into `obs`, (obs_size,)."""
        leaves = guard(self.spec.env_id, "its observation", _leaves, self._observed, observation)
        flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
        if flat.size != obs.size:
            raise UserError(
                f"{self.spec.env_id}: it returned an observation of {flat.size} numbers; its space has {obs.size}."
            )
        obs[:] = flat


class SuiteTask:
    """A task of dm_control's suite with Gymnasium's methods and spaces."""

    def __init__(self, env_id: str) -> None:
        """Load `env_id`, written `domain-task`. Raises UserError if there is no such task, or it needs a renderer."""
        suite = _suite()
        names = ["-".join(pair) for pair in suite.ALL_TASKS]
        if env_id not in names:
            near = difflib.get_close_matches(env_id.replace("_", "-"), names, n=3, cutoff=0.4)
            raise UserError(
                f"--env-id {env_id}: dm_control's suite has no such task"
                + (f"; the nearest names are {', '.join(near)}." if near else "; names have the form domain-task.")
            )
        domain, task = env_id.split("-")
        self.dm_env = suite.load(domain, task, task_kwargs={"random": 0})
        try:
            self.dm_env.reset()
        except RuntimeError as error:  # quadruped-escape draws its terrain
            raise UserError(f"--env-id {env_id}: it can't run without a renderer ({error}).") from error
        self.max_episode_steps = self.dm_env._step_limit  # dm_control has no public name for it
        action, parts = self.dm_env.action_spec(), self.dm_env.observation_spec()
        self.action_space = SimpleNamespace(shape=action.shape, low=action.minimum, high=action.maximum, dtype=float)
        boxes = {name: SimpleNamespace(shape=part.shape, low=-np.inf, high=np.inf) for name, part in parts.items()}
        self.observation_space = SimpleNamespace(spaces=boxes)

    def reset(self, seed: int) -> tuple[Any, dict]:
        """Gymnasium's reset."""
        self.dm_env.task.random.seed(seed)
        return self.dm_env.reset().observation, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Gymnasium's step. The suite's discount is 0 at a termination and 1 everywhere else."""
        timestep = self.dm_env.step(action)
        return timestep.observation, timestep.reward, timestep.discount == 0, timestep.last(), {}


def is_suite(env_id: str) -> bool:
    """Whether `env_id` can only be a task of dm_control's suite; Gymnasium's names end in a version."""
    return not is_own(env_id) and re.search(r"-v\d+$", env_id) is None


def versions(env_id: str) -> list[str]:
    """The versions that must agree for the same seed and actions to give the same episode, as far as we know them."""
    found = [f"file {digest(env_id)}"] if is_own(env_id) else []
    for package in ("dm-control", "gymnasium", "mujoco"):
        if is_own(env_id) or package == "mujoco" or (package == "dm-control") == is_suite(env_id):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # your own file may use any of them
                found.append(f"{package} {importlib.metadata.version(package)}")
    return found


def _gymnasium(env_id: str) -> Any:
    """One of Gymnasium's tasks. Raises UserError if Gymnasium, the task or one of its packages is missing."""
    try:
        import gymnasium
    except ImportError as error:
        raise UserError(f"--env-id {env_id} needs Gymnasium: pip install gymnasium") from error
    try:
        return gymnasium.make(env_id, disable_env_checker=True)
    except ImportError as error:
        raise UserError(f"--env-id {env_id}: {error}; install what it needs, such as gymnasium[mujoco].") from error
    except gymnasium.error.Error as error:
        raise UserError(f"--env-id {env_id}: {' '.join(str(error).split())}") from error


def _boxes(env_id: str, name: str, space: Any) -> list[Any]:
    """The Boxes of a space. Raises UserError if it has anything else."""
    boxes = _leaves(space, space)
    if not boxes or not all(hasattr(box, bound) for box in boxes for bound in ("shape", "low", "high")):
        raise UserError(f"{env_id}: {name} must be a Box or a Dict of Boxes, with shape, low and high, not {space}.")
    return boxes


def _leaves(space: Any, value: Any) -> list[Any]:
    """The parts of `value` for the Boxes of `space`, in order. If `value` is `space`, they are the Boxes themselves."""
    if not isinstance(inner := getattr(space, "spaces", None), Mapping):
        return [value]
    parts = inner if value is space else value
    return [leaf for key in inner for leaf in _leaves(inner[key], parts[key])]


@functools.cache
def spec(env_id: str) -> EnvSpec:
    """Sizes of the task `env_id`. Raises UserError as `Env` does, or if one seed gives different starts."""
    env = Env(env_id)
    if env.spec.simulated:
        first, again = np.zeros((2, env.spec.obs_size), np.float32)
        env.reset(0, first)
        env.reset(0, again)
        if not np.array_equal(first, again, equal_nan=True):
            raise UserError(f"{env_id}: reset(seed=0) gave another start the second time; draw it from the seed alone.")
    return env.spec


# ---- your own classes, named FILE.py:Class on the command line


def is_own(name: str) -> bool:
    """Whether `name` looks like FILE.py:Class."""
    return name.rpartition(":")[0].endswith(".py")


def digest(name: str) -> str:
    """SHA-256 of the file's text and the class's name, not of its path. Raises UserError if there is no file."""
    path, _, class_name = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"{name}: there is no file {path}.")
    return hashlib.sha256(Path(path).read_bytes() + class_name.encode()).hexdigest()


def guard(name: str, doing: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call your code. If it raises, raise RuntimeError from that, with `name` and what the code was `doing`."""
    try:
        return function(*args, **kwargs)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # SystemExit would end the run silently
        raise RuntimeError(f"{name}: {doing} raised {error!r}.") from error


def load_class(name: str) -> type:
    """Import the file, once per process unless its text changes, and return the class.

    Raises UserError if there is no such file or class, and RuntimeError if the file raises.
    """
    digest(name)  # raises if there is no such file
    path, _, class_name = name.rpartition(":")
    module = _import(str(Path(path).resolve()), Path(path).read_bytes())
    if not hasattr(module, class_name):
        raise UserError(f"{name}: {path} defines no {class_name}.")
    return getattr(module, class_name)


@functools.cache
def _import(path: str, content: bytes) -> ModuleType:
    """Import a module. Its name depends on its path alone, so that it is the same in workers."""
    module = ModuleType(f"own_{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}")
    module.__file__, sys.modules[module.__name__] = path, module  # dataclasses and pickle look there
    guard(path, "importing it", lambda: exec(compile(content, path, "exec"), vars(module)))
    return module
