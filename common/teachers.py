"""Teachers: shipped snapshots, a snapshot file, anybody's own class, and the demonstrations they give.

A snapshot is one `.pt` file with a policy and a critic of a fixed architecture (paper A.2: three layers of 256, 51
atoms). This module owns its forward pass, so that a fork with other networks still loads the shipped teachers.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from common import UserError, files
from common.envs import EnvSpec
from common.rollouts import Episode, Workers, pack, unpack

SHIPPED = Path(__file__).resolve().parent.parent / "teachers"
NEEDS = ("nothing", "demonstrations", "actions", "action_gradients")  # each includes the ones before it


class Teacher(Protocol):
    """What the scripts ask of a teacher. Tensors are float32 on the device that the teacher was built for."""

    sha256: str  # names its demonstrations
    gives_gradients: bool

    def action(self, obs: torch.Tensor) -> torch.Tensor:
        """a*(s): obs (B, obs_size) -> action (B, action_size) in [-1, 1]."""
        ...

    def action_gradient(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """G_a(s, a): obs (B, obs_size), action (B, action_size) -> dQ*/da (B, action_size)."""
        ...


class Snapshot:
    """A trained agent, frozen: its policy and, if the file has one, its categorical critic."""

    def __init__(self, content: dict[str, Any], sha256: str, device: torch.device) -> None:
        """Take what `load_snapshot` read."""
        self.sha256, self.metadata = sha256, content["metadata"]
        self.env_id, self.sizes = content["env_id"], (content["obs_size"], content["action_size"])
        self._policy = {name: value.to(device) for name, value in content["policy"].items()}
        self._critic = {name: value.to(device) for name, value in content["critic"].items()}
        self._atoms = torch.linspace(content["v_min"], content["v_max"], content["num_atoms"], device=device)
        self.gives_gradients = bool(self._critic)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_atoms": self._atoms.cpu()}  # workers have no GPU
        for name in ("_policy", "_critic"):
            state[name] = {key: value.cpu() for key, value in state[name].items()}
        return state

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
            if not action.requires_grad:
                action = action.detach().requires_grad_()
            return torch.autograd.grad(self.q_value(obs, action).sum(), action)[0]


def _torso(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Linear, LayerNorm, tanh, then two Linear-ELU: (B, input size) -> (B, hidden size)."""
    x = F.linear(x, weights["torso.0.weight"], weights["torso.0.bias"])
    x = torch.tanh(F.layer_norm(x, x.shape[-1:], weights["torso.1.weight"], weights["torso.1.bias"]))
    x = F.elu(F.linear(x, weights["torso.3.weight"], weights["torso.3.bias"]))
    return F.elu(F.linear(x, weights["torso.5.weight"], weights["torso.5.bias"]))


def save_snapshot(
    path: Path,
    env: EnvSpec,
    policy: torch.nn.Module,
    critic: torch.nn.Module,
    support: tuple[int, float, float],
    metadata: dict[str, Any],
) -> None:
    """Save the weights of a policy and a critic in the snapshot format.

    Args:
        support: the critic's (number of atoms, lowest atom, highest atom).
        metadata: plain numbers and strings, such as the seed, the steps and the score.
    """
    num_atoms, v_min, v_max = support
    content = {"env_id": env.env_id, "obs_size": env.obs_size, "action_size": env.action_size, "metadata": metadata}
    content |= {"num_atoms": num_atoms, "v_min": float(v_min), "v_max": float(v_max)}
    for name, network in (("policy", policy), ("critic", critic)):
        content[name] = {key: value.cpu() for key, value in network.state_dict().items()}
    files.save_torch(path, content)


def load_snapshot(path: Path, device: torch.device) -> Snapshot:
    """Load a snapshot.

    Raises:
        UserError: the file is missing, damaged, or not in the snapshot format.
    """
    content = files.load_torch(path, "teacher snapshot")
    try:
        sizes = content["policy"]["torso.0.weight"].shape[1], content["policy"]["head.weight"].shape[0]
        if sizes != (content["obs_size"], content["action_size"]):
            raise ValueError(f"its layers are for sizes {sizes}")
        if not all(value.isfinite().all() for name in ("policy", "critic") for value in content[name].values()):
            raise ValueError("its weights aren't finite")
        snapshot = Snapshot(content, hashlib.sha256(Path(path).read_bytes()).hexdigest(), device)
        obs, action = torch.zeros(1, sizes[0], device=device), torch.zeros(1, sizes[1], device=device)
        snapshot.action(obs)
        if snapshot.gives_gradients:
            snapshot.q_value(obs, action)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{path} is no policy snapshot of this project's format ({error!r}).") from error
    return snapshot


class UserTeacher:
    """Somebody's own class from a file, its answers checked. Pickles as its file and class name, not its state."""

    def __init__(self, path: str, class_name: str, env: EnvSpec, device: torch.device) -> None:
        """Import the file and build `Class(env_id, device)`.

        Raises:
            UserError: the file or class is missing, or building it raised.
        """
        self._key, self._name, self._env = (path, class_name, env, device), f"{path}:{class_name}", env
        source = Path(path)
        if not source.is_file():
            raise UserError(f"--teacher {self._name}: there is no file {path}.")
        self.sha256 = hashlib.sha256(source.read_bytes() + class_name.encode()).hexdigest()
        module = self._guard("importing it", lambda: _import_file(source))
        if not hasattr(module, class_name):
            raise UserError(f"--teacher {self._name}: {path} defines no {class_name}.")
        self._teacher = self._guard("building it", lambda: getattr(module, class_name)(env.env_id, device))
        self.gives_gradients = hasattr(self._teacher, "action_gradient")

    def __reduce__(self) -> tuple:
        return UserTeacher, (*self._key[:3], torch.device("cpu"))  # workers have no GPU

    def _guard(self, doing: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # it is foreign code: whatever it raises is reported under its name
            raise UserError(f"teacher {self._name}: {doing} raised {error!r}.") from error

    def _checked(self, value: Any, batch_size: int, what: str) -> torch.Tensor:
        expected = (batch_size, self._env.action_size)
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != expected or value.dtype != torch.float32:
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise UserError(f"teacher {self._name}: {what} returned {got}, expected torch.float32 {expected}.")
        return value

    def action(self, obs: torch.Tensor) -> torch.Tensor:
        """The class's action, (B, obs_size) -> (B, action_size), refused if not finite and within [-1, 1]."""
        action = self._checked(self._guard("action", lambda: self._teacher.action(obs)), len(obs), "action")
        largest = action.abs().max().item()
        if not largest <= 1 + 1e-6:  # also true for NaN
            raise UserError(f"teacher {self._name}: action returned entries of size {largest}, expected [-1, 1].")
        return action

    def action_gradient(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The class's dQ*/da, (B, action_size). Asked at every update: NaN is left to the run's non-finite check."""
        gradient = self._guard("action_gradient", lambda: self._teacher.action_gradient(obs, action))
        return self._checked(gradient, len(obs), "action_gradient")

    def check_gradient(self, obs: np.ndarray, action: np.ndarray) -> None:
        """Raise UserError if its gradient isn't finite at one of (B, obs_size), (B, action_size)."""
        device = self._key[3]
        gradient = self.action_gradient(torch.from_numpy(obs).to(device), torch.from_numpy(action).to(device))
        bad = (~torch.isfinite(gradient)).any(-1).nonzero()
        if len(bad) > 0:
            i = int(bad[0])
            at = f"at observation {obs[i].tolist()} and action {action[i].tolist()}"
            raise UserError(f"teacher {self._name}: action_gradient returned {gradient[i].tolist()} {at}.")


def _import_file(path: Path) -> ModuleType:
    name = f"teacher_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load(name: str, env: EnvSpec, needs: str, device: torch.device) -> Teacher | None:
    """Find the teacher that `--teacher` names, and ask it once to see that it answers.

    Args:
        name: `expert` or `mid` (shipped), PATH.pt, FILE.py:Class, or `none`.
        needs: one of `NEEDS`.

    Raises:
        UserError: it doesn't exist, was trained on another task, gives less than is needed, or answers nonsense.
    """
    if name == "none":
        if needs != "nothing":
            raise UserError(f"--teacher none: this script needs a teacher that gives {needs.replace('_', ' ')}.")
        return None
    if name.rpartition(":")[0].endswith(".py"):
        path, _, class_name = name.rpartition(":")
        teacher: Teacher = UserTeacher(str(Path(path).resolve()), class_name, env, device)
    else:
        path = SHIPPED / f"{env.env_id}-{name}.pt" if name in ("expert", "mid") else Path(name)
        if not path.is_file():
            shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.pt"))) or "none"
            raise UserError(
                f"--teacher {name}: there is no {path}; shipped are: {shipped}. "
                "Train one with gbrl_d4pg.py --teacher none, or give FILE.py:Class."
            )
        teacher = load_snapshot(path, device)
        if teacher.env_id != env.env_id:
            raise UserError(f"--teacher {name}: it was trained on {teacher.env_id}, not on {env.env_id}.")
        if teacher.sizes != (env.obs_size, env.action_size):
            raise UserError(f"--teacher {name}: it is for observations and actions of sizes {teacher.sizes}.")
    if needs == "action_gradients" and not teacher.gives_gradients:
        raise UserError(f"--teacher {name}: it has no action_gradient, which this script needs.")
    teacher.action(torch.zeros(2, env.obs_size, device=device))
    if needs == "action_gradients" and isinstance(teacher, UserTeacher):
        teacher.check_gradient(*(np.zeros((2, size), np.float32) for size in (env.obs_size, env.action_size)))
    return teacher


def demonstrations(
    teacher: Teacher,
    env: EnvSpec,
    num_episodes: int,
    sigma: float,
    folder: Path,
    workers: Workers,
    on_episodes: Callable[[list[Episode]], Any] = lambda _: None,
) -> list[Episode]:
    """Episodes of the teacher, seeded by its hash alone: one data set per teacher, cached as one file in `folder`.

    A cached file that is shorter than asked is extended; one that is damaged, or of another teacher, task, noise or
    version of dm_control or MuJoCo, is made again. Runs that need the same file at once wait for the first.
    """
    versions = [f"{package} {importlib.metadata.version(package)}" for package in ("dm-control", "mujoco")]
    origin = ", ".join([env.env_id, f"teacher {teacher.sha256}", f"sigma {sigma:g}", *versions])
    key = f"{env.env_id}-{teacher.sha256[:16]}-sigma{sigma:g}"
    path = folder / f"{key}.npz"
    with files.writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / f".{key}.lock", "w")  # noqa: SIM115 (closed below)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it when this process ends, however it ends
        files.remove_leftovers(folder, path.name)
        episodes: list[Episode] = []
        if path.exists():
            try:
                arrays = files.load_arrays(path, "demonstrations")
                if (found := str(arrays.pop("origin"))) != origin:
                    raise UserError(f"demonstrations {path} are of {found}, not of {origin}.")
                episodes = unpack(arrays)[0]
            except (UserError, KeyError) as error:
                print(f"{error} They are made again.", file=sys.stderr)
        if len(episodes) < num_episodes:
            if episodes:
                on_episodes(episodes)
            stream = (int(teacher.sha256, 16),)
            missing = range(len(episodes), num_episodes)
            episodes += workers.collect(env.env_id, teacher.action, sigma, stream, missing, on_episodes)
            files.save_arrays(path, origin=np.array(origin), **pack(episodes, [0] * len(episodes)))
    return episodes[:num_episodes]
