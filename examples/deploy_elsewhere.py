"""Your part in a run with `--deploy elsewhere` or `--annotate elsewhere`: bring it the file that it waits for.

    python examples/deploy_elsewhere.py RUN_DIR --teacher expert

This stands for the robot or the clinic. The task is simulated and the teacher is a file, so that you can try the whole
loop: the result is that of `--deploy here` and `--annotate here`, bit for bit. If your task is real, you need only
the last lines of `deploy` and `annotate`: they show which file to write, with what in it.
"""

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from common import UserError, elsewhere, envs, files, rollouts, teachers
from common.workers import Workers


@dataclass
class Args:
    """Bring a waiting run what it asks for."""

    run_dir: tyro.conf.Positional[Path]
    """the run that waits"""
    teacher: str = "expert"
    """teacher that annotates the states, as --teacher of a script"""
    num_workers: int = 0
    """processes that run the episodes"""


class Exported(torch.nn.Module):
    """A policy that was exported as TorchScript; pickles as its file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.policy = path, torch.jit.load(path)

    def __reduce__(self) -> tuple:
        return Exported, (self.path,)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """obs (B, obs_size) -> action (B, action_size)."""
        return self.policy(obs)


def deploy(folder: Path, args: dict, cycle: int, missing: int, num_workers: int) -> None:
    """Run the exported policy for `missing` steps and write the episodes."""
    stream, policy = (args["seed"], rollouts.DEPLOY, cycle), Exported(folder / "policy.torchscript")
    with contextlib.closing(Workers(envs.spec(args["env_id"]), num_workers)) as workers:
        episodes = workers.steps(policy, args["sigma"], stream, missing, "deploying")
    elsewhere.write(folder / "episodes.npz", [episode._asdict() for episode in episodes])


def annotate(folder: Path, teacher: teachers.Teacher) -> None:
    """Write the teacher's action in each state that the run asks about."""
    obs = torch.from_numpy(files.load_arrays(folder / "states.npz", "states")["obs"])
    # In chunks of 4,096 as the run itself asks, because other numbers of rows round differently.
    action = torch.cat([teacher.action(obs[start : start + 4096]) for start in range(0, len(obs), 4096)])
    files.save_arrays(folder / "annotations.npz", action=action.numpy())


def main(args: Args) -> None:
    """Find out what the run waits for, and bring it. Raises UserError if it waits for nothing."""
    if not (args.run_dir / "waiting.json").exists():
        raise UserError(f"{args.run_dir} waits for nothing: --resume it.")
    torch.set_num_threads(1)  # as in the run, to the last bit
    torch.set_flush_denormal(True)
    request = json.loads((args.run_dir / "waiting.json").read_text())
    run_args = json.loads((args.run_dir / "args.json").read_text())["args"]
    folder = args.run_dir / request["folder"]
    if request["for"] == "episodes":
        deploy(folder, run_args, request["cycle"], request["steps"], args.num_workers)
    else:
        env = envs.spec(run_args["env_id"])
        annotate(folder, teachers.load(args.teacher, env, "actions", torch.device("cpu")))
    print(f"brought {request['for']} for cycle {request['cycle']}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
