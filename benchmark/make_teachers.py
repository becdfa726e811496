"""Train, ship, score, draw and clone the teachers of `teachers/`.

    python benchmark/make_teachers.py train cheetah-run-expert --run-dir runs/cheetah
    python benchmark/make_teachers.py ship runs/cheetah --cycle 2000 --tier expert
    python benchmark/make_teachers.py report
    python benchmark/make_teachers.py clones --output runs/clones

`train` trains a shipped teacher again, from nothing, with its own command; the policy of the last cycle is the teacher.
`ship` scores a policy of a training run and makes it a shipped teacher: choose it by its evaluations. `report`
scores all shipped teachers again, writes the manifest anew and draws their training curves beside published ones.
`clones` says how well each teacher can be cloned.
"""

import csv
import itertools
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from plot import write_csv
from sweep import run
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
    tier: str
    """expert or mid"""

    def __call__(self) -> None:
        if self.tier not in ("expert", "mid"):
            raise UserError(f"--tier must be expert or mid, not {self.tier}.")
        source = self.run_dir / f"cycle_{self.cycle:04d}" / "snapshot.pt"
        content, returned = files.load_torch(source, "snapshot"), score(source)
        path = teachers.SHIPPED / f"{content['env_id']}-{self.tier}.pt"
        metadata = content["metadata"] | {"tier": self.tier}
        metadata |= {"score": returned["mean"], "score_episodes": returned["episodes"]}
        files.save_torch(path, content | {"metadata": metadata})
        rows = [row for row in report.read_metrics(self.run_dir / "metrics.jsonl") if "eval/episodic_return" in row]
        lines = [{"env_steps": int(row["actor_step"]), "return": row["eval/episodic_return"]} for row in rows]
        write_csv(RESULTS / f"{content['env_id']}.csv", lines)
        save_manifest(load_manifest() | {path.name: entry(path, returned)})


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
        curves, published = load_curves(), load_published()
        draw(RESULTS / "curves.png", curves, published)
        marks = " | ".join(f"{mark / 1e6:g}M" for mark in MARKS)
        print(f"\n| task | {marks} |\n|---|" + "---|" * len(MARKS))
        for task, ours in curves.items():
            cells = [compare(ours, published[task], mark) for mark in MARKS]
            print(f"| {task} | " + " | ".join(cells) + " |")


@dataclass
class Clones:
    """Clone every shipped teacher with the default settings of behaviour cloning."""

    output: Path
    """folder of the runs; those that are there and finished are read, not run again"""
    demo_episodes: int = 1_000
    """demonstrations [paper 4.2]"""
    parallel: int = 2
    """runs at once"""

    def __call__(self) -> None:
        flags = ["--critic-steps", "0", "--actor-steps", "1000", "--learner-steps", "1", "--num-cycles", "1"]
        flags += ["--num-workers", "0", "--demo-episodes", str(self.demo_episodes)]
        jobs = {}
        for path in shipped():
            env_id, _, tier = path.stem.rpartition("-")
            jobs[self.output / path.stem] = ["gbrl_d4pg.py", "--env-id", env_id, "--teacher", tier, *flags]
        with ThreadPoolExecutor(self.parallel) as pool:
            futures = [pool.submit(run, words, folder) for folder, words in jobs.items()]
            for future in tqdm(as_completed(futures), "cloning", len(futures), disable=None):
                if future.result() != 0:
                    raise UserError(f"a run failed, see the .log files in {self.output}.")
        lines = []
        for folder in jobs:
            content = files.load_json(folder / "report.json", "report")
            rows = report.read_metrics(folder / "metrics.jsonl")
            teacher, clone = content["teacher"]["return"]["mean"], content["clone"]["return"]["mean"]
            loss = next(row["losses/bc_loss"] for row in reversed(rows) if "losses/bc_loss" in row)
            lines.append({"teacher": folder.name, "teacher_return": teacher, "clone_return": clone})
            lines[-1] |= {"ratio": clone / teacher, "bc_loss": loss}
        write_csv(RESULTS / "clones.csv", lines)
        print("| teacher | return | clone | ratio | BC loss |\n|---|---|---|---|---|")
        for line in lines:
            name, teacher, clone, ratio, loss = line.values()
            print(f"| {name} | {teacher:.1f} | {clone:.1f} | {ratio:.3f} | {loss:.2g} |")


Curve = tuple[np.ndarray, np.ndarray]  # environment steps (n,) and noise-free returns (n,) of n evaluations


def shipped() -> list[Path]:
    """The shipped snapshots, in the order of their names."""
    return sorted(teachers.SHIPPED.glob("*.pt"))


def score(path: Path) -> dict[str, Any]:
    """Mean, interval and spread of a snapshot's return on noise-free episodes that no run ever sees."""
    snapshot = snapshots.load(path, torch.device("cpu"))
    returned = report.summarise(evaluate.score(snapshot, SCORE_EPISODES, seed=0, num_workers=2))
    print(f"{path}: {returned['mean']:.1f}, 95 % interval {returned['ci95'][0]:.1f} to {returned['ci95'][1]:.1f}")
    return returned


def entry(path: Path, returned: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a shipped snapshot."""
    snapshot = snapshots.load(path, torch.device("cpu"))
    facts = {name: snapshot.metadata[name] for name in ("actor_step", "learner_step", "cycle", "command", "versions")}
    return {"return": returned, **facts, "file_sha256": snapshot.sha256}


def load_manifest() -> dict[str, Any]:
    """What is known of each shipped file."""
    path = teachers.SHIPPED / "manifest.json"
    return files.load_json(path, "manifest") if path.exists() else {}


def save_manifest(manifest: dict[str, Any]) -> None:
    """Write it, sorted by name."""
    files.save_json(teachers.SHIPPED / "manifest.json", dict(sorted(manifest.items())))


def load_curves() -> dict[str, Curve]:
    """The training curve of every shipped task."""
    curves = {}
    for task in sorted({path.stem.rpartition("-")[0] for path in shipped()}):
        with open(RESULTS / f"{task}.csv", newline="") as file:
            rows = [(int(row["env_steps"]), float(row["return"])) for row in csv.DictReader(file)]
        curves[task] = tuple(np.array(column) for column in zip(*rows, strict=True))
    return curves


def load_published() -> dict[str, np.ndarray]:
    """Of every task (4, bins): environment steps at a bin's end, and mean, lowest and highest return over its seeds."""
    tasks: dict[str, list[list[float]]] = {}
    with open(RESULTS / "d4pg_reference_curves.csv", newline="") as file:
        for row in csv.DictReader(file):
            numbers = [float(row[name]) for name in ("env_steps_bin_end", "mean", "min_seed", "max_seed")]
            tasks.setdefault(row["task"].replace("_", "-"), []).append(numbers)
    return {task: np.array(rows).T for task, rows in tasks.items()}


def binned(curve: Curve, ends: np.ndarray) -> np.ndarray:
    """Mean return of the evaluations in each bin, (bins,), NaN for a bin without one."""
    edges = np.concatenate([[2 * ends[0] - ends[1]], ends])
    inside = [curve[1][(low < curve[0]) & (curve[0] <= high)] for low, high in itertools.pairwise(edges)]
    return np.array([values.mean() if len(values) else np.nan for values in inside])


def compare(curve: Curve, published: np.ndarray, mark: int) -> str:
    """Ours and the published return in the bin that ends at `mark` environment steps, as a cell of a table."""
    found = np.flatnonzero(published[0] == mark)
    ours = binned(curve, published[0])[found]
    if len(found) == 0 or np.isnan(ours[0]):
        return "–"
    _, mean, low, high = published[:, found[0]]
    return f"{ours[0]:.0f} / {mean:.0f} ({low:.0f} to {high:.0f})"


def draw(path: Path, curves: dict[str, Curve], published: dict[str, np.ndarray]) -> None:
    """Draw ours, one seed, over the published mean and range over seeds, one panel for each task."""
    with report.plain_figure(figsize=(6.5, 4.2)) as figure:
        _draw(figure, curves, published)
        figure.savefig(path, dpi=200)


def _draw(figure: Any, curves: dict[str, Curve], published: dict[str, np.ndarray]) -> None:
    grid = figure.subplots(2, 3, sharey=True)
    for axes, (task, curve) in zip(grid.flat, curves.items(), strict=True):
        ends, mean, low, high = published[task]
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


if __name__ == "__main__":
    try:
        tyro.cli(Train | Ship | Report | Clones, description=__doc__)()
    except UserError as error:
        sys.exit(f"error: {error}")
