"""Seconds by phase of whole runs, and what the paper's full protocol then costs on this machine.

    python benchmark/full_run.py --env-ids cartpole-swingup walker-run --scale 0.1 --output runs/full

Each run's demonstrations are made anew. The paper's cost multiplies every phase by 1 / scale, except those of
`SAME_AT_ANY_SCALE`, such as cloning.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

from plot import write_csv  # noqa: E402

from common import UserError, files  # noqa: E402

SAME_AT_ANY_SCALE = ("cloning", "report episodes", "report", "starting", "compiling")


@dataclass
class Args:
    """Which runs."""

    output: Path
    """folder of the run folders; a run that is there and finished is read, not run again"""
    env_ids: tuple[str, ...] = ("cartpole-swingup", "walker-run")
    """tasks"""
    scale: float = 0.1
    """fraction of the paper's budget"""
    script: Path = ROOT / "gbrl_teacher_action.py"
    """the script; another checkout's is timed with that checkout's code"""
    csv: Path | None = None
    """write the table to this file"""


def main(args: Args, more: list[str]) -> None:
    """Run one after the other and print a table."""
    lines = []
    for env_id in args.env_ids:
        folder = args.output / env_id
        if not (folder / "report.json").exists():
            flags = ["--env-id", env_id, "--scale", str(args.scale), "--run-dir", str(folder)]
            flags += ["--demo-dir", str(args.output / f"{env_id}_demos")]
            words = [sys.executable, str(args.script), *flags, *more]
            if subprocess.run(words).returncode != 0:
                raise UserError(f"{env_id}: the run failed.")
        for phase, seconds in files.load_json(folder / "report.json", "report")["seconds"].items():
            paper = seconds if phase in SAME_AT_ANY_SCALE else seconds / args.scale
            lines.append({"task": env_id, "phase": phase, "seconds": seconds, "paper_hours": round(paper / 3600, 2)})
        mine = [line for line in lines if line["task"] == env_id]
        total = {name: round(sum(line[name] for line in mine), 2) for name in ("seconds", "paper_hours")}
        lines.append({"task": env_id, "phase": "all", **total})
    print("| task | phase | seconds | hours at the paper's budget |\n|---|---|---|---|")
    for line in lines:
        print(f"| {line['task']} | {line['phase']} | {line['seconds']:.0f} | {line['paper_hours']:.2f} |")
    if args.csv is not None:
        write_csv(args.csv, lines)


if __name__ == "__main__":
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    try:
        main(tyro.cli(Args, args=own, description=__doc__), sys.argv[len(own) + 2 :])
    except UserError as error:
        sys.exit(f"error: {error}")
