"""metrics.jsonl: one JSON object for each log point, in order; wandb and, without a terminal, the screen mirror it.

    python -m common.metrics RUN_DIR

sends a run to wandb that wasn't tracked, or that wandb lost a part of.
"""

import json
import math
import os
import secrets
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import UserError, files
from common.workers import Pending

CLOCKS = ("cycle", "actor_step", "learner_step", "pretrain_step", "wall_s")


class Metrics:
    """The file, and the lines that still wait for their evaluation."""

    def __init__(self, path: Path, place: dict[str, int] | None) -> None:
        """Open `path` for appending, cut back to the `place` that a checkpoint knows.

        Raises:
            UserError: it isn't what its run wrote, or can't be written.
        """
        self._path, self._wandb = path, None
        self._waiting: list[tuple[dict[str, Any], Pending | None]] = []
        self.last_return: float | None = None  # of the newest evaluation
        self._bytes, self._crc = (place["bytes"], place["crc"]) if place else (0, 0)
        content = path.read_bytes()[: self._bytes] if path.exists() else b""
        if zlib.crc32(content) != self._crc:
            raise UserError(f"{path} isn't what its run wrote; restore it from a copy, or start again in a new folder.")
        self._number = content.count(b"\n")  # of the next line
        with files.writing(path):
            self._file = open(path, "ab")  # noqa: SIM115 (closed in `close`)
            self._file.truncate(len(content))

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
            values: 0-dim tensors and numbers under any keys; None is left out.

        Raises:
            UserError: a value isn't finite.
        """
        tensors = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
        if tensors:  # one transfer for all of them
            numbers = torch.stack([values[name].detach().float() for name in tensors]).tolist()
            values = values | dict(zip(tensors, numbers, strict=True))
        line = clock | {name: float(value) for name, value in values.items() if value is not None}
        if bad := [name for name, value in line.items() if name.startswith("losses/") and not math.isfinite(value)]:
            step = clock.get("pretrain_step", clock["learner_step"])
            raise UserError(
                f"{', '.join(bad)} of cycle {clock['cycle']} isn't finite at step {step}: look at the loss, the "
                f"rewards and the teacher. The last good state is {self._path.parent / 'checkpoint.pt'}, if it exists."
            )
        self._waiting.append((line, evaluation))
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
        self._append((json.dumps(line) + "\n").encode())
        if not sys.stderr.isatty():  # no progress bar shows that the run is alive
            numbers = {name: value for name, value in line.items() if name not in CLOCKS}
            step = (
                f"pretrain step {line['pretrain_step']}" if "pretrain_step" in line else f"step {line['learner_step']}"
            )
            shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            tqdm.write(f"cycle {line['cycle']}, {step}: {shown}")

    def copy(self, content: bytes) -> None:
        """Begin with the lines of another run's file."""
        for line in content.splitlines(keepends=True):
            self._append(line)

    def _append(self, data: bytes) -> None:
        with files.writing(self._path):
            self._file.write(data)
            self._file.flush()
        self._crc = zlib.crc32(data, self._crc)
        self._bytes += len(data)
        if self._wandb is not None and self._number >= self._wandb.step:
            self._wandb.log(json.loads(data), step=self._number)
        self._number += 1

    def track(self) -> None:
        """Mirror to wandb from now on, and send what it lacks. Raises UserError where wandb can't be reached."""
        self._wandb = start_wandb(self._path.parent)
        send(self._wandb, self._path.read_bytes().splitlines()[: self._number])

    def finish_wandb(self) -> None:
        """Send what a run ends with, if it is tracked."""
        if self._wandb is not None:
            send_report(self._wandb, self._path.parent, self._number)

    def close(self, exit_code: int, preempted: bool) -> None:
        """Close the file, and wandb's run."""
        self._file.close()
        if self._wandb is not None:
            if preempted:
                self._wandb.mark_preempting()
            self._wandb.finish(exit_code=exit_code)


# ---- wandb, a mirror of a run's folder


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


def start_wandb(folder: Path) -> Any:
    """wandb's run of the run in `folder`, whose id is kept there. Raises UserError if it can't start."""
    import wandb

    content = files.load_json(folder / "args.json", "arguments")
    args, name = content["args"], content["name"]
    path = folder / "wandb.json"
    if not path.exists():
        files.save_json(path, {"id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)})  # a sweep gives one
    task, teacher = (Path(args[flag]).name for flag in ("env_id", "teacher"))
    setting = f"{args['num_cycles']} cycles, {args['actor_steps']} steps, {args['learner_steps']} updates"
    unless_set = {
        "WANDB_RUN_GROUP": ("group", f"{task}, teacher {teacher}, {setting}, {name}"[:128]),
        "WANDB_NAME": ("name", folder.resolve().name[:128]),
        "WANDB_DIR": ("dir", str(folder)),
        "WANDB_PROJECT": ("project", "growing-batch-rl"),
    }
    about = {key: value for variable, (key, value) in unless_set.items() if variable not in os.environ}
    given = {"project": args["wandb_project_name"], "entity": args["wandb_entity"]}
    about |= {key: value for key, value in given.items() if value is not None}
    is_clone = args["learner_steps"] == 1  # as sweep.py makes them
    about |= {"job_type": "clone" if is_clone else "run", "tags": [tag[:64] for tag in (task, name, teacher)]}
    try:
        run = wandb.init(
            id=files.load_json(path, "wandb's id")["id"], resume="allow", config=args | {"name": name}, **about
        )
    except (wandb.Error, OSError) as error:  # no network, a wrong entity, a key that was withdrawn
        raise UserError(f"--track: {error}; set WANDB_MODE=offline, or leave the flag out.") from error
    run.define_metric("*", step_metric="learner_step")
    for key in ("losses/bc_loss", "losses/critic_evaluation_loss"):
        run.define_metric(key, step_metric="pretrain_step")
    return run


def send(run: Any, lines: list[bytes]) -> None:
    """Send the lines that wandb lacks, each with its number in the file as wandb's step."""
    for number, line in enumerate(lines):
        if number >= run.step:
            run.log(json.loads(line), step=number)


def send_report(run: Any, folder: Path, step: int) -> None:
    """Send a finished run's report, its cycles as a table, its pictures and its script."""
    import wandb

    report = files.load_json(folder / "report.json", "report")
    run.summary.update({"report": report})
    table = wandb.Table(columns=["cycle", "learner_step", "deployed", "after_learning", "ci_low", "ci_high"])
    for cycle in report["cycles"]:
        after = cycle["after_learning"] or {"mean": None, "ci95": [None, None]}
        deployed = cycle["deployed"] and cycle["deployed"]["mean"]
        table.add_data(cycle["cycle"], cycle["learner_step"], deployed, after["mean"], *after["ci95"])
    *_, line = (folder / "metrics.jsonl").read_bytes().splitlines()
    last = {name: value for name, value in json.loads(line).items() if name in CLOCKS}
    pictures = {"cycles": table}
    if (folder / "learning_curve.png").exists():
        pictures["learning_curve"] = wandb.Image(str(folder / "learning_curve.png"))
    for path in sorted(folder.glob("cycle_*/video.gif")):
        pictures[f"videos/{path.parent.name}"] = wandb.Video(str(path), format="gif")
    run.log(last | pictures, step=step)
    run.save(str(folder / report["script"]), base_path=str(folder), policy="now")


def main(folder: Path) -> None:
    """Send the run in `folder` to wandb. Raises UserError if it holds none."""
    check_login()
    run = start_wandb(folder)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    send(run, lines)
    if (folder / "report.json").exists():
        send_report(run, folder, len(lines))
    run.finish()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
