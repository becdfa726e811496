"""The file format of a policy with its critic, and the format's forward pass.

The format has one architecture (paper A.2: three layers of 256; Acme's LayerNorm, tanh and ELU), so that a fork with
other networks still loads the shipped teachers. `save` checks whether the format computes what its own networks do.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from common import UserError, files
from common.envs import EnvSpec

PROBES, TOLERANCE = 64, 1e-5  # random inputs of that check, and the difference that it allows [ours]


class Snapshot:
    """A trained agent, frozen: its policy and, if the file has one, its categorical critic."""

    def __init__(self, content: dict[str, Any], sha256: str, device: torch.device) -> None:
        """Build it from the content that `load` read."""
        self.sha256, self.metadata = sha256, content["metadata"]
        self.env_id, self.sizes = content["env_id"], (content["obs_size"], content["action_size"])
        self._policy = {name: value.to(device) for name, value in content["policy"].items()}
        self._critic = {name: value.to(device) for name, value in content["critic"].items()}
        self._atoms = torch.linspace(content["v_min"], content["v_max"], content["num_atoms"], device=device)
        self.gives_gradients = bool(self._critic) and "critic" not in content.get("foreign", ())

    def action(self, obs: torch.Tensor) -> torch.Tensor:
        """The deterministic policy: obs (B, obs_size) -> (B, action_size)."""
        return torch.tanh(F.linear(_torso(self._policy, obs), self._policy["head.weight"], self._policy["head.bias"]))

    def q_value(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Expected return Q*(s, a): (B, obs_size), (B, action_size) -> (B,)."""
        torso = _torso(self._critic, torch.cat([obs, action], -1))
        logits = F.linear(torso, self._critic["head.weight"], self._critic["head.bias"])
        return (logits.softmax(-1) * self._atoms).sum(-1)

    def action_gradient(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """dQ*/da at (s, a): (B, obs_size), (B, action_size) -> (B, action_size)."""
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            return torch.autograd.grad(self.q_value(obs, action).sum(), action)[0]


def _torso(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Linear, LayerNorm, tanh, then two Linear-ELU: (B, input size) -> (B, hidden size)."""
    x = F.linear(x, weights["torso.0.weight"], weights["torso.0.bias"])
    x = torch.tanh(F.layer_norm(x, x.shape[-1:], weights["torso.1.weight"], weights["torso.1.bias"]))
    x = F.elu(F.linear(x, weights["torso.3.weight"], weights["torso.3.bias"]))
    return F.elu(F.linear(x, weights["torso.5.weight"], weights["torso.5.bias"]))


def save(path: Path, env: EnvSpec, policy: torch.nn.Module, critic: torch.nn.Module, metadata: dict[str, Any]) -> None:
    """Save the weights of a policy and a critic.

    It also saves networks that the format can't represent, but marks them as foreign: `load` refuses a foreign policy,
    and gives no gradients of a foreign critic.

    Args:
        critic: its `atoms`, evenly spaced, are the returns that its logits stand for.
        metadata: plain numbers and strings, such as the seed, the steps and the score.
    """
    content = {"env_id": env.env_id, "obs_size": env.obs_size, "action_size": env.action_size, "metadata": metadata}
    atoms = getattr(critic, "atoms", torch.zeros(1))
    content |= {"num_atoms": len(atoms), "v_min": atoms[0].item(), "v_max": atoms[-1].item()}
    for name, network in (("policy", policy), ("critic", critic)):
        content[name] = {key: value.cpu() for key, value in network.state_dict().items()}
    content["foreign"] = _foreign(content, policy, critic)
    files.save_torch(path, content)


def _foreign(content: dict[str, Any], policy: torch.nn.Module, critic: torch.nn.Module) -> list[str]:
    """Names of the networks whose outputs differ from what the format computes with their weights."""
    device = next(policy.parameters()).device
    generator = torch.Generator().manual_seed(0)  # its own, so that saving changes nothing in a run
    obs = torch.randn(PROBES, content["obs_size"], generator=generator).to(device)
    action = (torch.rand(PROBES, content["action_size"], generator=generator) * 2 - 1).to(device)
    snapshot, foreign = Snapshot(content, "", device), []
    pairs = {
        "policy": lambda: (snapshot.action(obs), policy(obs)),
        "critic": lambda: (snapshot.q_value(obs, action), critic.q_value(obs, action)),
    }
    with torch.no_grad():
        for name, compute in pairs.items():
            try:
                same = torch.allclose(*compute(), rtol=TOLERANCE, atol=TOLERANCE)
            except (KeyError, AttributeError, TypeError, RuntimeError):  # other layers, or no Q(s, a) at all
                same = False
            foreign += [] if same else [name]
    return foreign


def load(path: Path, device: torch.device) -> Snapshot:
    """Load a snapshot.

    Raises:
        UserError: the file is missing, damaged or no snapshot, or the format can't represent its policy.
    """
    cure = "restore it from a copy; write a class FILE.py:Class around a policy of another format"
    content = files.load_torch(path, "policy snapshot", cure)
    if "policy" in content.get("foreign", ()):
        raise UserError(
            f"{path} can't be used as a teacher, scored or filmed: its policy isn't the network that the format of "
            "common/snapshots.py computes. Its weights are in the file; write a class around them, FILE.py:Class."
        )
    try:
        snapshot = Snapshot(content, hashlib.sha256(Path(path).read_bytes()).hexdigest(), device)
        obs, action = (torch.zeros(1, size, device=device) for size in snapshot.sizes)
        if snapshot.action(obs).shape != action.shape:
            raise ValueError("its last layer has another size")
        if snapshot.gives_gradients:
            snapshot.q_value(obs, action)
        if not all(value.isfinite().all() for name in ("policy", "critic") for value in content[name].values()):
            raise ValueError("its weights aren't finite")
    except Exception as error:
        raise UserError(f"{path} is no policy snapshot of this project's format ({error!r}); {cure}.") from error
    return snapshot
