"""Deployment and annotation by somebody else: what they need is written, and the run waits for what they bring back.

Each exchange is a file in the folder of the cycle; `waiting.json` in the run's folder says to programs which, and is
there only while the run waits.
`policy.torchscript` maps obs (B, obs_size) float32 to actions (B, action_size) and runs without this repository:
`torch.jit.load("policy.torchscript")`.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import UserError, Waiting, files, recorded, rollouts
from common.envs import EnvSpec
from common.replay import ANNOTATE_CHUNK
from common.rollouts import Episode

EPISODES, STATES, ANNOTATIONS, TAKEN = "episodes.npz", "states.npz", "annotations.npz", "annotated.npz"
WAITING = "waiting.json"


def deployed(folder: Path, policy: torch.nn.Module, sigma: float, env: EnvSpec, missing: int) -> list[Episode]:
    """The episodes that somebody else has deployed for `missing` environment steps.

    Raises:
        Waiting: they aren't there yet; the policy is exported into `folder`.
        UserError: their file is damaged, isn't what such a file must be, or has a whole episode too many.
    """
    path = folder / EPISODES
    if not path.exists():
        folder.mkdir(exist_ok=True)
        export(policy, env, folder / "policy.torchscript")
        sentence = (
            f"deploy {folder / 'policy.torchscript'} with noise of standard deviation {sigma:g} for {missing} steps in "
            f"whole episodes of up to {env.episode_length} ({-(-missing // env.episode_length)} if none ends early), "
            f"write them to {path} as common/recorded.py says"
        )
        _wait(folder, sentence, {"for": "episodes", "steps": missing, "sigma": sigma})
    episodes, _ = recorded.read(path, env)
    if (there := rollouts.num_steps(episodes)) >= missing + env.episode_length:
        raise UserError(f"{path} has {there} steps, where {missing} were asked for: leave out whole episodes.")
    if there != missing:
        what = "later deployments make up for it" if there < missing else "later deployments are shorter for it"
        print(f"{path} has {there} of {missing} steps: updates follow the steps that were taken, and {what}.")
    return episodes


def _wait(folder: Path, sentence: str, request: dict[str, Any]) -> None:
    """Write down for programs what the run waits for, and stop with the sentence for people."""
    request |= {"folder": folder.name, "cycle": int(folder.name[6:])}
    files.save_json(folder.parent / WAITING, request)
    raise Waiting(f"{sentence}; then go on with --resume {folder.parent}")


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
    """The teacher's actions for a batch's states, `teacher_action` (T, action_size), as they came from elsewhere.

    Args:
        policy: the deployed policy. Its action stands in for a* in states that nobody annotated, so equations 6 and 7
            need no mask. What was taken once is kept in `annotated.npz`, and None will do then.
        fraction: the share of the states that are asked about, drawn by `stream`.

    Raises:
        Waiting: the answers aren't there yet; the states are in `folder`.
        UserError: the answers aren't finite actions in [-1, 1], one for each state.
    """
    if (folder / TAKEN).exists():
        return files.load_arrays(folder / TAKEN, "annotations")
    obs = np.concatenate([episode.obs[:-1] for episode in episodes])
    rng = np.random.default_rng(np.random.SeedSequence([*stream]))
    index = np.sort(rng.permutation(len(obs))[: max(1, round(fraction * len(obs)))])
    path = folder / ANNOTATIONS
    if not path.exists():
        files.save_arrays(folder / STATES, obs=obs[index], index=index)
        sentence = (
            f"annotate the {len(index)} states `obs` of {folder / STATES}: write the teacher's actions as the array "
            f"`action` ({len(index)}, {env.action_size}) of {path}"
        )
        _wait(folder, sentence, {"for": "annotations", "states": len(index)})
    action = files.load_arrays(path, "annotations", "write them again").get("action")
    expected = (len(index), env.action_size)
    if action is None or action.shape != expected or not (np.abs(action) <= 1 + 1e-6).all():
        got = "no such array" if action is None else f"shape {action.shape}" if action.shape != expected else "others"
        raise UserError(f"{path}: `action` must be {expected} numbers from -1 to 1, one line a state; it has {got}.")
    with torch.no_grad():
        device = next(policy.parameters()).device
        chunks = torch.from_numpy(obs).to(device).split(ANNOTATE_CHUNK)
        teacher_action = np.concatenate([policy(chunk).cpu().numpy() for chunk in chunks])
    teacher_action[index] = action
    files.save_arrays(folder / TAKEN, teacher_action=teacher_action)
    return {"teacher_action": teacher_action}
