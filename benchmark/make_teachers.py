"""Train, ship, score and draw the teachers of `teachers/`.

    python benchmark/make_teachers.py train cheetah-run-expert --run-dir runs/cheetah
    python benchmark/make_teachers.py ship runs/cheetah --cycle 2000 --tier expert
    python benchmark/make_teachers.py report

`train` trains a shipped teacher again, from nothing, with its own command; the policy of the last cycle is the teacher.
`ship` scores a policy of a training run and makes it a shipped teacher: choose it by its evaluations. `report`
scores all shipped teachers again, writes the manifest anew and draws their training curves beside published ones.
"""

import itertools
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from plot import write_csv
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

from common import UserError, evaluate, files, report, snapshots, teachers  # noqa: E402

RESULTS = ROOT / "benchmark" / "results" / "teachers"
SCORE_EPISODES = 100  # of the one score that is reported of a teacher [ours]
MARKS = (100_000, 250_000, 500_000, 1_000_000, 2_000_000, 3_000_000)  # environment steps of the table of curves [ours]


@dataclass
class Train:
    """Train a shipped teacher again, from nothing."""

    name: tyro.conf.Positional[str]
    """name of the teacher, such as cheetah-run-expert"""
    run_dir: Path
    """folder of the run, started there or continued"""

    def __call__(self) -> None:
        path = teachers.SHIPPED / f"{self.name}.pt"
        if not path.exists():
            names = ", ".join(path.stem for path in shipped())
            raise UserError(f"{self.name} is no shipped teacher; there are {names}.")
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
        manifest = teachers.SHIPPED / "manifest.json"
        known = files.load_json(manifest, "manifest") if manifest.exists() else {}
        save_manifest(known | {path.name: entry(path, returned)})
        print(f"{path}: {returned['mean']:.1f}, 95 % interval {returned['ci95'][0]:.1f} to {returned['ci95'][1]:.1f}")


@dataclass
class Report:
    """Score all shipped teachers again, write the manifest anew, draw the curves and print both as tables."""

    def __call__(self) -> None:
        paths = tqdm(shipped(), "scoring", disable=None, leave=False)
        manifest = {path.name: entry(path, score(path)) for path in paths}
        save_manifest(manifest)
        print("| teacher | return | 95 % interval | environment steps |\n|---|---|---|---|")
        for name, content in manifest.items():
            (low, high), mean = content["return"]["ci95"], content["return"]["mean"]
            print(f"| {Path(name).stem} | {mean:.1f} | {low:.1f} to {high:.1f} | {content['actor_step']:,} |")
        tasks = sorted({path.stem.rpartition("-")[0] for path in shipped()})
        curves = {task: (load_curve(task), load_published(task)) for task in tasks}
        draw(RESULTS / "curves.png", curves)
        marks = " | ".join(f"{mark / 1e6:g}M" for mark in MARKS)
        print(f"\n| task | {marks} |\n|---|" + "---|" * len(MARKS))
        for task, (ours, published) in curves.items():
            print(f"| {task} | " + " | ".join(compare(ours, published, mark) for mark in MARKS) + " |")


def shipped() -> list[Path]:
    """The shipped snapshots, in the order of their names."""
    return sorted(teachers.SHIPPED.glob("*.pt"))


def score(path: Path) -> dict[str, Any]:
    """Mean, interval and spread of a snapshot's return on noise-free episodes that no run ever sees."""
    snapshot = snapshots.load(path, torch.device("cpu"))
    return report.summarise(evaluate.score(snapshot, SCORE_EPISODES, seed=0, num_workers=2))


def entry(path: Path, returned: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a shipped snapshot."""
    snapshot = snapshots.load(path, torch.device("cpu"))
    facts = {name: snapshot.metadata[name] for name in ("actor_step", "learner_step", "cycle", "command", "versions")}
    return {"return": returned, **facts, "file_sha256": snapshot.sha256}


def save_manifest(manifest: dict[str, Any]) -> None:
    """Write what is known of each shipped file, sorted by name."""
    files.save_json(teachers.SHIPPED / "manifest.json", dict(sorted(manifest.items())))


# ---- training curves


def load_curve(task: str) -> np.ndarray:
    """Environment steps and noise-free returns of the n evaluations of the task's training run, (2, n)."""
    return np.loadtxt(RESULTS / f"{task}.csv", delimiter=",", skiprows=1).T


def load_published(task: str) -> np.ndarray:
    """Environment steps at a bin's end, and mean, lowest and highest return over published seeds, (4, bins)."""
    path = RESULTS / "d4pg_reference_curves.csv"
    lines = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    lines = lines[lines["task"] == task.replace("-", "_")]
    return np.array([lines[name] for name in ("env_steps_bin_end", "mean", "min_seed", "max_seed")], float)


def binned(curve: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Mean return of the evaluations in each bin, (bins,), NaN for a bin without one."""
    edges = np.concatenate([[2 * ends[0] - ends[1]], ends])
    inside = [curve[1][(low < curve[0]) & (curve[0] <= high)] for low, high in itertools.pairwise(edges)]
    return np.array([values.mean() if len(values) else np.nan for values in inside])


def compare(curve: np.ndarray, published: np.ndarray, mark: int) -> str:
    """Ours and the published return in the bin that ends at `mark` environment steps, as a cell of a table."""
    for (end, mean, low, high), ours in zip(published.T, binned(curve, published[0]), strict=True):
        if end == mark and not np.isnan(ours):
            return f"{ours:.0f} / {mean:.0f} ({low:.0f} to {high:.0f})"
    return "–"


def draw(path: Path, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw ours, one seed, over the published mean and range over seeds, one panel for each task."""
    with report.plain_figure(figsize=(6.5, 4.2)) as figure:
        grid = figure.subplots(2, 3, sharey=True)
        for axes, (task, (curve, (ends, mean, low, high))) in zip(grid.flat, curves.items(), strict=True):
            axes.fill_between(ends, low, high, color="0.85", linewidth=0)
            axes.plot(ends, mean, color="0.35", linewidth=1, label="published D4PG, 10 seeds: mean and range")
            axes.plot(ends, binned(curve, ends), color="#0072B2", linewidth=1.2, label="ours, one seed")
            axes.set(title=task, xlim=(0, curve[0][-1]), ylim=(0, 1000))
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M")
            axes.locator_params(axis="x", nbins=4)
        for axes in grid[:, 0]:
            axes.set_ylabel("episodic return")
        for axes in grid[-1]:
            axes.set_xlabel("environment steps")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, dpi=200)


if __name__ == "__main__":
    try:
        tyro.cli(Train | Ship | Report, description=__doc__)()
    except UserError as error:
        sys.exit(f"error: {error}")
