"""The command line, the device, and a user's mistake as one sentence.

The types of a script's flags say which numbers they take, so a flag is checked where it is written:
`sigma: NonNegativeFloat = 0.3`.
"""

import copy
import dataclasses
import math
import os
import shlex
import shutil
import signal
import sys
import time
import typing
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from tqdm import tqdm

from common import Interrupted, UserError, Waiting, files, foreign
from common.envs import EnvSpec


class Range(NamedTuple):
    """The numbers that a flag takes: low to high, `low` itself unless `above`, and no infinity unless `inf`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    inf: bool = False

    def __contains__(self, value: float) -> bool:
        inside = self.low < value <= self.high if self.above else self.low <= value <= self.high
        return inside and (self.inf or math.isfinite(value))

    def __str__(self) -> str:
        lower = "" if self.low == -math.inf else f" above {self.low:g}" if self.above else f" from {self.low:g} on"
        if self.high < math.inf:
            lower = f" from {self.low:g} to {self.high:g}"
        return f"a{' finite' * (not self.inf)} number{lower}"


class Reference:
    """Marks a flag that may name a file: PATH.pt, PATH.npz or FILE.py:Class."""


FileOrName = Annotated[str, Reference]
PositiveInt = Annotated[int, Range(0, above=True)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, above=True)]
NonNegativeFloat = Annotated[float, Range(0)]
PositiveOrInf = Annotated[float, Range(0, above=True, inf=True)]


def _marks(hint: Any) -> list[Any]:
    """What a flag's type is annotated with, also inside `... | None`."""
    inside = [mark for part in typing.get_args(hint) for mark in _marks(part)]
    return [*getattr(hint, "__metadata__", ()), *inside]


def checked(args: Any) -> Any:
    """The flags with absolute paths of the user's own files, so that a run goes on from any folder.

    Raises:
        UserError: a number is outside the range that its flag's type states, or isn't finite.
    """
    args = copy.copy(args)
    for name, hint in typing.get_type_hints(type(args), include_extras=True).items():
        value, marks = getattr(args, name), _marks(hint)
        if isinstance(value, int | float) and not isinstance(value, bool):
            allowed = next((mark for mark in marks if isinstance(mark, Range)), Range())
            if value not in allowed:
                raise UserError(f"--{name.replace('_', '-')} must be {allowed}, not {value}.")
        if Reference in marks and (value.endswith((".pt", ".npz")) or foreign.is_reference(value)):
            setattr(args, name, str(Path(value).resolve()))
    return args


def row_name(name: str, args: Any, readings: tuple[str, ...]) -> str:
    """`name`, and behind it each of the flags `readings` that isn't the default."""
    for field in dataclasses.fields(args):
        value, flag = getattr(args, field.name), field.name.replace("_", "-")
        if field.name in readings and value != field.default:
            name += (
                f",{flag}" if value is True else f",{flag}:{value:g}" if type(value) is float else f",{flag}:{value}"
            )
    return name


# Flags that may change when a run is continued, because they don't change its result.
FREE_FLAGS = {
    "resume", "run_dir", "pretrained", "num_workers", "track", "wandb_project_name", "wandb_entity", "capture_video",
    "demo_dir", "checkpoint_every", "ray_address", "accept_changes",
}  # fmt: skip
NOT_IN_COMMAND = ("run_dir", "resume", "pretrained", "accept_changes")  # folders, and a wish for one time


def difference(args: Any, other: dict[str, Any], may_differ: Collection[str] = ()) -> tuple[str, Any, Any] | None:
    """The first flag of `args` that matters to the result and is another in `other`: its name, mine, theirs."""
    for name, value in dataclasses.asdict(args).items():
        if name not in FREE_FLAGS and name not in may_differ and other.get(name, value) != value:
            return "--" + name.replace("_", "-"), value, other[name]
    return None


def command(args: Any, script: str) -> str:
    """What starts this run again from nothing: its task and the flags that aren't the default, but no run's folder."""
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


def check_elsewhere(args: Any, env: EnvSpec, needs: str) -> None:
    """Raise UserError if a run can't work with what comes from elsewhere as the flags say."""
    if not env.simulated and args.deploy == "here":
        raise UserError(f"--env-id {args.env_id} can't be simulated: --deploy elsewhere.")
    if "elsewhere" in (args.deploy, args.annotate) and args.keep_every > 1:
        raise UserError("--deploy and --annotate elsewhere need the files of each cycle: leave out --keep-every.")
    if args.annotate == "elsewhere" and needs != "actions":
        raise UserError("--annotate elsewhere is for rows that need the teacher's actions.")
    if args.annotate == "here" and args.annotate_fraction < 1:
        raise UserError("--annotate-fraction is for --annotate elsewhere; a teacher that is here says all.")


def launch(args_type: type, main: Callable[[Any], Path]) -> None:
    """Parse the command line, run `main`, and turn a user's mistake into one sentence and exit status 1."""

    def parse(**kwargs: Any) -> Any:
        return tyro.cli(args_type, description=sys.modules["__main__"].__doc__, **kwargs)

    args = parse()
    try:
        if args.resume is not None:  # what isn't on the command line is as it was, so each difference is a wish
            args = parse(default=saved_args(args_type, Path(args.resume)))
            args = dataclasses.replace(args, run_dir=args.resume, resume=None)
        main(args)
    except KeyboardInterrupt:  # before there is a run that could be saved
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Waiting as stop:
        print(f"waiting: {stop}")
        sys.exit(os.EX_TEMPFAIL)  # 75
    except Interrupted as stop:
        print(stop.args[0], file=sys.stderr)
        sys.exit(128 + stop.args[1])


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


def compiled(function: Callable, device: torch.device, timed: Callable[[str], AbstractContextManager]) -> Callable:
    """`torch.compile` a whole update: no graph break, autograd inside, CUDA graphs on a GPU, and never compiled anew.

    The first call's time is told, and booked by `timed`. Raises UserError then if there is no whole graph.
    """
    torch._dynamo.reset()
    torch._dynamo.config.error_on_recompile = True
    torch._dynamo.config.trace_autograd_ops = True
    mode = "reduce-overhead" if device.type == "cuda" else None
    update = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
    first = True

    def compile_and_call(*args: Any) -> Any:
        nonlocal first
        if not first:
            return update(*args)
        first, began = False, time.monotonic()
        try:
            with timed("compiling"):
                result = update(*args)
        except torch._dynamo.exc.TorchDynamoException as error:  # such as a teacher that reads a value
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"--compile: the update can't be compiled as one graph ({reason}).") from error
        tqdm.write(f"compiling the update took {time.monotonic() - began:.0f} s")
        return result

    return compile_and_call
