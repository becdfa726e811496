"""Ship a policy of a training run as a teacher: score it on fresh episodes, and write the snapshot and the manifest.

    python benchmark/ship_teacher.py RUN_DIR --cycle 400 --tier expert

Choose the cycle by the run's own evaluations. The score is from `common.evaluate`'s episodes, which no run ever sees.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

from common import UserError, evaluate, files, report, teachers  # noqa: E402


@dataclass
class Args:
    """Which policy, as which teacher."""

    run_dir: tyro.conf.Positional[Path]
    """folder of the training run"""
    cycle: int
    """the cycle whose policy ships"""
    tier: str
    """expert or mid"""
    episodes: int = 100
    """fresh noise-free episodes for the score"""


def main(args: Args) -> None:
    """Score, save, and bring the manifest up to date."""
    if args.tier not in ("expert", "mid"):
        raise UserError(f"--tier must be expert or mid, not {args.tier}.")
    source = args.run_dir / f"cycle_{args.cycle:04d}" / "snapshot.pt"
    content = files.load_torch(source, "snapshot")
    returns = evaluate.score(teachers.load_snapshot(source, CPU), args.episodes, seed=0, num_workers=2)
    score = report.summarise(returns)
    run = files.load_json(args.run_dir / "args.json", "arguments")
    metadata = content["metadata"] | {"tier": args.tier, "score": score["mean"], "score_episodes": args.episodes}
    path = teachers.SHIPPED / f"{content['env_id']}-{args.tier}.pt"
    files.save_torch(path, content | {"metadata": metadata})
    flags = {k: v for k, v in run["args"].items() if k not in ("run_dir", "resume", "num_workers", "demo_dir")}
    entry = {"actor_steps": metadata["actor_step"], "learner_steps": metadata["learner_step"], "cycle": args.cycle}
    entry |= {"return": score, "script": run["script"], "flags": flags, "command": metadata["command"]}
    manifest_path = teachers.SHIPPED / "manifest.json"
    manifest = files.load_json(manifest_path, "manifest") if manifest_path.exists() else {}
    sha256 = teachers.load_snapshot(path, CPU).sha256
    manifest[path.name] = entry | {"versions": metadata["versions"], "file_sha256": sha256}
    files.save_json(manifest_path, dict(sorted(manifest.items())))
    print(f"{path}: {score['mean']:.1f}, 95 % interval {score['ci95'][0]:.1f} to {score['ci95'][1]:.1f}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except UserError as error:
        sys.exit(f"error: {error}")
