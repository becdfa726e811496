"""Train, ship and score the teachers of `teachers/`.

    python benchmark/make_teachers.py train cheetah-run-expert --run-dir runs/cheetah
    python benchmark/make_teachers.py ship runs/cheetah --cycle 2000 --tier expert
    python benchmark/make_teachers.py report

`train` retrains a shipped teacher from scratch, with its own command; the policy of the last cycle is the teacher.
`ship` scores a policy of a training run and makes it a shipped teacher: choose it by its evaluations. `report`
scores all shipped teachers and writes the manifest; run it after `ship`.
"""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from plot import write_csv
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

from common import UserError, evaluate, files, report, snapshots, teachers  # noqa: E402

RESULTS = ROOT / "benchmark" / "results" / "teachers"
FACTS = ("actor_step", "learner_step", "cycle", "command", "versions")  # of a snapshot, for the manifest
SCORE_EPISODES = 100  # behind the score that we report for a teacher [ours]


@dataclass
class Train:
    """Retrain a shipped teacher from scratch."""

    name: tyro.conf.Positional[str]
    """name of the teacher, such as cheetah-run-expert"""
    run_dir: Path
    """folder of the run; continues it if there is one"""

    def __call__(self) -> None:
        path = teachers.SHIPPED / f"{self.name}.pt"
        if not path.exists():
            names = ", ".join(path.stem for path in shipped())
            raise UserError(f"{self.name} isn't a shipped teacher; choose one of {names}.")
        metadata = snapshots.load(path, torch.device("cpu")).metadata
        _, script, *flags = shlex.split(metadata["command"])
        # Cycles don't depend on how many follow, so the run may end with the one that was shipped.
        flags += ["--actor-steps", str(metadata["actor_step"]), "--learner-steps", str(metadata["learner_step"])]
        flags += ["--num-cycles", str(metadata["cycle"])]
        words = [sys.executable, str(ROOT / script), *flags, "--run-dir", str(self.run_dir)]
        sys.exit(subprocess.run(words).returncode)


@dataclass
class Ship:
    """Score a policy of a training run on fresh episodes and ship it, and keep the run's curve."""

    run_dir: tyro.conf.Positional[Path]
    """folder of the training run"""
    cycle: int
    """the cycle whose policy ships"""
    tier: Literal["expert", "mid"]
    """which of the task's two teachers it becomes"""

    def __call__(self) -> None:
        source = self.run_dir / f"cycle_{self.cycle:04d}" / "snapshot.pt"
        content, returned = files.load_torch(source, "snapshot"), score(source)
        path = teachers.SHIPPED / f"{content['env_id']}-{self.tier}.pt"
        metadata = content["metadata"] | {"tier": self.tier}
        metadata |= {"score": returned["mean"], "score_episodes": returned["episodes"]}
        files.save_torch(path, content | {"metadata": metadata})
        lines = [line for line in report.read_metrics(self.run_dir / "metrics.jsonl") if "eval/episodic_return" in line]
        curve = [{"env_steps": int(line["actor_step"]), "return": line["eval/episodic_return"]} for line in lines]
        write_csv(RESULTS / f"{content['env_id']}.csv", curve)
        print(f"{path}: {returned['mean']:.1f}, 95 % interval {returned['ci95'][0]:.1f} to {returned['ci95'][1]:.1f}")


@dataclass
class Report:
    """Score all shipped teachers, write the manifest and print the scores as a table."""

    def __call__(self) -> None:
        manifest = {}
        for path in tqdm(shipped(), "scoring", disable=None, leave=False):
            snapshot = snapshots.load(path, torch.device("cpu"))
            facts = {name: snapshot.metadata[name] for name in FACTS}
            manifest[path.name] = {"return": score(path), **facts, "file_sha256": snapshot.sha256}
        files.save_json(teachers.SHIPPED / "manifest.json", manifest)
        print("| teacher | return | 95 % interval | environment steps |\n|---|---|---|---|")
        for name, content in manifest.items():
            (low, high), mean = content["return"]["ci95"], content["return"]["mean"]
            print(f"| {Path(name).stem} | {mean:.1f} | {low:.1f} to {high:.1f} | {content['actor_step']:,} |")


def shipped() -> list[Path]:
    """The shipped snapshots, in the order of their names."""
    return sorted(teachers.SHIPPED.glob("*.pt"))


def score(path: Path) -> dict[str, Any]:
    """Mean, interval and spread of a snapshot's return on noise-free episodes that no run ever sees."""
    snapshot = snapshots.load(path, torch.device("cpu"))
    return report.summarise(evaluate.score(snapshot, SCORE_EPISODES, seed=0, num_workers=2))


if __name__ == "__main__":
    try:
        tyro.cli(Train | Ship | Report, description=__doc__)()
    except UserError as error:
        sys.exit(f"error: {error}")
