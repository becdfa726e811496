"""Episodes that come from outside: demonstrations of a person, deployments of a robot. One documented file, checked.

    python -m common.recorded FILE.npz EPISODE.npz [EPISODE.npz ...]
    python -m common.recorded FILE.npz --env-id cartpole-swingup    # only checks the file

A file holds E episodes, the first of T_1 steps, one behind the other:

| array | shape | content |
|---|---|---|
| obs | (sum of T_i + 1, obs_size) | all observations of an episode, the last one too |
| action | (sum of T_i, action_size) | as executed, in [-1, 1] |
| reward | (sum of T_i,) | |
| discount | (sum of T_i,) | 1, and 0 at a termination (a time limit is none) |
| length | (E,) | T_i |
| intended_action | (sum of T_i, action_size), optional | what was meant, where noise changed what was executed |

Numbers may have any type. `write` makes it from a list of episodes, each a mapping with these arrays but `length`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from common import UserError, envs, files
from common.rollouts import Episode, unpack

COLUMNS = ("action", "reward", "discount", "intended_action")  # one entry a step; obs has one more


def write(path: Path, episodes: Sequence[Mapping[str, Any]]) -> None:
    """Write episodes, each with obs (T + 1, .), action (T, .), reward (T,), discount (T,), intended_action (T, .) or
    without the last, as one file.

    Raises:
        UserError: an array is missing, has another shape than its episode or the first one, or isn't finite; actions
            are outside [-1, 1], or discounts outside [0, 1]. The first such episode and step are named.
    """
    if not episodes:
        raise UserError(f"{path}: there are no episodes to write.")
    names = ["obs", *(name for name in COLUMNS if name != "intended_action" or name in episodes[0])]
    for i, episode in enumerate(episodes):
        if missing := [name for name in names if name not in episode]:
            raise UserError(f"{path}: episode {i} lacks {', '.join(missing)}.")
    try:
        arrays = {name: [np.asarray(episode[name], np.float32) for episode in episodes] for name in names}
        lengths = [len(action) for action in arrays["action"]]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: an array of an episode isn't plain numbers of one shape ({error}).") from error
    for i, action in enumerate(arrays["action"]):
        for name in names:
            expected, like = len(action) + (name == "obs"), arrays[name][0].shape[1:]
            if arrays[name][i].shape != (expected, *like):
                got = arrays[name][i].shape
                raise UserError(f"{path}: episode {i} has {name} of shape {got}, expected {(expected, *like)}.")
    flat = {name: np.concatenate(parts) for name, parts in arrays.items()}
    flat["length"] = np.array(lengths, np.int64)
    _check_values(path, flat)
    files.save_arrays(path, **flat)


def read(path: Path, env: envs.EnvSpec | None) -> tuple[list[Episode], np.ndarray]:
    """The episodes of a file, and what was meant in them: `intended_action` or else `action`, (sum of T_i, .).

    Args:
        env: the task that it must fit, None for any.

    Raises:
        UserError: as `write`; or an array has other sizes than the task, or an episode is longer than its time limit.
    """
    arrays = files.load_arrays(path, "recorded episodes", "record them again")
    types = dict.fromkeys(("obs", *COLUMNS), np.float32) | {"length": np.int64}
    arrays = {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in types.items() if name in arrays}
    try:
        episodes, _ = unpack({"cycle": np.zeros(len(arrays.get("length", ()))), **arrays})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not episodes:
        raise UserError(f"{path} has no episodes.")
    sizes = [arrays[name].shape[1:] for name in ("obs", "action", "reward", "discount")]
    if sizes[2:] != [(), ()]:
        raise UserError(f"{path}: reward and discount must be one number a step, not {sizes[2]} and {sizes[3]}.")
    if env is not None and sizes[:2] != [(env.obs_size,), (env.action_size,)]:
        raise UserError(
            f"{path}: observations and actions have shapes {sizes[0]} and {sizes[1]}; {env.env_id} has "
            f"({env.obs_size},) and ({env.action_size},)."
        )
    if env is not None and max(arrays["length"]) > env.episode_length:
        i = int(np.argmax(arrays["length"] > env.episode_length))
        steps = arrays["length"][i]
        raise UserError(f"{path}: episode {i} has {steps} steps; {env.env_id} ends at {env.episode_length}.")
    intended = arrays.get("intended_action", arrays["action"])
    if intended.shape != arrays["action"].shape:
        raise UserError(f"{path}: intended_action has shape {intended.shape}, action {arrays['action'].shape}.")
    _check_values(path, {name: arrays[name] for name in ("obs", *COLUMNS, "length") if name in arrays})
    return episodes, intended


def _check_values(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError that names the first episode and step with a number that can't be."""
    ranges = {"action": (-1, 1), "intended_action": (-1, 1), "discount": (0, 1)}
    ends = np.cumsum(arrays["length"])
    for name, values in arrays.items():
        low, high = ranges.get(name, (-np.inf, np.inf))
        bad = ~np.isfinite(values) | (values < low) | (values > high)
        rows = np.flatnonzero(bad.reshape(len(values), -1).any(1))
        if len(rows) > 0 and name != "length":
            row_ends = ends + np.arange(1, len(ends) + 1) * (name == "obs")
            i = int(np.searchsorted(row_ends, rows[0], side="right"))
            step = int(rows[0] - (row_ends[i - 1] if i > 0 else 0))
            allowed = f"numbers from {low} to {high}" if name in ranges else "finite numbers"
            raise UserError(f"{path}: {name} of episode {i}, step {step}, is {values[rows[0]]}, expected {allowed}.")


@dataclass
class Args:
    """Make a file of recorded episodes, or check one."""

    path: tyro.conf.Positional[Path]
    """the file"""
    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """what it is made of: .npz files of one episode each; none to check the file"""
    env_id: str | None = None
    """task whose sizes it must have"""


def main(args: Args) -> None:
    """Make and check the file, and say what is in it."""
    if args.sources:
        write(args.path, [files.load_arrays(source, "episode") for source in args.sources])
    found, intended = read(args.path, envs.spec(args.env_id) if args.env_id is not None else None)
    returns = [episode.episodic_return for episode in found]
    print(f"{args.path}: {len(found)} episodes, {len(intended)} steps, mean return {np.mean(returns):.2f}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
