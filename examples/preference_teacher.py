"""A teacher that can only say which of two actions it prefers (the second form of section 3.4).

    python examples/preference_teacher.py --env-id cartpole-swingup --answers 10000 --wrong 0.2
    python gbrl_teacher_grad.py --teacher examples/preference_teacher.py:Preferences --env-id cartpole-swingup

The first command collects answers: in states of the teacher's own noisy episodes, it compares pairs of actions near the
teacher's action. Here the shipped expert's critic answers, and a share of the answers is wrong; replace `answer` to ask
a person. The command fits a model of (s, a) that gives the preferred action the higher value (Bradley and Terry 1952),
and saves it beside this file. In the second command, the model's gradient with respect to the action is the teacher's.
At its end the first command prints how often the model agrees with the critic on new pairs, and the return of
actions moved along its gradient by up to 0.3, the standard deviation of the questions, and by up to 1.
study/results/preferences has these numbers, and their effect in a run.
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from common import UserError, envs, rollouts, snapshots, teachers
from common.workers import Workers

SIGMA = 0.3  # of the noise in the episodes, and of the compared actions [as the exploration noise]
STREAM = 0x70726566  # ASCII "pref": the episodes' start states, which no run uses
EPISODES = 20  # whose states we ask about


class Model(nn.Module):
    """A value of (s, a), for comparisons only: obs (B, obs_size), action (B, action_size) -> (B,)."""

    def __init__(self, obs_size: int, action_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(obs_size + action_size, 256), nn.LayerNorm(256), nn.Tanh(),
            nn.Linear(256, 256), nn.ELU(), nn.Linear(256, 1),
        )  # fmt: skip

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([obs, action], -1)).squeeze(-1)


def expert(env_id: str, device: torch.device) -> snapshots.Snapshot:
    """The snapshot that demonstrates and answers."""
    return snapshots.load(teachers.SHIPPED / f"{env_id}-expert.pt", device)


class Preferences:
    """The expert's demonstrations, and the gradient of the model that was fitted to its preferences."""

    def __init__(self, env_id: str, device: torch.device) -> None:
        """Load the model. Raises UserError if you haven't run the first command."""
        self.expert, path = expert(env_id, device), model_path(env_id)
        if not path.is_file():
            raise UserError(f"ask first: python examples/preference_teacher.py --env-id {env_id}")
        self.model = Model(*self.expert.sizes).to(device)
        self.model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        self.model.requires_grad_(False)

    def action(self, obs: torch.Tensor) -> torch.Tensor:
        """The expert's action, (B, obs_size) -> (B, action_size)."""
        return self.expert.action(obs)

    def action_gradient(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The model's gradient, towards preferred actions: (B, obs_size), (B, action_size) -> (B, action_size)."""
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            return torch.autograd.grad(self.model(obs, action).sum(), action)[0]


class Follower:
    """An actor that moves the expert's action along the gradient, in shrinking steps, by about `reach` per entry."""

    steps = 30

    def __init__(self, teacher: Preferences, reach: float) -> None:
        self.teacher, self.reach = teacher, reach

    def __call__(self, obs: torch.Tensor) -> torch.Tensor:
        """obs (B, obs_size) -> action (B, action_size)."""
        action = self.teacher.action(obs)
        for step in range(self.steps):
            length = 2 * self.reach / self.steps * (1 - step / self.steps) * action.shape[-1] ** 0.5
            action = (action + length * F.normalize(self.teacher.action_gradient(obs, action))).clamp(-1, 1)
        return action


@dataclass
class Args:
    """Ask for preferences and fit the model."""

    env_id: str = "cartpole-swingup"
    """task"""
    answers: int = 10_000
    """pairs of actions that are compared"""
    wrong: float = 0.0
    """share of wrong answers"""
    steps: int = 5_000
    """steps of fitting, 256 answers each"""
    seed: int = 1
    """seed of the pairs, the wrong answers and the fit"""


def model_path(env_id: str) -> Path:
    """Where the model of a task is saved."""
    return Path(__file__).resolve().parent / f"preferences-{env_id}.pt"


def answer(teacher: snapshots.Snapshot, obs: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Whether `first` is better than `second` in each state, (B,) of bool. Replace this to ask a person."""
    return teacher.q_value(obs, first) > teacher.q_value(obs, second)


def main(args: Args) -> None:
    """Ask, fit and save, then test the model on new pairs."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    teacher = expert(args.env_id, torch.device("cpu"))
    with contextlib.closing(Workers(envs.spec(args.env_id), 2)) as workers:
        episodes = workers.episodes(teacher.action, SIGMA, (STREAM,), range(EPISODES), "episodes")
    states = torch.cat([torch.from_numpy(episode.obs[:-1]) for episode in episodes])

    def ask(count: int) -> tuple[torch.Tensor, ...]:
        obs = states[torch.randint(len(states), (count,))]
        centre = teacher.action(obs)
        first, second = ((centre + SIGMA * torch.randn_like(centre)).clamp(-1, 1) for _ in range(2))
        return obs, first, second, answer(teacher, obs, first, second)

    obs, first, second, better = ask(args.answers)
    better = better ^ (torch.rand(args.answers) < args.wrong)
    model = Model(*teacher.sizes)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=0.01)
    for _ in range(args.steps):
        index = torch.randint(args.answers, (256,))
        difference = model(obs[index], first[index]) - model(obs[index], second[index])
        loss = F.binary_cross_entropy_with_logits(difference, better[index].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), model_path(args.env_id))

    obs, first, second, better = ask(10_000)
    with torch.no_grad():
        agrees = ((model(obs, first) > model(obs, second)) == better).float().mean().item()
    mine, action = Preferences(args.env_id, torch.device("cpu")), teacher.action(obs)
    cosine = F.cosine_similarity(mine.action_gradient(obs, action), teacher.action_gradient(obs, action)).mean().item()
    print(f"{args.answers} answers, {args.wrong:.0%} wrong: {agrees:.3f} of 10,000 new answers agree with the teacher,")
    print(f"mean cosine of the gradients {cosine:.3f}; saved {model_path(args.env_id)}")
    for reach in (SIGMA, 1.0):
        block = rollouts.run_block(args.env_id, Follower(mine, reach), 0.0, (STREAM, 1), range(5))
        score = sum(episode.episodic_return for episode in block) / len(block)
        print(f"return {score:.0f} (5 episodes) for following the gradient by up to {reach:g} from the expert's action")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
