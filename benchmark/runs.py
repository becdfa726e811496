"""What is kept of a finished run for figures and verdicts: its command, its report, its curve. One small file a run."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from common import UserError, files, report

DEPLOYMENT = ("cycle", "learner_step", "deploy/episodic_return", "losses/overestimation", "teacher/dqda_cosine")


class Run(NamedTuple):
    """What is averaged of one run. `steps` and `returns` are those of its n evaluations, (n,)."""

    row: str
    num_cycles: int
    env_id: str
    seed: int
    teacher: str
    learner_steps: int
    steps: np.ndarray
    returns: np.ndarray
    report: dict[str, Any]


def extract(folder: Path) -> dict[str, Any]:
    """What is kept of the finished run in `folder`; returns are rounded to hundredths.

    Raises:
        UserError: it isn't one, or a file of it is damaged.
    """
    if not (folder / "report.json").is_file():
        raise UserError(f"{folder} is no folder of a finished run: it has no report.json.")
    arguments = files.load_json(folder / "args.json", "arguments")
    versions, content = (
        files.load_json(folder / "versions.json", "versions"),
        files.load_json(folder / "report.json", "report"),
    )
    rows = report.read_metrics(folder / "metrics.csv")
    steps, returns = report.curve(rows)
    if len(steps) == 0:
        raise UserError(f"{folder} has no evaluations in its metrics.csv, so it has no curve.")
    deployments = [{k: row[k] for k in DEPLOYMENT if k in row} for row in rows if "deploy/episodic_return" in row]
    last = files.load_torch(sorted(folder.glob("cycle_*/snapshot.pt"))[-1], "snapshot")
    return {
        "command": last["metadata"]["command"],
        "resolved": arguments["resolved"],
        "versions": versions,
        "report": content,
        "deployments": deployments,
        "curve": {"learner_step": steps.tolist(), "return": [round(value, 2) for value in returns.tolist()]},
    }


def save(folder: Path, path: Path) -> None:
    """Keep the finished run in `folder` as the file `path`, one line for each part."""
    parts = [f"{json.dumps(name)}: {json.dumps(part)}" for name, part in extract(folder).items()]
    files.write_atomically(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def load(path: Path) -> Run:
    """Read a finished run from its folder or from the file that `save` wrote. Raises UserError as `extract` does."""
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read as what is kept of a run: {error}.") from error
    else:
        content = extract(path)
    resolved, summary = content["resolved"], content["report"]
    row = summary["row"] if resolved["teacher"] != "none" else f"{summary['row']}, no teacher"
    key = (row, resolved["num_cycles"], resolved["env_id"], resolved["seed"], resolved["teacher"])
    steps, returns = (np.array(content["curve"][name]) for name in ("learner_step", "return"))
    return Run(*key, resolved["learner_steps"], steps, returns, summary)
