"""Everything that a run goes on from, as one file: the state of its parts, all generators, and its place."""

import csv
import io
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import torch

from common import UserError, files, launch

NEWEST, BEFORE = "checkpoint.pt", "checkpoint_previous.pt"


def collect(parts: dict[str, Any]) -> dict[str, Any]:
    """The state of modules, optimisers and `torch.Generator`s by name, and of torch's own generators."""
    state = {n: p.get_state() if isinstance(p, torch.Generator) else p.state_dict() for n, p in parts.items()}
    return {"parts": state, "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def put_back(parts: dict[str, Any], state: dict[str, Any]) -> None:
    """The inverse of `collect`. Raises UserError if it was collected on another kind of device."""
    for name, part in parts.items():
        mine = state["parts"][name]
        if isinstance(part, torch.Generator) and len(mine) != len(part.get_state()):
            raise UserError(
                f"what is to be continued was learned on another kind of device than {part.device.type}, whose random "
                "numbers are others: go on where there is one like it."
            )
        restore = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
        restore(mine)
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save(folder: Path, content: dict[str, Any]) -> None:
    """Save as the newest checkpoint of `folder`; the one before it stays."""
    path = folder / NEWEST
    with files.writing(path):
        if path.exists():
            os.replace(path, folder / BEFORE)
    files.save_torch(path, content)


def load(folder: Path, run_id: str) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, None for a run that was ended before its first.

    Raises:
        UserError: there are some, but none can be read, or they are another run's.
    """
    paths = [path for path in (folder / NEWEST, folder / BEFORE) if path.exists()]
    cure = f"without {' and '.join(map(str, paths))} the run begins again from the start, to the same end"
    for path in paths:
        try:
            content = files.load_torch(path, "checkpoint", cure)
            if content.get("run") != run_id:
                raise UserError(f"{path} belongs to another run.")
            return content
        except UserError as error:
            if path == paths[-1]:
                raise
            print(f"{error} Going on from {paths[-1]}.", file=sys.stderr)
    return None


def load_pretrained(
    source: Path, args: Any, teacher_sha256: str | None, after_pretraining: tuple[str, ...]
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The checkpoint at the end of cycle 0 of the run in `source`, and its lines of metrics till then.

    Args:
        after_pretraining: the flags that may differ.

    Raises:
        UserError: its pre-training isn't finished, or differs from what these flags and this teacher would make.
    """
    path, name = source / "cycle_0000" / NEWEST, f"--pretrained {source}"
    if not path.exists():
        raise UserError(f"{name}: it holds no run that has finished its pre-training.")
    other, content = files.load_json(source / "args.json", "arguments"), files.load_torch(path, "checkpoint")
    if found := launch.difference(args, other["args"], (*after_pretraining, "teacher")):
        flag, value, theirs = found
        raise UserError(f"{name}: it was made with {flag} {theirs}, not {value}.")
    if other["teacher_sha256"] != teacher_sha256:
        hashes = f"SHA-256 {other['teacher_sha256']}, not {teacher_sha256}"
        raise UserError(f"{name}: it was cloned from another teacher, {hashes}.")
    place = content["metrics"]
    metrics = source / "metrics.csv"
    data = metrics.read_bytes()[: place["bytes"]] if metrics.exists() else b""
    if zlib.crc32(data) != place["crc"]:
        raise UserError(f"{name}: its metrics.csv isn't what it wrote.")
    lines = [{k: v for k, v in line.items() if v} for line in csv.DictReader(io.StringIO(data.decode()))]
    return content | {"metrics": None, "wandb_id": None}, lines
