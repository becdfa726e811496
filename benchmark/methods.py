"""The table of methods: the script and flags of each. Benchmarks and tests read it.

    python benchmark/methods.py --name=ta:5,beta-decay --env-id cheetah-run    # runs the method; any flag of its script

Write a method as NAME, or as NAME:R if its weight decays with rate R. Add each flag that isn't at its default after a
comma, as in the run's own name: `ta:5,beta-decay`, `ta_qf,beta:5`, `bc,demo-sigma:0`.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tyro


class Method(NamedTuple):
    """One method. `decays` says whether its name takes a rate."""

    script: str
    flags: dict[str, str]
    decays: bool


METHODS = {
    "bc": Method("gbrl_d4pg.py", {}, False),
    "bc_reg": Method("gbrl_bc_reg.py", {"method": "bc_reg"}, False),
    "bc_reg_decay": Method("gbrl_bc_reg.py", {"method": "bc_reg_decay"}, True),
    "between": Method("gbrl_bc_reg.py", {"method": "between"}, True),
    "ta": Method("gbrl_teacher_action.py", {"method": "ta"}, True),
    "ta_qf": Method("gbrl_teacher_action.py", {"method": "ta_qf"}, False),
    "tg": Method("gbrl_teacher_grad.py", {}, True),
}
GRAMMAR = ", ".join(f"{base}:R" if method.decays else base for base, method in METHODS.items())


def command(name: str) -> list[str]:
    """The script and flags that run `name`, as words of a command line. Raises ValueError if it isn't in the table."""
    first, *options = name.split(",")
    base, _, rate = first.partition(":")
    if base not in METHODS or METHODS[base].decays != bool(rate):
        raise ValueError(f"{name} isn't a method of the table: {GRAMMAR}, each with its options after commas")
    method = METHODS[base]
    words = [method.script, *(word for flag, value in method.flags.items() for word in (f"--{flag}", value))]
    words += ["--decay-rate", rate] if rate else []
    for option in options:
        flag, colon, value = option.partition(":")
        words += [f"--{flag}", value] if colon else [f"--{flag}"]
    return words


def load(name: str) -> tuple[ModuleType, Any]:
    """The script that runs `name` and the arguments that its command line gives. Raises ValueError as `command`."""
    file, *words = command(name)
    script = importlib.import_module(Path(file).stem)
    return script, tyro.cli(script.Args, args=words)


if __name__ == "__main__":
    names = [word.removeprefix("--name=") for word in sys.argv[1:] if word.startswith("--name=")]
    if len(names) != 1:
        sys.exit(__doc__)
    try:
        file, *flags = command(names[0])
    except ValueError as error:
        sys.exit(f"error: {error}")
    script = Path(__file__).resolve().parent.parent / file
    more = [word for word in sys.argv[1:] if not word.startswith("--name=")]
    os.execv(sys.executable, [sys.executable, str(script), *flags, *more])
