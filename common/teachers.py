"""Teachers: shipped snapshots, snapshot files, your own classes, recorded episodes."""

import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Protocol

import torch

from common import UserError, elsewhere, envs, snapshots
from common.envs import EnvSpec, digest, guard, is_own, load_class
from common.rollouts import check_action

SHIPPED = Path(__file__).resolve().parent.parent / "teachers"
GIVES = ("nothing", "demonstrations", "actions", "action_gradients")  # each includes those before it


class Teacher(Protocol):
    """What the scripts ask of a teacher. Tensors are float32 on the device that the teacher was built for."""

    sha256: str  # identifies its demonstrations
    gives_gradients: bool

    def action(self, obs: torch.Tensor) -> torch.Tensor:
        """a*(s): obs (B, obs_size) -> action (B, action_size) in [-1, 1]."""

    def action_gradient(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """G_a(s, a): obs (B, obs_size), action (B, action_size) -> dQ*/da (B, action_size)."""


class UserTeacher:
    """Your own class from a file, with checked answers. It pickles as its name, and each process builds it once."""

    def __init__(self, name: str, env: EnvSpec, device: torch.device) -> None:
        """Build `Class(env_id, device)` of FILE.py:Class and test it once. Raises UserError if an answer is invalid."""
        self._name, self._env = name, env
        self.sha256, build = digest(name), load_class(name)
        self._teacher = guard(name, "building it", build, env.env_id, device)
        self.gives_gradients = hasattr(self._teacher, "action_gradient")
        self.action(torch.zeros(2, env.obs_size, device=device))
        if self.gives_gradients:
            self.action_gradient(*(torch.zeros(2, size, device=device) for size in (env.obs_size, env.action_size)))

    def __reduce__(self) -> tuple:
        return _built, (self._name, self._env, torch.device("cpu"))  # workers have no GPU

    def _ask(self, what: str, *tensors: torch.Tensor) -> torch.Tensor:
        """Call a method with copies, so that it can't change stored data. Raises UserError on a wrong shape or type."""
        value = guard(self._name, what, getattr(self._teacher, what), *(tensor.clone() for tensor in tensors))
        is_tensor = isinstance(value, torch.Tensor)
        got = f"{value.dtype} {tuple(value.shape)} on {value.device}" if is_tensor else repr(value)
        expected = f"torch.float32 {(len(tensors[0]), self._env.action_size)} on {tensors[0].device}"
        if got != expected:
            raise UserError(f"{self._name}: {what} returned {got}, expected {expected}.")
        return value

    def action(self, obs: torch.Tensor) -> torch.Tensor:
        """The class's action, (B, obs_size) -> (B, action_size). Raises UserError if it isn't within [-1, 1]."""
        return check_action(self._ask("action", obs), f"{self._name}: action")

    def action_gradient(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The class's dQ*/da, (B, action_size). NaN shows in the loss or the parameters, where the run looks for it."""
        return self._ask("action_gradient", obs, action)


@functools.cache
def _built(name: str, env: EnvSpec, device: torch.device) -> UserTeacher:
    """The teacher, which each process builds once."""
    return UserTeacher(name, env, device)


class Recorded:
    """Recorded demonstrations from a file; they can't be queried."""

    gives_gradients = False
    action = None  # `load` refuses this teacher if the method needs actions

    def __init__(self, path: Path, env: EnvSpec) -> None:
        """Read the file. Raises UserError as `elsewhere.read`."""
        self.episodes, self.intended = elsewhere.read(path, env)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()


def load(name: str, env: EnvSpec, needs: str, device: torch.device) -> Teacher | None:
    """Find the teacher that `--teacher` names.

    Args:
        name: `expert` or `mid` (shipped), PATH.pt, FILE.py:Class, recorded episodes FILE.npz, or `none`.
        needs: one of `GIVES`.

    Raises:
        UserError: it doesn't exist, was trained on another task, gives less than the method needs, or answers wrongly.
    """
    teacher: Teacher | None
    if name == "none":
        teacher, gives = None, "nothing"
    elif name.endswith(".npz"):
        teacher, gives = Recorded(Path(name), env), "demonstrations"
    else:
        if is_own(name):
            _built.cache_clear()  # its weights may have changed
            teacher = _built(str(Path(name).resolve()), env, device)
        else:
            teacher = _snapshot(name, env, device)
        gives = "action_gradients" if teacher.gives_gradients else "actions"
    if GIVES.index(gives) < GIVES.index(needs):
        raise UserError(f"--teacher {name}: it gives {gives}, and this method needs {needs}.")
    return teacher


def _snapshot(name: str, env: EnvSpec, device: torch.device) -> snapshots.Snapshot:
    """The shipped teacher or the file `name`. Raises UserError if it is missing or for another task."""
    path = SHIPPED / f"{env.env_id}-{name}.pt" if name in ("expert", "mid") else Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.pt")))
        raise UserError(
            f"--teacher {name}: there is no {path}; these are shipped: {shipped}. "
            "Train one with gbrl_d4pg.py --teacher none, or give FILE.py:Class."
        )
    teacher = snapshots.load(path, device)
    task, sizes = Path(teacher.env_id).name, (env.obs_size, env.action_size)  # your own file may lie elsewhere
    if (task, teacher.sizes) != (Path(env.env_id).name, sizes):
        raise UserError(
            f"--teacher {name}: it is for {task} with sizes {teacher.sizes}, not {env.env_id} with {sizes}."
        )
    return teacher


def demonstrations_file(teacher: Teacher, env: EnvSpec, num_episodes: int, sigma: float, folder: Path) -> Path:
    """The file that caches a snapshot's demonstrations; its name holds all that they depend on.

    Raises:
        UserError: `folder` can't be written.
    """
    task = env.env_id.rpartition(":")[2]  # for your own environment: its class; the versions have its hash
    parts = [task, teacher.sha256[:16], f"sigma{sigma}", *envs.versions(env.env_id), str(num_episodes)]
    path = folder / ("-".join(parts).replace(" ", "").replace("/", "-") + ".npz")
    try:  # fail before the work
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}): choose another --demo-dir.") from error
    return path
