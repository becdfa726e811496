"""Any trained torch policy with its own critic as a teacher that gives actions and gradients.

    python gbrl_teacher_grad.py --teacher examples/torch_teacher.py:PolicyWithCritic --scale 0.02

Copy this file, replace `Policy` and `Critic` by your networks, and save their `state_dict`s as the file that
`find_weights` looks for: torch.save({"policy": ..., "critic": ...}, "cartpole-swingup.pt"). Until then the class
reads the weights of the teacher that ships with this project, so that it runs as it is.

Each run makes the demonstrations of such a class again, because only the class knows which weights it reads.

For a Stable-Baselines3 agent of the same Gymnasium task, three parts change (we haven't run this one). Its networks'
actions are in [-1, 1], as here; only `agent.predict` rescales them, so call the networks below it:

    self.agent = stable_baselines3.TD3.load(path, device=device)      # in __init__; SAC and DDPG likewise
    return self.agent.actor(obs)                                      # in action; SAC: actor(obs, deterministic=True)
    return torch.min(*self.agent.critic(obs, action))[:, 0]           # in place of self.critic; DDPG has one critic

Set `requires_grad_(False)` on both networks, and `.policy.set_training_mode(False)`. If you trained with VecNormalize,
normalise `obs` with its statistics first. PPO and A2C have no Q(s, a): they can give actions, but no gradients.
"""

from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
V_MIN, V_MAX = -150.0, 150.0  # the range of returns that the critic's outputs stand for


def torso(input_size: int, hidden: int = 256) -> nn.Sequential:
    """Three layers: (B, input_size) -> (B, hidden)."""
    first = [nn.Linear(input_size, hidden), nn.LayerNorm(hidden), nn.Tanh()]
    return nn.Sequential(*first, nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU())


class Policy(nn.Module):
    """obs (B, obs_size) -> action (B, action_size) in (-1, 1)."""

    def __init__(self, obs_size: int, action_size: int) -> None:
        super().__init__()
        self.torso, self.head = torso(obs_size), nn.Linear(256, action_size)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.head(self.torso(obs)))


class Critic(nn.Module):
    """Q(s, a), a scalar: obs (B, obs_size), action (B, action_size) -> (B,). Here the mean of a distribution."""

    def __init__(self, input_size: int, num_atoms: int) -> None:
        super().__init__()
        self.torso, self.head = torso(input_size), nn.Linear(256, num_atoms)
        self.register_buffer("atoms", torch.linspace(V_MIN, V_MAX, num_atoms), persistent=False)

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.torso(torch.cat([obs, action], -1)))
        return (logits.softmax(-1) * self.atoms).sum(-1)


def find_weights(env_id: str) -> Path:
    """The weights' file: beside this one, or else the shipped teacher's. Raises FileNotFoundError."""
    own, shipped = HERE / f"{env_id}.pt", HERE.parent / "teachers" / f"{env_id}-expert.pt"
    if not own.is_file() and not shipped.is_file():
        raise FileNotFoundError(f"there are no weights for {env_id}: save them as {own}")
    return own if own.is_file() else shipped


class PolicyWithCritic:
    """The policy's actions, and the gradient of the critic's value with respect to the action."""

    def __init__(self, env_id: str, device: torch.device) -> None:
        """Load both networks onto `device`; a worker builds its own copy on the CPU."""
        weights = torch.load(find_weights(env_id), map_location=device, weights_only=True)
        action_size, obs_size = len(weights["policy"]["head.bias"]), weights["policy"]["torso.0.weight"].shape[1]
        self.policy = Policy(obs_size, action_size).to(device)
        self.critic = Critic(obs_size + action_size, len(weights["critic"]["head.bias"])).to(device)
        self.policy.load_state_dict(weights["policy"])
        self.critic.load_state_dict(weights["critic"])
        self.policy.eval().requires_grad_(False)
        self.critic.eval().requires_grad_(False)

    def action(self, obs: torch.Tensor) -> torch.Tensor:
        """The policy without noise: (B, obs_size) -> (B, action_size) in [-1, 1]."""
        return self.policy(obs)

    def action_gradient(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """dQ/da: (B, obs_size), (B, action_size) -> (B, action_size); tensors only, so that --compile traces it."""
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            return torch.autograd.grad(self.critic(obs, action).sum(), action)[0]
