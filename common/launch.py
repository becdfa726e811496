"""The command line, early ends of a run (user errors and signals), and the device.

The type of a script's flag says which numbers it takes, so you state the check where you define the flag:
`sigma: NonNegativeFloat = 0.3`.
"""

import contextlib
import copy
import dataclasses
import os
import shlex
import shutil
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
import tyro
from tqdm import tqdm

from common import UserError, elsewhere, envs, files, teachers
from common.envs import EnvSpec
from common.teachers import Teacher

FiniteFloat, PositiveInt, NonNegativeInt = pydantic.FiniteFloat, pydantic.PositiveInt, pydantic.NonNegativeInt
UpToTen = Annotated[int, pydantic.Field(ge=0, le=10)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
PositiveOrInf = Annotated[float, pydantic.Field(gt=0)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
PositiveFraction = Annotated[float, pydantic.Field(gt=0, le=1)]


@dataclass
class RunArgs:
    """The flags that aren't part of the algorithm. Each help text ends with the source of its default."""

    demo_dir: str = "demos"
    """folder where demonstrations are cached [ours]"""
    deploy: typing.Literal["here", "elsewhere"] = "here"
    """elsewhere: export the policy, then stop until episodes.npz is there [ours]"""
    annotate: typing.Literal["here", "elsewhere"] = "here"
    """elsewhere: write the deployed states, then stop until annotations.npz is there [ours]"""
    annotate_fraction: PositiveFraction = 1.0
    """share of the deployed states that are annotated elsewhere [ours]"""
    keep_every: PositiveInt = 1
    """cycles between kept policies and checkpoints; raise it for thousands of cycles [ours]"""
    checkpoint_every: PositiveInt = 5_000
    """steps between checkpoints inside a cycle [ours]"""
    pretrained: str | None = None
    """folder of a run; start from its clone and critic instead of training the same ones again [ours]"""
    run_dir: str | None = None
    """folder of the run; continues it if there is one; default runs/... [ours]"""
    resume: str | None = None
    """folder of a run to continue exactly, with its own flags [ours]"""
    num_workers: NonNegativeInt = 2
    """processes for deployment and evaluation, 0 for none; the data is the same for any number [ours]"""
    torch_threads: PositiveInt = 1
    """CPU threads of the learner; another number changes the last bits [ours]"""
    torch_deterministic: bool = True
    """use deterministic algorithms only [CleanRL]"""
    cuda: bool = True
    """learn on the GPU if there is one [CleanRL]"""
    compile: bool = False
    """compile the update with torch.compile [ours]"""
    track: bool = False
    """mirror the metrics to wandb [CleanRL]"""
    wandb_project_name: str | None = None
    """wandb project; default WANDB_PROJECT, else growing-batch-rl [ours]"""
    wandb_entity: str | None = None
    """wandb entity; default WANDB_ENTITY [CleanRL]"""
    capture_video: bool = False
    """film one episode of each kept policy [CleanRL]"""


INHERITED = {field.name for field in dataclasses.fields(RunArgs)}
# Inherited flags that don't change a run's result, so you may change them when you resume it.
FREE_FLAGS = INHERITED - {
    "deploy", "annotate", "annotate_fraction", "keep_every", "torch_threads", "compile", "cuda", "torch_deterministic",
}  # fmt: skip
NOT_IN_COMMAND = ("run_dir", "resume", "pretrained")  # folders
CYCLES_AND_BUDGET = {"num_cycles", "scale", "actor_steps", "learner_steps", "samples_per_insert"}


def checked(args: Any) -> Any:
    """A copy of the flags with plain Python values and absolute paths to your own files.

    Raises:
        UserError: a value doesn't fit its flag's type.
    """
    args = copy.copy(args)
    for name, hint in typing.get_type_hints(type(args), include_extras=True).items():
        value = getattr(args, name)
        value = value.item() if isinstance(value, np.generic) else str(value) if isinstance(value, Path) else value
        try:
            value = pydantic.TypeAdapter(hint).validate_python(value)
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"].replace("Input", "it")
            raise UserError(f"--{name.replace('_', '-')} {value}: {reason}.") from None
        if name in ("env_id", "teacher") and (value.endswith((".pt", ".npz")) or ".py:" in value):
            value = str(Path(value).resolve())
        setattr(args, name, value)
    return args


def setup(args: Any, resolve: Callable, needs: str) -> tuple[Any, EnvSpec, torch.device, Teacher | None]:
    """The checked and resolved flags, the task, the learner's device and the teacher.

    Args:
        resolve: the script's function that fills in flags that depend on others.
        needs: what the script needs of a teacher: nothing, demonstrations, actions or action_gradients.

    Raises:
        UserError: a flag, the task or the teacher can't be used as asked.
    """
    args = checked(args)
    env = envs.spec(args.env_id)
    args = resolve(args, env)
    if not env.simulated and args.deploy == "here":
        raise UserError(f"--env-id {args.env_id} can't be simulated: use --deploy elsewhere.")
    if args.annotate == "elsewhere" and needs != "actions":
        raise UserError("--annotate elsewhere is for methods that need the teacher's actions.")
    if args.annotate == "here" and args.annotate_fraction < 1:
        raise UserError("--annotate-fraction is for --annotate elsewhere; here the teacher annotates every state.")
    device = configure_torch(args)
    teacher = teachers.load(args.teacher, env, "demonstrations" if args.annotate == "elsewhere" else needs, device)
    return args, env, device, teacher


def run_name(args: Any, env: EnvSpec, method: Callable[[Any], str], resolve: Callable) -> str:
    """The method's name and, after commas, each flag that isn't at its default and that the name doesn't cover.

    A flag's default is what the script resolves for the same task, teacher, seed, cycles and budget. The name leaves
    out inherited flags, except --annotate-fraction, and those that only measure (`eval_*`, `report_*`).
    """
    base, name = method(args), method(args)
    fields = {field.name: field.default for field in dataclasses.fields(args)}
    setting = {"env_id", "teacher", "seed", "num_cycles", "scale", "actor_steps", "learner_steps"}
    setting |= {"buffer_size"}  # nothing is evicted, so it changes no result
    said = {flag for flag, default in fields.items() if method(dataclasses.replace(args, **{flag: default})) != base}
    if "method" in fields:
        said.add("method")  # the name covers it even at its default
    same = {flag: getattr(args, flag) for flag in (setting | said) & fields.keys()}
    default = resolve(type(args)(**same), env)
    left_out = INHERITED - {"annotate_fraction"}
    measuring = {flag for flag in fields if flag.startswith(("eval_", "report_"))}
    for flag in fields:  # in the order of the script
        value = getattr(args, flag)
        if flag not in said | setting | measuring | left_out and value != getattr(default, flag):
            number = f"{value:g}" if type(value) is float else value
            name += f",{flag.replace('_', '-')}" + ("" if value is True else f":{number}")
    return name


def difference(mine: Any, other: dict[str, Any], may_differ: typing.Collection[str]) -> tuple[str, Any, Any] | None:
    """The first flag that differs between `mine` and `other`, if both have it: its name, mine, theirs."""
    for name, value in dataclasses.asdict(mine).items():
        if name not in may_differ and other.get(name, value) != value:
            return "--" + name.replace("_", "-"), value, other[name]
    return None


def command(args: Any, script: str) -> str:
    """The command that repeats this run from scratch: its task and all flags that aren't defaults or a run's folder."""
    words = ["python", script]
    for field in dataclasses.fields(args):
        value, flag = getattr(args, field.name), "--" + field.name.replace("_", "-")
        if field.name in NOT_IN_COMMAND or (value == field.default and field.name != "env_id"):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def saved_args(args_type: type, run_dir: Path) -> Any:
    """The arguments of the run in `run_dir`.

    Raises:
        UserError: there is no run, its `args.json` is damaged, or another script or version wrote it.
    """
    content = files.load_json(run_dir / "args.json", "arguments")
    script = Path(sys.modules[args_type.__module__].__file__).name
    if content["script"] != script:
        raise UserError(f"{run_dir} is a run of {content['script']}, not of {script}.")
    try:
        return args_type(**content["args"])
    except TypeError as error:
        raise UserError(f"{run_dir} was written by another version of {script}: {error}.") from error


def plain_words(words: list[str], args_type: type) -> list[str]:
    """Convert a command line of wandb's sweeps, such as `--flag=True --number=20000.0`, to tyro's form."""
    hints, plain = typing.get_type_hints(args_type), []
    for word in words:
        flag, equals, value = word.partition("=")
        hint = hints.get(flag.removeprefix("--").replace("-", "_"))
        if equals and hint is bool and value.lower() in ("true", "false"):
            word = flag if value.lower() == "true" else flag.replace("--", "--no-", 1)
        elif equals and int in (hint, *typing.get_args(hint)):
            with contextlib.suppress(ValueError, OverflowError):  # tyro says what is wrong
                word = f"{flag}={int(float(value))}" if float(value).is_integer() else word
        plain.append(word)
    return plain


def launch(args_type: type, main: Callable[[Any], Path]) -> None:
    """Parse the command line, run `main`, and turn a user's mistake into one sentence and exit status 1."""

    def parse(**kwargs: Any) -> Any:
        words = plain_words(sys.argv[1:], args_type)
        return tyro.cli(args_type, args=words, description=sys.modules["__main__"].__doc__, **kwargs)

    args = parse()
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line at once
    try:
        if args.resume is not None:  # flags that aren't on the command line keep their values
            args = parse(default=saved_args(args_type, Path(args.resume)))
            args = dataclasses.replace(args, run_dir=args.resume, resume=None)
        main(args)
    except UserError as error:
        sys.exit(f"error: {error}")
    except elsewhere.FilesNeeded as stop:
        print(f"waiting: {stop}")
        sys.exit(os.EX_TEMPFAIL)  # 75
    except KeyboardInterrupt as stop:  # without arguments before there is a run to save
        message, number = stop.args or ("interrupted", signal.SIGINT)
        print(message, file=sys.stderr)
        sys.exit(128 + number)


class Interrupt:
    """Handles SIGINT, SIGTERM, SIGUSR1 and SIGHUP. It is true once a signal has arrived.

    The run looks at it where it can save everything, and then calls `check`. A signal inside `at_once`, or a second
    one, doesn't wait for that. `message` says how to go on.
    """

    def __init__(self, message: str) -> None:
        self._message, self._number, self._at_once, self._handlers = message, 0, False, {}

    def start(self) -> None:
        """Handle the signals: SIGHUP unless it is ignored, as under nohup, and none outside the main thread."""
        with contextlib.suppress(ValueError):  # outside the main thread
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._on_signal)

    def stop(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self._number != 0

    def check(self) -> None:
        """End the run if a signal has arrived."""
        if self:
            raise KeyboardInterrupt(
                f"interrupted by {signal.Signals(self._number).name}; {self._message}", self._number
            )

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """End the run as soon as a signal arrives inside the block, or at its start if one has arrived before."""
        before, self._at_once = self._at_once, True
        try:
            self.check()
            yield
        finally:
            self._at_once = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now, self._number = self._at_once or bool(self), number
        if now:
            self.check()


def learner_device(args: Any) -> torch.device:
    """The GPU where there is one and `--cuda` isn't switched off, else the CPU."""
    return torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")


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
    device = learner_device(args)
    if args.compile and device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("--compile needs a C++ compiler: install g++, or leave the flag out.")
    return device


def compiled(function: Callable, device: torch.device) -> Callable:
    """`torch.compile` a whole update as one graph with autograd, never recompiled, with CUDA graphs on a GPU.

    The first call prints the compile time. It raises UserError if the update can't be one graph.
    """
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops = True
    # Only in the update, because a teacher may compile its own network.
    no_recompile = torch._dynamo.config.patch(error_on_recompile=True)
    mode = "reduce-overhead" if device.type == "cuda" else None
    update = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
    first = True

    def compile_and_call(*args: Any) -> Any:
        nonlocal first
        if not first:
            with no_recompile:
                return update(*args)
        first, began = False, time.monotonic()
        try:
            result = update(*args)
        except torch._dynamo.exc.TorchDynamoException as error:  # such as for a teacher that reads a tensor's value
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"--compile: the update can't be compiled as one graph ({reason}).") from error
        tqdm.write(f"compiling the update took {time.monotonic() - began:.0f} s")
        return result

    return compile_and_call
