"""The rows: what is run under which name, by which script and flags. Benchmarks and tests read this one table.

A row is written NAME, or NAME:R where its weight decays with rate R, and behind it every reading of the paper that
isn't the default, as the script itself names it: `ta:5,beta-decay`, `ta_qf,beta:5`, `bc,demo-sigma:0`.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tyro


class Row(NamedTuple):
    """One row of the table. `decays` says whether its name takes a rate."""

    script: str
    flags: dict[str, str]
    decays: bool


ROWS = {
    "bc": Row("gbrl_d4pg.py", {}, False),
    "bc_reg": Row("gbrl_bc_reg.py", {"method": "bc_reg"}, False),
    "bc_reg_decay": Row("gbrl_bc_reg.py", {"method": "bc_reg_decay"}, True),
    "between": Row("gbrl_bc_reg.py", {"method": "between"}, True),
    "ta": Row("gbrl_teacher_action.py", {"method": "ta"}, True),
    "ta_qf": Row("gbrl_teacher_action.py", {"method": "ta_qf"}, False),
    "tg": Row("gbrl_teacher_grad.py", {}, True),
}
GRAMMAR = ", ".join(f"{name}:R" if row.decays else name for name, row in ROWS.items())


def parse(row: str) -> tuple[str, dict[str, str | None]]:
    """The script that runs `row` and its flags, without dashes; None for a flag without a value.

    Raises:
        ValueError: `row` isn't in the table.
    """
    first, *readings = row.split(",")
    name, _, rate = first.partition(":")
    if name not in ROWS or ROWS[name].decays != bool(rate):
        raise ValueError(f"{row} is no row of the table: {GRAMMAR}, each with its readings behind commas")
    flags: dict[str, str | None] = dict(ROWS[name].flags)
    if rate:
        flags["decay-rate"] = rate
    for reading in readings:
        flag, colon, value = reading.partition(":")
        flags[flag] = value if colon else None
    return ROWS[name].script, flags


def command(row: str) -> list[str]:
    """The script and flags that run `row`, as words of a command line. Raises ValueError as `parse` does."""
    script, flags = parse(row)
    return [script, *(word for flag, value in flags.items() for word in (f"--{flag}", value) if word is not None)]


def load(row: str) -> tuple[ModuleType, Any]:
    """The script that runs `row` and the arguments that its command line gives. Raises ValueError as `parse` does."""
    name, *words = command(row)
    script = importlib.import_module(Path(name).stem)
    return script, tyro.cli(script.Args, args=words)
