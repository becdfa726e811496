"""Episodes and annotations from files: a person's demonstrations, a robot's rollouts, an expert's answers.

    python -m common.elsewhere FILE.npz EPISODE.npz [EPISODE.npz ...]
    python -m common.elsewhere FILE.npz --env-id cartpole-swingup    # only checks the file

A file holds E episodes, one after the other; episode i has T_i steps:

| array | shape | content |
|---|---|---|
| obs | (sum of T_i + 1, obs_size) | all observations of an episode, including the final one |
| action | (sum of T_i, action_size) | as executed, in [-1, 1] |
| reward | (sum of T_i,) | |
| discount | (sum of T_i,) | 1, or 0 at a termination; a time limit isn't one |
| length | (E,) | T_i |
| intended_action | (sum of T_i, action_size), optional | the action before noise, if noise was added |

Any number type will do. `write` makes such a file from a list of episodes: mappings with these arrays except `length`.

With `--deploy elsewhere` or `--annotate elsewhere` a run writes what you need and stops. As long as it waits, its
folder has a `waiting.json` that tells programs what for. The files that you exchange are in the cycle's folder.
`policy.torchscript` maps obs (B, obs_size) float32 to actions (B, action_size) and runs without this repository:
`torch.jit.load("policy.torchscript")`.
"""

import copy
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from common import UserError, envs, files, rollouts
from common.envs import EnvSpec
from common.replay import ANNOTATE_CHUNK
from common.rollouts import Episode

COLUMNS = ("obs", "action", "reward", "discount", "intended_action")  # one row per step; obs has one more
RANGES = {"action": (-1, 1), "discount": (0, 1), "intended_action": (-1, 1)}
WAITING = "waiting.json"


class FilesNeeded(Exception):
    """A run has stopped until the file that it needs is there; `launch.launch` prints which one."""


# ---- a file of episodes


def write(path: Path, episodes: Sequence[Mapping[str, Any]]) -> None:
    """Write episodes as one file, each with obs (T + 1, .), action (T, .), reward (T,), discount (T,) and, in all of
    them or in none, intended_action (T, .).

    Raises:
        UserError: there are no episodes; an array is missing, or its shape contradicts its episode or the first one;
            or `read` would refuse a value.
    """
    if not episodes:
        raise UserError(f"{path}: there are no episodes to write.")
    noisy = any("intended_action" in episode for episode in episodes)
    names, parts = [name for name in COLUMNS if name != "intended_action" or noisy], []
    for i, episode in enumerate(episodes):
        try:
            parts.append({name: np.asarray(episode[name], np.float32) for name in names})
            length = len(parts[i]["action"])
        except KeyError as error:
            raise UserError(f"{path}: episode {i} lacks {error.args[0]}.") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: an array of episode {i} isn't plain numbers of one shape ({error}).") from error
        for name, values in parts[i].items():
            expected = (length + (name == "obs"), *parts[0][name].shape[1:])
            if values.shape != expected:
                raise UserError(f"{path}: episode {i} has {name} of shape {values.shape}, expected {expected}.")
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
    arrays["length"] = np.array([len(part["action"]) for part in parts], np.int64)
    _checked(path, arrays, None)
    files.save_arrays(path, **arrays)


def read(path: Path, env: EnvSpec | None) -> tuple[list[Episode], np.ndarray]:
    """The episodes of a file, and their actions before noise: `intended_action`, or else `action`, (sum of T_i, .).

    Args:
        env: the task that the file must fit; None accepts any.

    Raises:
        UserError: an array is missing, or its size contradicts the other arrays or the task; a number isn't finite, an
            action is outside [-1, 1] or a discount outside [0, 1]; or an episode is longer than the task's time limit.
            The message names the first such episode and step.
    """
    arrays = files.load_arrays(path, "recorded episodes", "record them again")
    types = dict.fromkeys(COLUMNS, np.float32) | {"length": np.int64}
    try:
        arrays = {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in types.items() if name in arrays}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: an array isn't plain numbers ({error}).") from error
    return _checked(path, arrays, env)


def _checked(path: Path, arrays: dict[str, np.ndarray], env: EnvSpec | None) -> tuple[list[Episode], np.ndarray]:
    """Check arrays and return them as `read` does. Raises UserError as `read` does."""
    try:
        episodes = rollouts.unpack(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not episodes:
        raise UserError(f"{path}: there are no episodes.")
    obs, action, *others = (arrays[name].shape[1:] for name in Episode._fields)
    if others != [(), ()]:
        raise UserError(f"{path}: reward and discount must be one number a step, not of shapes {others}.")
    if env is not None and (obs, action) != ((env.obs_size,), (env.action_size,)):
        raise UserError(
            f"{path}: observations and actions have shapes {obs} and {action}; {env.env_id} has ({env.obs_size},) and "
            f"({env.action_size},)."
        )
    intended = arrays.get("intended_action", arrays["action"])
    if intended.shape != arrays["action"].shape:
        raise UserError(f"{path}: intended_action has shape {intended.shape}, action {arrays['action'].shape}.")
    meant = np.split(intended, np.cumsum(arrays["length"])[:-1])
    for i, episode in enumerate(episodes):
        if env is not None and (steps := len(episode.reward)) > env.episode_length:
            raise UserError(f"{path}: episode {i} has {steps} steps; {env.env_id} ends at {env.episode_length}.")
        for name, values in (episode._asdict() | {"intended_action": meant[i]}).items():
            low, high = RANGES.get(name, (-np.inf, np.inf))
            bad = np.argwhere(~np.isfinite(values) | (values < low) | (values > high))
            if len(bad) > 0:
                step, allowed = bad[0][0], f"numbers from {low} to {high}" if name in RANGES else "finite numbers"
                raise UserError(f"{path}: {name} of episode {i}, step {step}, is {values[step]}, expected {allowed}.")
    return episodes, intended


# ---- what a run asks for, and takes


def deployed(folder: Path, policy: torch.nn.Module, sigma: float, env: EnvSpec, missing: int) -> list[Episode]:
    """The episodes that you deployed elsewhere for `missing` environment steps.

    Raises:
        FilesNeeded: their file isn't there yet; the policy is exported into `folder`.
        UserError: the file is damaged, has the wrong content, or has a whole episode too many.
    """
    path = folder / "episodes.npz"
    if not path.exists():
        export(policy, env, folder / "policy.torchscript")
        sentence = (
            f"deploy {folder / 'policy.torchscript'} with noise of standard deviation {sigma:g} for {missing} steps in "
            f"whole episodes of up to {env.episode_length} ({-(-missing // env.episode_length)} if none ends early), "
            f"and write them to {path} in the format of common/elsewhere.py"
        )
        _wait(folder, sentence, {"for": "episodes", "steps": missing, "sigma": sigma})
    episodes, _ = read(path, env)
    if (there := rollouts.num_steps(episodes)) >= missing + env.episode_length:
        raise UserError(f"{path} has {there} steps, where {missing} were asked for: leave out whole episodes.")
    if there != missing:
        what = "later deployments make up for it" if there < missing else "later deployments are shorter for it"
        print(f"{path} has {there} of {missing} steps: updates follow the steps that were taken, and {what}.")
    return episodes


def _wait(folder: Path, sentence: str, request: dict[str, Any]) -> None:
    """Write `waiting.json` for programs, then stop the run with the sentence for people."""
    request |= {"folder": folder.name, "cycle": int(folder.name[6:])}
    files.save_json(folder.parent / WAITING, request)
    raise FilesNeeded(f"{sentence}; then go on with --resume {folder.parent}")


def export(policy: torch.nn.Module, env: EnvSpec, path: Path) -> None:
    """Write the policy as TorchScript, on the CPU."""
    with warnings.catch_warnings():  # TorchScript is deprecated, but it is what runs with torch alone and on any device
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(copy.deepcopy(policy).cpu(), torch.zeros(rollouts.BLOCK, env.obs_size))
    files.write_atomically(path, traced.save_to_buffer())


def annotated(
    folder: Path, policy: torch.nn.Module | None, episodes: list[Episode], env: EnvSpec, fraction: float,
    stream: tuple[int, ...],
) -> dict[str, np.ndarray]:  # fmt: skip
    """The teacher's actions for a batch's states, read from a file: `teacher_action` (T, action_size).

    Args:
        policy: the deployed policy. Its action replaces a* in states that you didn't annotate, so equations 6 and 7
            need no mask. It may be None once `annotated.npz` caches the result.
        fraction: the share of the states to annotate; the random numbers of `stream` choose them.

    Raises:
        FilesNeeded: the answers aren't there yet; the states are in `folder`.
        UserError: the answers aren't finite actions in [-1, 1], one for each state.
    """
    taken = folder / "annotated.npz"
    if taken.exists() or policy is None:
        return files.load_arrays(taken, "annotations")
    obs = np.concatenate([episode.obs[:-1] for episode in episodes])
    index = np.sort(np.random.default_rng(stream).permutation(len(obs))[: max(1, round(fraction * len(obs)))])
    path, states = folder / "annotations.npz", folder / "states.npz"
    if not path.exists():
        files.save_arrays(states, obs=obs[index], index=index)
        sentence = (
            f"annotate the {len(index)} states `obs` of {states}: write the teacher's actions as the array `action` "
            f"({len(index)}, {env.action_size}) of {path}"
        )
        _wait(folder, sentence, {"for": "annotations", "states": len(index)})
    action = files.load_arrays(path, "annotations", "write them again").get("action")
    expected = (len(index), env.action_size)
    if action is None or action.shape != expected or not (np.abs(action) <= 1 + 1e-6).all():
        got = "no such array" if action is None else f"shape {action.shape}" if action.shape != expected else "others"
        raise UserError(f"{path}: `action` must be {expected} numbers from -1 to 1, one row per state; it has {got}.")
    with torch.no_grad():
        device = next(policy.parameters()).device
        chunks = torch.from_numpy(obs).to(device).split(ANNOTATE_CHUNK)
        teacher_action = np.concatenate([policy(chunk).cpu().numpy() for chunk in chunks])
    teacher_action[index] = action
    files.save_arrays(taken, teacher_action=teacher_action)
    return {"teacher_action": teacher_action}


# ---- the command


@dataclass
class Args:
    """Make a file of recorded episodes, or check one."""

    path: tyro.conf.Positional[Path]
    """the file"""
    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """episodes to make it of, one .npz file each; give none to check the file"""
    env_id: str | None = None
    """task that it must fit"""


def main(args: Args) -> None:
    """Make and check the file, and print a summary."""
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
