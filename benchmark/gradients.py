"""How do a student's critic and its teacher's pull at the actions that a run deploys? Asked of a run, after the fact.

    python benchmark/gradients.py RUN_DIR [RUN_DIR ...]

For each policy pi_k that was deployed, on the states of its batch: the length of dQ/da at a = pi_k(s), clipped as the
losses clip it, of the student's critic at the time and of the teacher's; the cosine between them, weighted by the
teacher's length as `teacher/dqda_cosine` is; and how strongly each pulls back once the action has moved by d in a
direction u drawn uniformly, (g(s, a) - g(s, clip(a + d u))) . u, a mean. A critic that pulls back holds the policy to
a place; one that doesn't says in which direction to go, and not how far.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from claims import table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

import gbrl_teacher_grad
from common import UserError, envs, files, rollouts, snapshots, teachers

CPU = torch.device("cpu")
STATES = 4096  # at most, evenly spread over the batch, as `teacher/dqda_cosine` takes them


@dataclass
class Args:
    """Which runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of runs; policies whose snapshot or batch isn't there are left out"""
    distance: float = 0.3
    """d, how far actions are moved [the default exploration noise's sigma]"""


def pulls(
    critic: snapshots.Snapshot | teachers.Teacher, obs: torch.Tensor, action: torch.Tensor, moved: torch.Tensor,
    direction: torch.Tensor, clip: float,
) -> tuple[torch.Tensor, float]:  # fmt: skip
    """The clipped dQ/da at the actions, (B, action_size), and its mean pull against `direction` once they have moved.

    Args:
        obs: (B, obs_size). action, moved, direction: (B, action_size); directions have length 1.
    """
    here, there = (gbrl_teacher_grad.clip_norm(critic.action_gradient(obs, a), clip) for a in (action, moved))
    return here, ((here - there) * direction).sum(-1).mean().item()


def measure(run: Path, distance: float) -> list[list[str]]:
    """A line of the table for each policy of the run that was deployed.

    Raises:
        UserError: a file is missing or damaged, or the run's teacher gives no gradients.
    """
    saved = files.load_json(run / "args.json", "arguments")
    flags = vars(gbrl_teacher_grad.Args()) | saved["args"]  # teacher_dqda_clip is that script's own
    env = envs.spec(flags["env_id"])
    teacher = teachers.load(flags["teacher"], env, "action_gradients", CPU)
    lines = []
    for folder in sorted(run.glob("cycle_*"), key=lambda path: int(path.name[6:])):
        cycle = int(folder.name[6:])
        snapshot, batch = folder / "snapshot.pt", run / f"cycle_{cycle + 1:04d}" / "batch.npz"
        if not (snapshot.is_file() and batch.is_file()):
            continue
        student = snapshots.load(snapshot, CPU)
        episodes, _ = rollouts.unpack(files.load_arrays(batch, "batch"))
        states = np.concatenate([episode.obs[:-1] for episode in episodes])
        obs = torch.from_numpy(states[:: -(-len(states) // STATES)])
        action = student.action(obs)
        direction = F.normalize(torch.randn(action.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
        at = obs, action, (action + distance * direction).clamp(-1, 1), direction
        own, own_pull = pulls(student, *at, flags["dqda_clip"])
        guidance, pull = pulls(teacher, *at, flags["teacher_dqda_clip"])
        raw = teacher.action_gradient(obs, action).norm(dim=-1)
        cosine = (raw * F.cosine_similarity(own, guidance, dim=-1)).sum() / raw.sum().clamp(min=1e-12)
        deployed = np.mean([episode.episodic_return for episode in episodes])
        lengths = [f"{vectors.norm(dim=-1).mean():.2f}" for vectors in (own, guidance)]
        names = [flags["env_id"], saved["row"], f"pi_{cycle}", f"{deployed:.0f}"]
        lines.append([*names, *lengths, f"{cosine:.2f}", f"{own_pull:.3f}", f"{pull:.3f}"])
    return lines


def main(args: Args) -> None:
    """Print the table. Raises UserError for what the user can put right."""
    lines = [line for run in args.runs for line in measure(run, args.distance)]
    if not lines:
        raise UserError("there is nothing to measure: no policy with both its snapshot.pt and its batch.npz.")
    head = ["task", "row", "policy", "deployed", "length", "teacher's", "cosine", "pulls back", "teacher's"]
    print(table(head, lines))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
