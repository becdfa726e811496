"""Convert a Minari data set to a file of recorded demonstrations, for `--teacher mine.npz`.

    pip install minari h5py
    minari download mujoco/humanoid/expert-v0
    python examples/minari_demonstrations.py mujoco/humanoid/expert-v0 mine.npz

This rescales actions from the data set's bounds to [-1, 1], as for a task, and flattens Dict observations in the order
of their space. A termination gets discount 0, a time limit 1.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, elsewhere


def load(name: str) -> Any:
    """The Minari data set `name`. Raises UserError if Minari or the data set isn't on this machine."""
    try:
        import minari
    except ImportError as error:
        raise UserError("this example needs Minari: pip install minari h5py") from error
    try:
        return minari.load_dataset(name)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"the data set {name} isn't on this machine; get it with: minari download {name}") from error


def flatten(space: Any, values: Any) -> np.ndarray:
    """Observations of a Box, or of a Dict of Boxes in the order of the space, as (T + 1, obs_size).

    Raises:
        UserError: the space holds anything else.
    """
    if hasattr(space, "spaces") and hasattr(values, "keys"):
        return np.concatenate([flatten(part, values[name]) for name, part in space.spaces.items()], 1)
    if not hasattr(space, "low"):
        raise UserError(f"observations must be a Box or a Dict of Boxes, not {space}.")
    return np.asarray(values, np.float32).reshape(len(values), -1)


def episodes(dataset: Any) -> list[dict[str, np.ndarray]]:
    """The data set's episodes as `elsewhere.write` takes them.

    Raises:
        UserError: actions aren't a Box with finite bounds, or one lies outside them.
    """
    space = dataset.action_space
    if not hasattr(space, "low") or not np.isfinite([space.low, space.high]).all():
        raise UserError(f"actions must be a Box with finite bounds, not {space}.")
    middle, half_range = (space.high + space.low) / 2.0, (space.high - space.low) / 2.0
    made = []
    for episode in dataset.iterate_episodes():
        action = ((episode.actions - middle) / half_range).reshape(len(episode.actions), -1)
        if (worst := np.abs(action).max(initial=0)) > 1 + 1e-4:
            raise UserError(
                f"episode {episode.id} has an action of {worst:.3g} times the bounds {space.low} to {space.high}."
            )
        made.append(
            {
                "obs": flatten(dataset.observation_space, episode.observations),
                "action": action.clip(-1, 1),  # float32 may round a bound up
                "reward": episode.rewards,
                "discount": 1.0 - np.asarray(episode.terminations, np.float32),
            }
        )
    return made


@dataclass
class Args:
    """Make a file of recorded demonstrations from a Minari data set."""

    dataset: tyro.conf.Positional[str]
    """name of a data set that is on this machine"""
    path: tyro.conf.Positional[Path]
    """the file to write"""


def main(args: Args) -> None:
    """Write the file and print a summary."""
    elsewhere.write(args.path, episodes(load(args.dataset)))
    elsewhere.main(elsewhere.Args(args.path))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
