"""A run's folder: arguments, metrics, batches, policies, checkpoints, and an exact way to go on after any kind of end.

A script's `main` always reads from the top. When a run is continued, phases that were finished before are skipped and
`Run.enter` restores the whole state at the phase that the last checkpoint belongs to, so no script holds resume logic.
"""

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from common import UserError, files, report, rollouts, teachers
from common.envs import EnvSpec
from common.rollouts import Actor, Episode, Pending

ROOT = Path(__file__).resolve().parent.parent
# The streams of episodes under one run seed; demonstrations have the teacher's hash instead.
DEPLOY, EVALUATE, REPORT = 1, 2, 3
WEIGHTS, SAMPLING = 4, 5  # and of random numbers
CLOCKS = ("cycle", "actor_step", "learner_step", "pretrain_step", "wall_s")  # the first columns of metrics.csv
# Flags that may change when a run is continued, because they don't change its result.
FREE_FLAGS = {
    "resume", "run_dir", "pretrained", "num_workers", "track", "wandb_project_name", "wandb_entity", "capture_video",
    "demo_dir", "checkpoint_every", "ray_address",
}  # fmt: skip
POSITIVE_FLAGS = (
    "scale", "actor_steps", "learner_steps", "samples_per_insert", "demo_episodes", "bc_learning_rate", "buffer_size",
    "batch_size", "learning_rate", "num_cycles", "n_step", "target_period", "max_grad_norm", "dqda_clip", "eval_every",
    "report_episodes", "keep_every", "checkpoint_every", "torch_threads",
)  # fmt: skip
NOT_NEGATIVE_FLAGS = (
    "seed", "demo_sigma", "sigma", "gamma", "bc_steps", "critic_steps", "num_workers", "eval_episodes",
)  # fmt: skip
PACKAGES = ("torch", "numpy", "dm-control", "mujoco")


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; everything that a later `--resume` needs is on the disk."""


def launch(args_type: type, main: Callable[[Any], Path]) -> None:
    """Parse the command line, run `main`, and turn a user's mistake into one sentence and exit status 1."""

    def parse(**kwargs: Any) -> Any:
        return tyro.cli(args_type, description=sys.modules["__main__"].__doc__, **kwargs)

    args = parse()
    try:
        if args.resume is not None:
            saved = saved_args(args_type, Path(args.resume))
            args = parse(default=saved)  # what isn't on the command line is as it was, so each difference is a wish
            refuse_changes(saved, args)
            args = dataclasses.replace(args, run_dir=args.resume, resume=None)
        main(args)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(stop.args[0], file=sys.stderr)
        sys.exit(128 + stop.args[1])


def saved_args(args_type: type, run_dir: Path) -> Any:
    """The arguments that the run in `run_dir` was started with.

    Raises:
        UserError: there is no run, its `args.json` is damaged, or another script or version wrote it.
    """
    if not (run_dir / "args.json").exists():
        raise UserError(f"{run_dir} holds no run: it has no args.json.")
    content = files.load_json(run_dir / "args.json", "arguments")
    script = Path(sys.modules[args_type.__module__].__file__).name
    if content["script"] != script:
        raise UserError(f"{run_dir} is a run of {content['script']}, not of {script}.")
    try:
        return args_type(**content["args"])
    except TypeError as error:
        raise UserError(f"{run_dir} was written by another version of {script}: {error}.") from error


def refuse_changes(saved: Any, args: Any) -> None:
    """Raise UserError if a flag that changes the result differs from the saved run's."""
    for name, value in dataclasses.asdict(args).items():
        before = getattr(saved, name)
        if name not in FREE_FLAGS and value != before:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {value} can't be changed in a run that was started with {flag} {before}.")


def split(total: int, parts: int) -> list[int]:
    """Whole parts of `total`: part k of N gets floor(k total / N) - floor((k - 1) total / N) [DESIGN: budget]."""
    ends = [k * total // parts for k in range(parts + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def check_numbers(args: Any) -> None:
    """Raise UserError if one of the shared flags that must be above zero, or not below it, isn't."""
    for name in POSITIVE_FLAGS + NOT_NEGATIVE_FLAGS:
        value, flag = getattr(args, name), "--" + name.replace("_", "-")
        if value is not None and name in POSITIVE_FLAGS and not value > 0:
            raise UserError(f"{flag} must be above 0, not {value}.")
        if value is not None and name in NOT_NEGATIVE_FLAGS and not value >= 0:
            raise UserError(f"{flag} must not be negative, not {value}.")


def configure_torch(args: Any) -> torch.device:
    """Set threads and determinism as the flags say; returns the learner's device.

    Raises:
        UserError: `--compile` without a C++ compiler.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS isn't deterministic
    torch.set_num_threads(args.torch_threads)
    torch.set_flush_denormal(True)  # denormal numbers are slow and change nothing
    torch.use_deterministic_algorithms(args.torch_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # all memory is written before it is read
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    if args.compile and device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("--compile needs a C++ compiler: install g++, or leave the flag out.")
    return device


def row_name(name: str, args: Any, readings: tuple[str, ...]) -> str:
    """`name`, and behind it each of the flags `readings` that isn't the default: two readings never share a name."""
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name in readings and value != field.default:
            flag = field.name.replace("_", "-")
            name += (
                f",{flag}"
                if value is True
                else f",{flag}:{value:g}"
                if isinstance(value, float)
                else f",{flag}:{value}"
            )
    return name


def stream_seed(seed: int, stream: int) -> int:
    """A 32-bit seed for one of a run's streams of random numbers."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


class Run:
    """One run in one folder. As a context manager it holds the folder's lock, the workers and the signal handlers."""

    def __init__(
        self, args: Any, resolved: Any, env: EnvSpec, teacher: teachers.Teacher | None, keys: tuple[str, ...],
        after_pretraining: tuple[str, ...], script: str,
    ) -> None:  # fmt: skip
        """Start a run, or continue the one that `args.run_dir` holds.

        Args:
            args, resolved: the script's flags as given, and with every derived number filled in.
            keys: the metric keys of this script, in the order of the columns.
            after_pretraining: the flags that may differ in the run that `--pretrained` names.
            script: the path of the script.

        Raises:
            UserError: the folder can't be written, is in use, or holds another run; or `--pretrained` doesn't fit.
        """
        if args.capture_video:
            _check_renderer()
        self.args, self._given, self.env, self._keys, self._script = resolved, args, env, keys, Path(script)
        self.workers = rollouts.Workers(resolved.num_workers, ray_address=resolved.ray_address)
        self.clock = {"cycle": 0, "actor_step": 0, "learner_step": 0, "pretrain_step": None}
        self.seconds: dict[str, float] = {}
        self._timer = ("starting", time.monotonic())
        self._state: dict[str, Any] = {}
        self._rows: list[tuple[dict[str, Any], Pending | None]] = []
        self._unsaved: list[tuple[int, list[Episode]]] = []
        self._stored: tuple[int, dict[int, list[Episode]]] = (0, {})
        self._wandb_id: str | None = None
        self._metrics_crc, self._metrics_bytes = 0, 0
        self._signal, self._busy, self._bar = 0, False, None
        self._last_return = float("nan")
        self._bad_step: torch.Tensor | None = None
        self.deploy_sps: float | None = None  # environment steps per second of the last deployment, None if read back
        self._saved: dict[str, Any] | None = None
        self._borrowed: list[dict[str, float]] = []  # rows of metrics of the run that --pretrained names
        self._teacher_sha256 = None if teacher is None else teacher.sha256
        if args.pretrained is not None and not (Path(args.run_dir or "") / "args.json").exists():
            self._saved = self._load_pretrained(Path(args.pretrained), after_pretraining)
        self.dir = self._make_dir(args)
        identity = {k: v for k, v in dataclasses.asdict(args).items() if k not in FREE_FLAGS}
        identity = [self._script.name, identity, self._teacher_sha256]
        self._identity = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        if (self.dir / "args.json").exists():
            refuse_changes(saved_args(type(args), self.dir), args)
            for folder in (self.dir, *self.dir.glob("cycle_*")):
                files.remove_leftovers(folder)
            self._saved = self._load_checkpoint()
        else:
            files.write_atomically(self.dir / self._script.name, self._script.read_bytes())
            files.save_json(self.dir / "versions.json", _versions())
            if self._saved is not None:
                for name in ("snapshot.pt", "evaluation.json", "checkpoint.pt"):
                    source = Path(args.pretrained) / "cycle_0000" / name
                    files.write_atomically(self._cycle_dir(0) / name, source.read_bytes())
                files.write_atomically(self.dir / "teacher.json", (Path(args.pretrained) / "teacher.json").read_bytes())
            content = {"script": self._script.name, "row": args.row, "teacher_sha256": self._teacher_sha256}
            content |= {"args": dataclasses.asdict(args)}
            files.save_json(self.dir / "args.json", content | {"resolved": dataclasses.asdict(resolved)})
        self._open_metrics()

    def __enter__(self) -> "Run":
        self._handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        if self.args.track:
            self._start_wandb()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.workers.close()
        with contextlib.suppress(OSError):  # of a full disk, which was reported when a row was written
            self._metrics.close()
        self._lock.close()
        if self.args.track:
            import wandb

            wandb.finish(exit_code=0 if kind is None else 1)

    # ---- the folder

    def _make_dir(self, args: Any) -> Path:
        try:
            if args.run_dir is not None:
                path = Path(args.run_dir)
                path.mkdir(parents=True, exist_ok=True)
                if not (path / "args.json").exists() and any(not p.name.startswith(".") for p in path.iterdir()):
                    known = {self._script.name, "versions.json"}  # a start that was cut off before args.json
                    if any(p.name not in known and not p.name.startswith(".") for p in path.iterdir()):
                        raise UserError(f"--run-dir {path} is neither empty nor a run.")
            else:
                stamp = int(time.time())
                while True:
                    path = Path("runs") / f"{args.env_id}__{args.row.replace(':', '-')}__{args.seed}__{stamp}"
                    try:
                        path.mkdir(parents=True)
                        break
                    except FileExistsError:  # another run was started in the same second
                        stamp += 1
            self._lock = open(path / ".lock", "w")  # noqa: SIM115 (held for the life of the run)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is in use by another process.") from None
        except OSError as error:
            raise UserError(f"the run folder can't be written: {error.strerror} ({error.filename}).") from error
        return path

    def _cycle_dir(self, cycle: int) -> Path:
        return self.dir / f"cycle_{cycle:04d}"

    def kept(self, cycle: int) -> bool:
        """Whether the batch and the policy of this cycle get files (`--keep-every`, and always the first and last)."""
        return cycle % self.args.keep_every == 0 or cycle == self.args.num_cycles

    # ---- phases, checkpoints, signals

    @property
    def pretrained(self) -> bool:
        """Whether cycle 0 was finished before this run was continued, or taken from another run."""
        return self._saved is not None and self._saved["phase"].startswith("cycle ")

    def track(self, **state: Any) -> None:
        """Name everything that a checkpoint must hold: modules, optimisers and `torch.Generator`s."""
        self._state = state

    def enter(self, phase: str, checkpoint: bool = True) -> int | None:
        """Start a phase; returns the step to start from, or None if the run had finished it before it was continued."""
        if self._saved is None:
            self._bad_step = None
            if checkpoint:
                self._phase = phase
                self.checkpoint(0)
            self._phase = phase
            return 0
        if phase != self._saved["phase"]:
            return None
        saved, self._saved, self._phase = self._saved, None, phase
        for name, part in self._state.items():
            restore = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
            restore(saved["state"][name])
        self.seconds, self._last_return = saved["seconds"], saved["last_return"]
        self.say(f"continuing {self.dir} in {phase} at step {saved['step']}")
        return saved["step"]

    def steps(self, start: int, total: int, what: str) -> Iterator[int]:
        """Count steps start..total-1 of the current phase, with a progress bar, checkpoints and a stop on a signal."""
        with self.timed(what), tqdm(total=total, initial=start, disable=None, leave=False, dynamic_ncols=True) as bar:
            bar.set_description_str(f"{self._phase}, {what}" if what not in self._phase else self._phase)
            self._bar = bar
            for step in range(start, total):
                if self._signal or (step > start and step % self.args.checkpoint_every == 0):
                    self.checkpoint(step)
                self._busy = True
                yield step
                self._busy = False
                bar.update()
            self._bar = None

    def checkpoint(self, step: int) -> None:
        """Save the state before `step` of this phase; the checkpoint before it stays as `checkpoint_previous.pt`."""
        self._flush(wait=True)
        self._check_finite()
        self._busy = True  # a signal waits until the file is there
        with self.timed("writing"):
            self._write_batches()
            state = {
                n: p.get_state() if isinstance(p, torch.Generator) else p.state_dict() for n, p in self._state.items()
            }
            content = {
                "run": self._identity,
                "phase": self._phase,
                "step": step,
                "state": state,
                "seconds": self.seconds,
            }
            content |= {"wall_s": self._wall_s(), "last_return": self._last_return, "wandb_id": self._wandb_id}
            content |= {"metrics_bytes": self._metrics_bytes, "metrics_crc": self._metrics_crc}
            path = self.dir / "checkpoint.pt"
            with files.writing(path):
                if path.exists():
                    os.replace(path, self.dir / "checkpoint_previous.pt")
            files.save_torch(path, content)
            if (self._phase, step) == ("cycle 1", 0):  # what --pretrained of another run takes
                files.save_torch(self._cycle_dir(0) / "checkpoint.pt", content)
        self._busy = False
        if self._signal:
            self._interrupt()

    def _load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None for a run that was ended before its first."""
        paths = [self.dir / "checkpoint.pt", self.dir / "checkpoint_previous.pt"]
        for path in [path for path in paths if path.exists()]:
            try:
                content = files.load_torch(path, "checkpoint")
                if content.get("run") != self._identity:
                    raise UserError(f"{path} belongs to another run.")
                return content
            except UserError as error:
                if path == paths[-1] or not paths[-1].exists():
                    raise UserError(f"{error} There is no older one, so start again in a new folder.") from error
                print(f"{error} Going on from {paths[-1]}.", file=sys.stderr)
        return None

    def _load_pretrained(self, source: Path, after_pretraining: tuple[str, ...]) -> dict[str, Any]:
        """The checkpoint at the end of cycle 0 of the run in `source`, as one of this run.

        Raises:
            UserError: its pre-training isn't finished, or differs from what this run's flags and teacher would make.
        """
        path = source / "cycle_0000" / "checkpoint.pt"
        if not path.exists():
            raise UserError(f"--pretrained {source}: it holds no run that has finished its pre-training.")
        other, content = files.load_json(source / "args.json", "arguments"), files.load_torch(path, "checkpoint")
        for name, value in dataclasses.asdict(self.args).items():
            theirs = other["resolved"].get(name, value)
            if theirs != value and name not in after_pretraining and name not in FREE_FLAGS | {"teacher"}:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"--pretrained {source}: it was made with {flag} {theirs}, not {value}.")
        if other["teacher_sha256"] != self._teacher_sha256:
            hashes = f"SHA-256 {other['teacher_sha256']}, not {self._teacher_sha256}"
            raise UserError(f"--pretrained {source}: it was cloned from another teacher, {hashes}.")
        data = (source / "metrics.csv").read_bytes()[: content["metrics_bytes"]]
        if zlib.crc32(data) != content["metrics_crc"]:
            raise UserError(f"--pretrained {source}: its metrics.csv isn't what it wrote.")
        self._borrowed = [{k: v for k, v in row.items() if v} for row in csv.DictReader(io.StringIO(data.decode()))]
        return content | {"metrics_bytes": 0, "metrics_crc": 0, "wandb_id": None}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self._signal = self._signal, number
        if again or not self._busy:  # else the step or the file is finished first; what isn't saved is made again
            self._interrupt()

    def _interrupt(self) -> None:
        name = signal.Signals(self._signal).name
        message = f"interrupted by {name}; go on with: python {self._script.name} --resume {self.dir}"
        raise Interrupted(message, int(self._signal))

    def watch(self, value: torch.Tensor, step: int) -> None:
        """Remember, on the device and without waiting for it, the first step whose 0-dim `value` isn't finite."""
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, device=value.device)
        first = torch.where(torch.isfinite(value), self._bad_step, step)
        self._bad_step = torch.where(self._bad_step < 0, first, self._bad_step)

    def _check_finite(self) -> None:
        if self._bad_step is not None and (step := int(self._bad_step)) >= 0:
            asked = self.args.NEEDS == "action_gradients" and self._phase.startswith("cycle")
            blame = f", or an action_gradient of teacher {self.args.teacher}," if asked else ""
            raise UserError(
                f"a loss or gradient of {self._phase}{blame} stopped being finite at its step {step}; "
                f"the last good state is {self.dir / 'checkpoint.pt'}."
            )

    # ---- episodes

    def deploy(self, cycle: int, policy: Actor, sigma: float, num_episodes: int) -> list[Episode]:
        """Run one batch of episodes with a fixed policy, or read it back if the run had it before it was continued."""
        with self.timed("deploying"):
            stored = self._read_batch(cycle)
            if stored is not None:
                return stored
            if self._saved is not None:
                raise UserError(f"{self.dir} has lost its batch of cycle {cycle}; start again in a new folder.")
            stream, indices = (self.args.seed, DEPLOY, cycle), range(num_episodes)
            with self._episode_bar(num_episodes, f"cycle {cycle}, deploying") as on_episodes:
                began = time.perf_counter()
                try:
                    episodes = self.workers.collect(self.env.env_id, policy, sigma, stream, indices, on_episodes)
                except UserError as error:
                    raise UserError(f"{error} The last good state is {self.dir / 'checkpoint.pt'}.") from error
        self.deploy_sps = sum(len(episode.reward) for episode in episodes) / (time.perf_counter() - began)
        self._unsaved.append((cycle, episodes))
        if self.kept(cycle):
            with self.timed("writing"):
                self._write_batches()
        return episodes

    def _write_batches(self) -> None:
        if self._unsaved:
            cycles = [cycle for cycle, episodes in self._unsaved for _ in episodes]
            arrays = rollouts.pack([episode for _, episodes in self._unsaved for episode in episodes], cycles)
            path = self._cycle_dir(cycles[-1]) / "batch.npz"
            files.save_arrays(path, run=np.array(self._identity), **arrays)
            self._unsaved = []

    def _read_batch(self, cycle: int) -> list[Episode] | None:
        """The stored batch of a cycle; files are read once, in order. None if there is none."""
        if cycle > self._stored[0]:
            numbers = sorted(int(path.parent.name[6:]) for path in self.dir.glob("cycle_*/batch.npz"))
            holder = next((number for number in numbers if number >= cycle), None)
            if holder is None:
                return None
            path = self._cycle_dir(holder) / "batch.npz"
            try:
                arrays = files.load_arrays(path, "batch")
                if str(arrays.pop("run", None)) != self._identity:
                    raise UserError(f"batch {path} belongs to another run.")
                episodes, cycles = rollouts.unpack(arrays)
            except UserError as error:
                if self._saved is None:  # its policy is at hand, so the very same batch can be made again
                    self.say(f"{error} It is deployed again.")
                    return None
                raise
            batches: dict[int, list[Episode]] = {}
            for episode, number in zip(episodes, cycles, strict=True):
                batches.setdefault(number, []).append(episode)
            self._stored = (holder, batches)
        return self._stored[1].pop(cycle, None)

    def evaluate(self, policy: Actor) -> Pending | None:
        """Start the noise-free evaluation that belongs to this learner step; it never feeds back into the run."""
        self._check_finite()
        if self.args.eval_episodes == 0:
            return None
        with self.timed("waiting for evaluations"):
            while sum(pending is not None for _, pending in self._rows) > 2 * self.workers.num_workers:
                self._flush_one()
            number = -(-self.clock["learner_step"] // self.args.eval_every)
            stream = (self.args.seed, EVALUATE, number)
            return self.workers.submit(self.env.env_id, policy, 0.0, stream, range(self.args.eval_episodes))

    def score(self, path: Path, actor: Actor) -> list[float]:
        """Noise-free returns, kept in `path`, of episodes with the same start seeds for every cycle and method."""
        if not path.exists():
            with (
                self.timed("report episodes"),
                self._episode_bar(self.args.report_episodes, f"scoring {path.parent.name}") as bar,
            ):
                stream, indices = (self.args.seed, REPORT), range(self.args.report_episodes)
                episodes = self.workers.collect(self.env.env_id, actor, 0.0, stream, indices, bar)
            returns = [episode.episodic_return for episode in episodes]
            content = {"cycle": self.clock["cycle"], "learner_step": self.clock["learner_step"], "returns": returns}
            files.save_json(path, content)
        return files.load_json(path, "evaluation")["returns"]

    def keep_policy(self, cycle: int, policy: torch.nn.Module, critic: torch.nn.Module, support: tuple) -> None:
        """Save the policy of a kept cycle as a snapshot, score it, and film it if asked to."""
        if self._saved is not None or not self.kept(cycle):
            return
        self._check_finite()
        folder = self._cycle_dir(cycle)
        returns = self.score(folder / "evaluation.json", policy)
        metadata = {"cycle": cycle, "row": self.args.row, "seed": self.args.seed, "command": self._command()}
        metadata |= {k: self.clock[k] for k in ("actor_step", "learner_step")} | {"versions": _versions()}
        metadata |= {"score": float(np.mean(returns)), "score_episodes": len(returns)}
        with self.timed("writing"):
            teachers.save_snapshot(folder / "snapshot.pt", self.env, policy, critic, support, metadata)
        name = "clone" if cycle == 0 and self.args.teacher != "none" else f"cycle {cycle}"
        self.say(f"{name}: mean return {np.mean(returns):.1f} of {len(returns)} episodes")
        if self.args.capture_video:
            self._film(folder)

    def _film(self, folder: Path) -> None:
        """Film the snapshot in `folder`, in a process of its own, because this one has no rendering back end."""
        command = [sys.executable, "-m", "common.evaluate", str((folder / "snapshot.pt").resolve()), "--episodes", "0"]
        command += ["--video", str((folder / "video.gif").resolve())]
        done = subprocess.run(command, cwd=ROOT, env=_renderer_environment(), capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(f"--capture-video: {done.stderr.strip()}")

    # ---- metrics

    def log(self, values: dict[str, Any], evaluation: Pending | None = None) -> None:
        """Write a row of metrics, 0-dim tensors or numbers, at the present clock, once its evaluation is there."""
        if self._saved is not None:  # the row is there already
            return
        self._check_finite()
        names = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
        if names:  # one transfer for all of them
            numbers = torch.stack([values[name].detach().float() for name in names]).tolist()
            values = values | dict(zip(names, numbers, strict=True))
        unknown = set(values) - set(self._keys)
        if unknown:
            raise ValueError(f"metric keys {sorted(unknown)} are not among the script's: {self._keys}")
        self._rows.append((self.clock | {"wall_s": round(self._wall_s(), 3)} | values, evaluation))
        self._flush()

    def _flush(self, wait: bool = False) -> None:
        """Write the rows at the head of the queue whose evaluations are there; with `wait`, all."""
        with self.timed("waiting for evaluations"):
            while self._rows and (wait or self._rows[0][1] is None or self._rows[0][1].done()):
                self._flush_one()

    def _flush_one(self) -> None:
        row, pending = self._rows[0]
        if pending is not None:
            self._last_return = float(np.mean([episode.episodic_return for episode in pending.result()]))
            row["eval/episodic_return"] = self._last_return
            if self._bar is not None:
                self._bar.set_postfix_str(f"return={self._last_return:.0f}")
        self._rows.pop(0)
        self._write_row(row)
        if self._wandb_id is not None:
            import wandb

            wandb.log({name: value for name, value in row.items() if value is not None})

    def _write_row(self, row: dict[str, Any]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row.get(name) for name in (*CLOCKS, *self._keys)])
        self._append_metrics(line.getvalue())

    def _append_metrics(self, text: str) -> None:
        data = text.encode()
        with files.writing(self.dir / "metrics.csv"):
            self._metrics.write(data)
            self._metrics.flush()
        self._metrics_crc = zlib.crc32(data, self._metrics_crc)
        self._metrics_bytes += len(data)

    def _open_metrics(self) -> None:
        """Open metrics.csv for appending, cut back to what the checkpoint knows."""
        path, content = self.dir / "metrics.csv", b""
        if self._saved is not None:
            self._metrics_bytes, self._metrics_crc = self._saved["metrics_bytes"], self._saved["metrics_crc"]
            content = path.read_bytes()[: self._metrics_bytes] if path.exists() else b""
            if zlib.crc32(content) != self._metrics_crc:
                raise UserError(
                    f"{path} isn't what its run wrote; restore it from a copy, or start again in a new folder."
                )
        with files.writing(path):
            self._metrics = open(path, "ab")  # noqa: SIM115 (closed in __exit__)
            self._metrics.truncate(len(content))
        self._wall_before = self._saved["wall_s"] if self._saved is not None else 0.0
        self._started = time.monotonic()
        self._wandb_id = self._saved["wandb_id"] if self._saved is not None else None
        if not content:
            self._append_metrics(",".join((*CLOCKS, *self._keys)) + "\n")
            for row in self._borrowed:
                self._write_row(row)

    def _start_wandb(self) -> None:
        import wandb

        run = wandb.init(
            project=self.args.wandb_project_name,
            entity=self.args.wandb_entity,
            group=self.args.row,
            name=self.dir.name,
            config=dataclasses.asdict(self.args) | {"row": self.args.row},
            id=self._wandb_id,
            resume="allow",
            dir=self.dir,
        )
        self._wandb_id = run.id
        wandb.define_metric("*", step_metric="learner_step")
        wandb.define_metric("losses/bc_loss", step_metric="pretrain_step")
        for row in self._borrowed:
            wandb.log({name: float(value) for name, value in row.items()})

    def _wall_s(self) -> float:
        return self._wall_before + time.monotonic() - self._started

    # ---- the end

    def finish(self, states_annotated: int, gradients_asked: int) -> Path:
        """Write the report and the picture, say where everything is, and return the folder."""
        self._flush(wait=True)
        with self.timed("report"):
            teacher = self.dir / "teacher.json"
            returns = files.load_json(teacher, "evaluation")["returns"] if teacher.exists() else None
            facts = {
                "teacher_returns": returns,
                "states_annotated": states_annotated,
                "gradients_asked": gradients_asked,
            }
            content = report.make_report(
                self.dir, facts | {"seconds": {k: round(v, 2) for k, v in self.seconds.items()}}
            )
            with files.writing(self.dir / "learning_curve.png"):
                picture = report.draw_learning_curve(self.dir)
        if self._wandb_id is not None:
            import wandb

            wandb.run.summary.update({"report": content})
            wandb.log({"learning_curve": wandb.Image(str(picture))})
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])
        self.say("seconds  " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in longest if seconds >= 1))
        self.say(f"report   {self.dir / 'report.json'}\npicture  {picture}\npolicies {self.dir}/cycle_*/snapshot.pt")
        return self.dir

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        tqdm.write(text)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Book the time inside the block under `what`, and not under the block around it."""
        outer = self._switch_timer(what)
        try:
            yield
        finally:
            self._switch_timer(outer)

    def _switch_timer(self, what: str) -> str:
        now, (before, since) = time.monotonic(), self._timer
        self.seconds[before] = self.seconds.get(before, 0.0) + now - since
        self._timer = (what, now)
        return before

    @contextlib.contextmanager
    def _episode_bar(self, num_episodes: int, what: str) -> Iterator[Callable[[list[Episode]], None]]:
        """A progress bar over episodes that shows the mean return so far."""
        returns: list[float] = []
        with tqdm(total=num_episodes, desc=what, unit="ep", disable=None, leave=False, dynamic_ncols=True) as bar:

            def on_episodes(episodes: list[Episode]) -> None:
                returns.extend(episode.episodic_return for episode in episodes)
                bar.update(len(episodes))
                bar.set_postfix_str(f"return={np.mean(returns):.0f}")

            yield on_episodes

    def demonstrations(self, teacher: teachers.Teacher) -> list[Episode]:
        """The teacher's episodes, made once and cached in `--demo-dir`."""
        args = self.args
        with (
            self.timed("demonstrations"),
            self._episode_bar(args.demo_episodes, "demonstrations") as on_episodes,
        ):
            folder = Path(args.demo_dir)
            episodes = teachers.demonstrations(
                teacher, self.env, args.demo_episodes, args.demo_sigma, folder, self.workers, on_episodes
            )
        if args.NEEDS == "action_gradients" and isinstance(teacher, teachers.UserTeacher):
            teacher.check_gradient(episodes[0].obs[:-1], episodes[0].action)
        return episodes

    def compiled(self, function: Callable, device: torch.device) -> Callable:
        """`compiled` for this run: the first call's time is told and booked, and compiling anew is an error."""
        torch._dynamo.reset()
        torch._dynamo.config.error_on_recompile = True
        update, first = compiled(function, device), True

        def timed_update(*args: Any) -> Any:
            nonlocal first
            if not first:
                return update(*args)
            first, began = False, time.monotonic()
            try:
                with self.timed("compiling"):
                    result = update(*args)
            except torch._dynamo.exc.TorchDynamoException as error:  # such as a teacher that reads a value
                reason = str(error).strip().partition("\n")[0]
                raise UserError(f"--compile: the update can't be compiled as one graph ({reason}).") from error
            self.say(f"compiling the update took {time.monotonic() - began:.0f} s")
            return result

        return timed_update

    def _command(self) -> str:
        """What starts this run again from nothing: its task and the flags that aren't the default, no folder."""
        words = ["python", self._script.name]
        for field in dataclasses.fields(self._given):
            value, flag = getattr(self._given, field.name), field.name.replace("_", "-")
            if field.name in ("run_dir", "resume", "pretrained") or (value == field.default and field.name != "env_id"):
                continue
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)


def _check_renderer() -> None:
    """Raise UserError if nothing on this machine can film; asked in a process of its own, as in `Run._film`."""
    code = "from common import evaluate; evaluate.choose_renderer()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=_renderer_environment(), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise UserError(f"--capture-video: {done.stderr.strip().splitlines()[-1]}")


def _renderer_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if (name, value) != ("MUJOCO_GL", "disabled")}


def _versions() -> dict[str, Any]:
    """What a reader needs to repeat a run."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return versions | {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}


def compiled(function: Callable, device: torch.device) -> Callable:
    """`torch.compile` a whole update: no graph break, autograd inside, CUDA graphs on a GPU."""
    torch._dynamo.config.trace_autograd_ops = True
    return torch.compile(
        function, fullgraph=True, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None
    )
