"""metrics.jsonl has one JSON object per log point, in order. wandb mirrors it; without a terminal, so does the screen.

    python -m common.metrics RUN_DIR

sends wandb a run that wasn't tracked, or the lines of a run that wandb lacks.
"""

import collections
import json
import math
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import UserError, files
from common.workers import Pending

CLOCKS = ("cycle", "actor_step", "learner_step", "pretrain_step", "wall_s")


def first_lines(path: Path, number: int) -> bytes:
    """The first `number` lines of a metrics file. Raises UserError if it has fewer."""
    lines = path.read_bytes().splitlines(keepends=True)[:number] if path.exists() else []
    if sum(line.endswith(b"\n") for line in lines) < number:
        raise UserError(f"{path} has lost lines that its run wrote; {files.RESTORE}.")
    return b"".join(lines)


class Metrics:
    """The open file, and the lines that still wait for their evaluation.

    Attributes:
        lines: how many lines have been written; a line's number is its step in wandb.
        last_return: the newest evaluation's return, None before the first.
    """

    def __init__(self, path: Path, lines: int) -> None:
        """Open `path` for appending, cut to the number of `lines` that the checkpoint holds.

        Raises:
            UserError: the file has fewer lines, or can't be written.
        """
        self._path, self.lines, self._wandb = path, lines, None
        self._waiting: collections.deque[tuple[dict[str, Any], Pending | None]] = collections.deque()
        self.last_return: float | None = None
        content = first_lines(path, lines)
        with files.writing(path):
            self._file = open(path, "ab")  # noqa: SIM115 (closed in `close`)
            self._file.truncate(len(content))

    def add(self, clock: dict[str, Any], values: dict[str, Any], evaluation: Pending | None = None) -> None:
        """Write a line as soon as its evaluation is done and all earlier lines are written.

        Args:
            values: 0-dim tensors and numbers under any keys; None is left out.

        Raises:
            UserError: a loss isn't finite.
        """
        tensors = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
        if tensors:  # one transfer for all of them
            numbers = torch.stack([values[name].detach().float() for name in tensors]).tolist()
            values = values | dict(zip(tensors, numbers, strict=True))
        line = clock | {name: float(value) for name, value in values.items() if value is not None}
        if bad := [name for name, value in line.items() if name.startswith("losses/") and not math.isfinite(value)]:
            step = clock.get("pretrain_step", clock["learner_step"])
            raise UserError(
                f"{', '.join(bad)} of cycle {clock['cycle']} isn't finite at step {step}: check the loss, the "
                f"rewards and the teacher. The last good state is {self._path.parent / 'checkpoint.pt'}, if it exists."
            )
        self._waiting.append((line, evaluation))
        self.flush()

    def flush(self, at_most: float = math.inf) -> None:
        """Write the lines whose evaluations are done, in order; wait until at most `at_most` evaluations are left."""
        while self._waiting:
            line, pending = self._waiting[0]
            if pending is not None:
                if not pending.done() and sum(waits is not None for _, waits in self._waiting) <= at_most:
                    return
                self.last_return = float(np.mean([episode.episodic_return for episode in pending.result()]))
                line = line | {"eval/episodic_return": self.last_return}
            self._waiting.popleft()
            self._write(line)

    def save(self) -> None:
        """Write all lines, so that they stay even if the machine crashes: a checkpoint counts them."""
        self.flush(at_most=0)
        with files.writing(self._path):
            os.fsync(self._file.fileno())

    def _write(self, line: dict[str, Any]) -> None:
        """Write a line to the file, to wandb and, without a terminal, to the screen."""
        data = (json.dumps(line) + "\n").encode()
        with files.writing(self._path):
            self._file.write(data)
            self._file.flush()
        self._mirror(lambda run: send(run, [data], self.lines))
        self.lines += 1
        if not sys.stderr.isatty():  # no progress bar shows that the run is alive
            step = f"pretrain step {line['pretrain_step']}" if line["cycle"] == 0 else f"step {line['learner_step']}"
            shown = ", ".join(f"{name} {value:.4g}" for name, value in line.items() if name not in CLOCKS)
            tqdm.write(f"cycle {line['cycle']}, {step}: {shown}")

    def track(self) -> None:
        """Start to mirror to wandb, and send what it lacks. Raises UserError if wandb can't be reached."""
        self._wandb = start_wandb(self._path.parent)

    def finish_wandb(self) -> None:
        """Send the report of a finished run, if it is tracked."""
        self._mirror(lambda run: send_report(run, self._path.parent))

    def close(self, exit_code: int, preempted: bool) -> None:
        """Close the file, and wandb's run."""
        self._file.close()
        if preempted:
            self._mirror(lambda run: run.mark_preempting())
        self._mirror(lambda run: run.finish(exit_code=exit_code))

    def _mirror(self, do: Callable[[Any], None]) -> None:
        """Call `do` with wandb's run, if there is one. When wandb fails, as if killed, the run goes on without it."""
        if self._wandb is not None:
            try:
                do(self._wandb)
            except Exception as error:
                self._wandb = None
                again = f"python -m common.metrics {self._path.parent}"
                tqdm.write(f"warning: wandb failed ({error!r}); send it the rest with: {again}")


# ---- wandb, a mirror of a run's folder


def check_login() -> None:
    """Raise UserError if wandb would have to ask for a login."""
    import wandb

    if wandb.setup().settings.mode in ("online", "shared"):
        try:
            logged_in, reason = wandb.login(prompt=False, verify=False), "you aren't logged in"
        except wandb.Error as error:  # such as a key of the wrong length
            logged_in, reason = False, str(error)
        if not logged_in:
            raise UserError(f"--track: {reason}; run `wandb login`, set WANDB_MODE=offline, or leave the flag out.")


def start_wandb(folder: Path) -> Any:
    """Start or continue wandb's run for `folder`, and send what it lacks. Raises UserError if wandb can't."""
    import wandb

    content = files.load_json(folder / "args.json", "arguments")
    args, name = content["args"], content["name"]
    path = folder / "wandb.json"
    if not path.exists():
        files.save_json(path, {"id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)})  # a sweep gives one
    task, teacher = (Path(args[flag]).name for flag in ("env_id", "teacher"))
    setting = f"{args['num_cycles']} cycles, {args['actor_steps']} steps, {args['learner_steps']} updates"
    given = os.environ.get
    about = {
        "id": files.load_json(path, "wandb's id")["id"],
        "project": args["wandb_project_name"] or given("WANDB_PROJECT", "growing-batch-rl"),
        "entity": args["wandb_entity"],
        "group": given("WANDB_RUN_GROUP", f"{task}, teacher {teacher}, {setting}, {name}"[:128]),
        "name": given("WANDB_NAME", folder.resolve().name[:128]),
        "dir": given("WANDB_DIR", str(folder)),
        # sweep.py's clones learn for one step
        "job_type": given("WANDB_JOB_TYPE", "clone" if args["learner_steps"] == 1 else "run"),
        "tags": [tag[:64] for tag in dict.fromkeys((task, name, teacher, *given("WANDB_TAGS", "").split(","))) if tag],
    }
    try:
        run = wandb.init(resume="allow", config=args | {"name": name}, **about)
    except (wandb.Error, OSError) as error:  # no network, a wrong entity, a revoked key
        raise UserError(f"--track: {error}; set WANDB_MODE=offline, or leave the flag out.") from error
    run.define_metric("*", step_metric="learner_step")
    for key in ("losses/bc_loss", "losses/critic_evaluation_loss"):
        run.define_metric(key, step_metric="pretrain_step")
    send(run, (folder / "metrics.jsonl").read_bytes().splitlines())
    return run


def send(run: Any, lines: list[bytes], first: int = 0) -> None:
    """Send those of `lines` that wandb lacks. The first has the number `first`; a number is the step in wandb."""
    for number, line in enumerate(lines, first):
        if number >= run.step:
            run.log(json.loads(line), step=number)


def send_report(run: Any, folder: Path) -> None:
    """Send a finished run's report, its cycles as a table, its pictures and its script."""
    import wandb

    report = files.load_json(folder / "report.json", "report")
    run.summary.update({"report": report})
    table = wandb.Table(columns=["cycle", "learner_step", "deployed", "after_learning", "ci_low", "ci_high"])
    for cycle in report["cycles"]:
        after = cycle["after_learning"] or {"mean": None, "ci95": [None, None]}
        deployed = cycle["deployed"] and cycle["deployed"]["mean"]
        table.add_data(cycle["cycle"], cycle["learner_step"], deployed, after["mean"], *after["ci95"])
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    last = {name: value for name, value in json.loads(lines[-1]).items() if name in CLOCKS}
    pictures = {"cycles": table}
    if (folder / "learning_curve.png").exists():
        pictures["learning_curve"] = wandb.Image(str(folder / "learning_curve.png"))
    for path in sorted(folder.glob("cycle_*/video.gif")):
        pictures[f"videos/{path.parent.name}"] = wandb.Video(str(path), format="gif")
    run.log(last | pictures, step=len(lines))
    run.save(str(folder / report["script"]), base_path=str(folder), policy="now")


def main(folder: Path) -> None:
    """Send the run in `folder` to wandb. Raises UserError if it holds none."""
    check_login()
    run = start_wandb(folder)
    if (folder / "report.json").exists():
        send_report(run, folder)
    run.finish()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
