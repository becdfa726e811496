"""metrics.csv: one line for each log point, in their order; wandb and, without a terminal, the screen mirror it."""

import csv
import io
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import UserError, files
from common.rollouts import Pending

CLOCKS = ("cycle", "actor_step", "learner_step", "pretrain_step", "wall_s")  # the first columns


def check_login() -> None:
    """Raise UserError if wandb would ask for a login that nobody gave."""
    import wandb

    if wandb.setup().settings.mode in ("online", "shared"):
        try:
            logged_in, reason = wandb.login(prompt=False, verify=False), "nobody is logged in"
        except wandb.Error as error:  # such as a key of the wrong length
            logged_in, reason = False, str(error)
        if not logged_in:
            raise UserError(f"--track: {reason}; run `wandb login`, set WANDB_MODE=offline, or leave the flag out.")


class Metrics:
    """The file, and the lines that still wait for their evaluation."""

    def __init__(self, path: Path, keys: tuple[str, ...], place: dict[str, int] | None) -> None:
        """Open `path` for appending, cut back to what `place`, of a checkpoint, knows.

        Raises:
            UserError: it isn't what its run wrote, or can't be written.
        """
        self._path, self._keys, self._wandb = path, keys, None
        self._waiting: list[tuple[dict[str, Any], Pending | None]] = []
        self.last_return: float | None = None  # of the newest evaluation
        self._bytes, self._crc = (place["bytes"], place["crc"]) if place else (0, 0)
        content = path.read_bytes()[: self._bytes] if path.exists() else b""
        if zlib.crc32(content) != self._crc:
            raise UserError(f"{path} isn't what its run wrote; restore it from a copy, or start again in a new folder.")
        with files.writing(path):
            self._file = open(path, "ab")  # noqa: SIM115 (closed in `close`)
            self._file.truncate(len(content))
        if not content:
            self._append((*CLOCKS, *self._keys))

    def borrow(self, lines: list[dict[str, str]]) -> None:
        """Take lines of another run's file over as they are; columns that this one lacks are left out."""
        for line in lines:
            self._append([line.get(name) for name in (*CLOCKS, *self._keys)])
            if self._wandb is not None:
                self._wandb.log({name: float(value) for name, value in line.items()})

    def place(self) -> dict[str, int]:
        """How far the file has been written, for a checkpoint; call `flush` first."""
        return {"bytes": self._bytes, "crc": self._crc}

    def wait_for_evaluations(self, at_most: int) -> None:
        """Write lines until no more than `at_most` evaluations are under way."""
        while sum(pending is not None for _, pending in self._waiting) > at_most:
            self._write_first()

    def add(self, clock: dict[str, Any], values: dict[str, Any], evaluation: Pending | None = None) -> None:
        """Write a line once its evaluation is there, and those before it are written.

        Args:
            values: 0-dim tensors and numbers; None is left out. Raises ValueError for a key that is no column.
        """
        if unknown := set(values) - set(self._keys):
            raise ValueError(f"metric keys {sorted(unknown)} are not among the script's: {self._keys}")
        tensors = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
        if tensors:  # one transfer for all of them
            numbers = torch.stack([values[name].detach().float() for name in tensors]).tolist()
            values = values | dict(zip(tensors, numbers, strict=True))
        self._waiting.append((clock | values, evaluation))
        self.flush()

    def flush(self, wait: bool = False) -> None:
        """Write the lines at the head of the queue whose evaluations are there; with `wait`, all."""
        while self._waiting and (wait or self._waiting[0][1] is None or self._waiting[0][1].done()):
            self._write_first()

    def _write_first(self) -> None:
        """Write the line at the head of the queue, waiting for its evaluation."""
        line, pending = self._waiting[0]
        if pending is not None:
            self.last_return = float(np.mean([episode.episodic_return for episode in pending.result()]))
            line = line | {"eval/episodic_return": self.last_return}
        self._waiting.pop(0)
        self._append([line.get(name) for name in (*CLOCKS, *self._keys)])
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in line.items() if value is not None})
        if not sys.stderr.isatty():  # no progress bar shows that the run is alive
            numbers = {name: value for name, value in line.items() if name not in CLOCKS and value is not None}
            step = f"pretrain step {line['pretrain_step']}" if line["pretrain_step"] else f"step {line['learner_step']}"
            text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            tqdm.write(f"cycle {line['cycle']}, {step}: {text}")

    def _append(self, cells: Any) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        data = text.getvalue().encode()
        with files.writing(self._path):
            self._file.write(data)
            self._file.flush()
        self._crc = zlib.crc32(data, self._crc)
        self._bytes += len(data)

    def start_wandb(self, wandb_id: str | None, args: Any, row: str) -> str:
        """Mirror to wandb from now on, as the run `wandb_id` if it was tracked before; returns its id."""
        import wandb

        about = {"project": args.wandb_project_name, "entity": args.wandb_entity, "group": row}
        about |= {"name": self._path.parent.name, "dir": self._path.parent, "config": vars(args) | {"row": row}}
        try:
            self._wandb = wandb.init(id=wandb_id, resume="allow", **about)
        except wandb.Error as error:  # no network, a wrong entity, a key that was withdrawn
            raise UserError(f"--track: {error}; set WANDB_MODE=offline, or leave the flag out.") from error
        wandb.define_metric("*", step_metric="learner_step")
        for name in ("losses/bc_loss", "losses/critic_evaluation_loss"):
            wandb.define_metric(name, step_metric="pretrain_step")
        return self._wandb.id

    def finish_wandb(self, report: dict[str, Any], picture: Path) -> None:
        """Send what a run ends with, if it is tracked."""
        if self._wandb is not None:
            import wandb

            self._wandb.summary.update({"report": report})
            self._wandb.log({"learning_curve": wandb.Image(str(picture))})

    def close(self, failed: bool) -> None:
        """Close the file, and wandb's run."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=1 if failed else 0)
