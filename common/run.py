"""One run and its folder. You can kill a run at any moment and resume it: it ends the same, bit for bit.

A checkpoint belongs to a (cycle, step). `restore` brings everything back to it, `steps` counts on from it, and the run
repeats what it had done after it, from the same seeds.
"""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import math
import platform
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import UserError, elsewhere, envs, evaluate, files, launch, metrics, report, rollouts, snapshots, teachers
from common.envs import EnvSpec
from common.replay import Replay
from common.rollouts import Actor, Episode
from common.teachers import Teacher
from common.workers import Workers, progress_bar

PACKAGES = ("torch", "numpy", "dm-control", "mujoco", "gymnasium")  # the last one is optional
CHECKPOINT = "checkpoint.pt"


def versions(script: Path) -> dict[str, str]:
    """What a reader needs to repeat a run: packages, machine, and the SHA-256 of the script and of `common/`."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    names = {f"common/{path.name}": path for path in sorted(Path(__file__).parent.glob("*.py"))} | {script.name: script}
    return found | {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}


class Stopwatch:
    """`seconds` per phase. Time counts once, for the innermost block; outside all blocks the phase is `starting`."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self._phase, self._since = "starting", time.monotonic()

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's time to `phase`, and not to the phase of an enclosing block."""
        outer = self._switch(phase)
        try:
            yield
        finally:
            self._switch(outer)

    def total(self) -> float:
        """Seconds of all phases until now."""
        self._switch(self._phase)
        return self.seconds.total()

    def _switch(self, phase: str) -> str:
        now, before = time.monotonic(), self._phase
        self.seconds[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    def __str__(self) -> str:
        return ", ".join(f"{phase} {value:.0f}" for phase, value in self.seconds.most_common() if value >= 1)


class Run:
    """One run in one folder. As a context manager it holds the folder's lock, the workers and the signal handlers.

    Attributes:
        dir: the folder.
        cycle, step: the current cycle and learner step (in cycle 0: pre-training step).
        actor_step: environment steps of the batches so far.
        timed: adds a block's time to a phase; nested blocks count once.
    """

    def __init__(self, args: Any, name: str, env: EnvSpec, teacher: Teacher | None, script: str) -> None:
        """Start a run, or continue the one that `args.run_dir` holds.

        Args:
            args: the script's flags, with every derived number filled in.
            name: the method with its options.
            script: the path of the script.

        Raises:
            UserError: the folder can't be written, is in use, or holds another run; or `--pretrained` doesn't fit.
        """
        self._stopwatch = Stopwatch()
        self.timed = self._stopwatch.timed
        if args.track:
            metrics.check_login()
        if args.capture_video:
            evaluate.check_can_film(env.env_id)
        self.args, self.name, self.env, self.teacher, self._script = args, name, env, teacher, Path(script)
        self.cycle, self.step, self.actor_step, self._sps = 0, 0, 0, None
        self._demonstration_queries = 0
        self._parts: dict[str, Any] = {}
        self._bar: tqdm | None = None
        self.dir = self._make_folder()
        self._lock = files.lock(self.dir / ".lock")
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise

    def _make_folder(self) -> Path:
        """Make the folder if there is none, and return it."""
        if self.args.run_dir is not None:
            path = Path(self.args.run_dir)
            with files.writing(path):
                path.mkdir(parents=True, exist_ok=True)
            return path
        task, name = Path(self.args.env_id).name.replace(":", "-"), self.name.replace(":", "-")
        for stamp in itertools.count(int(time.time())):  # another run may have been started in the same second
            path = Path("runs") / f"{task}__{name}__{self.args.seed}__{stamp}"
            with files.writing(path), contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path

    def _begin(self) -> None:
        """Read or write the folder's description of the run, and start the metrics file, wandb and the workers."""
        args, path, checkpoint = self.args, self.dir / "args.json", self.dir / CHECKPOINT
        self._content = {"script": self._script.name, "name": self.name}
        self._content["teacher_sha256"] = None if self.teacher is None else self.teacher.sha256
        self._content["env"] = envs.digest(args.env_id) if envs.is_own(args.env_id) else args.env_id
        device = launch.learner_device(args)
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        is_new = not path.exists()
        if is_new:  # an interrupted start may leave these two files
            known = {self._script.name, "versions.json"}
            if any(file.name not in known and not file.name.startswith(".") for file in self.dir.iterdir()):
                raise UserError(f"--run-dir {self.dir} is neither empty nor a run.")
        else:
            launch.saved_args(type(args), self.dir)  # refuses another script's run
            self._refuse_another(self.dir, launch.FREE_FLAGS, "start in a new folder")
            self._note_changes()
            for folder in (self.dir, *self.dir.glob("cycle_*")):
                files.remove_leftovers(folder)
            (self.dir / elsewhere.WAITING).unlink(missing_ok=True)
        take_over = self._check_pretrained() if args.pretrained and not checkpoint.exists() else None
        if is_new:
            files.write_atomically(self.dir / self._script.name, self._script.read_bytes())
            files.save_json(self.dir / "versions.json", versions(self._script) | {"device": device_name, "changes": []})
            files.save_json(path, self._content | {"args": dataclasses.asdict(args)})  # last: a folder with it is a run
            tqdm.write(f"new run {self.dir}, learning on {device_name}")
        for file, data in (take_over or {}).items():
            files.write_atomically(self.dir / file, data)
        cure = "restore it, or delete it: the run then begins again, to the same end"
        self._saved = files.load_torch(checkpoint, "checkpoint", cure) if checkpoint.exists() else None
        self._metrics = metrics.Metrics(self.dir / "metrics.jsonl", self._saved["lines"] if self._saved else 0)
        if args.track:
            self._metrics.track()
        self._workers = Workers(self.env, args.num_workers)
        again = shlex.join(["python", str(self._script), "--resume", str(self.dir.resolve())])
        self._interrupt = launch.Interrupt(f"go on with: {again}")

    def _refuse_another(self, folder: Path, may_differ: set[str], cure: str) -> None:
        """Raise UserError with the `cure` if a flag, task or teacher of the run in `folder` differs from this one's."""
        other = files.load_json(folder / "args.json", "arguments")
        # Your own files are compared by content, not by path.
        mine, theirs = (
            {"env_id": content["env"], "teacher": f"of SHA-256 {content['teacher_sha256']}"}
            for content in (self._content, other)
        )
        if found := launch.difference(dataclasses.replace(self.args, **mine), other["args"] | theirs, may_differ):
            flag, now, before = found
            raise UserError(f"{folder} was started with {flag} {before}, not {now}; {cure}.")

    def _note_changes(self) -> None:
        """Print and record which code and packages have changed since the run was started."""
        path, now = self.dir / "versions.json", versions(self._script)
        before = files.load_json(path, "versions")
        if changed := {name: [before.get(name), value] for name, value in now.items() if before.get(name) != value}:
            tqdm.write(f"warning: {', '.join(changed)} changed since this run was started; its report will say so.")
            files.save_json(path, before | now | {"changes": [*before["changes"], changed]})

    def _check_pretrained(self) -> dict[str, bytes]:
        """The content of each file that cycle 0 left in the run that `--pretrained` names; the checkpoint comes last.

        All flags that both runs have must agree, except the inherited ones, cycles and budget.

        Raises:
            UserError: its pre-training isn't finished, or these flags and this teacher would give another one.
        """
        source = Path(self.args.pretrained)
        checkpoint = source / "cycle_0000" / CHECKPOINT
        if not checkpoint.exists():
            raise UserError(f"--pretrained {source}: it holds no run that has finished its pre-training.")
        self._refuse_another(source, launch.INHERITED | launch.CYCLES_AND_BUDGET, "give --pretrained another run")
        lines = files.load_torch(checkpoint, "checkpoint")["lines"]
        found = [path for path in [*(source / "cycle_0000").glob("[!.]*"), source / "teacher.json"] if path.is_file()]
        content = {str(path.relative_to(source)): path.read_bytes() for path in found}
        content["metrics.jsonl"] = metrics.first_lines(source / "metrics.jsonl", lines)
        return content | {CHECKPOINT: checkpoint.read_bytes()}

    def __enter__(self) -> "Run":
        self._interrupt.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._interrupt.stop()
        self._workers.close()
        failed = kind is not None and not issubclass(kind, elsewhere.FilesNeeded)
        with contextlib.suppress(OSError):  # a full disk, which the run has already reported
            self._metrics.close(int(failed), preempted=kind is KeyboardInterrupt)
        self._lock.release()

    # ---- restore, count, save

    def restore(self, agent: Any, replay: Replay) -> None:
        """Restore the agent, torch's CPU generator, `cycle` and `step` from a resumed run's checkpoint.

        The replay gets the batches of past cycles back. A new run stays as it is: cycle 0, step 0.

        Args:
            agent: its attributes are modules, optimisers and `torch.Generator`s; a checkpoint holds all of them.
        """
        self._parts = vars(agent)
        if self._saved is None:
            return
        for name, part in self._parts.items():
            mine = self._saved["state"]["parts"][name]
            if isinstance(part, torch.Generator) and len(mine) != len(part.get_state()):
                raise UserError(
                    f"{self.dir} was learned on another kind of device than {part.device.type}, whose random numbers "
                    "differ: continue it on a machine that has one."
                )
            part.set_state(mine) if isinstance(part, torch.Generator) else part.load_state_dict(mine)
        torch.set_rng_state(self._saved["state"]["torch"])
        self.cycle, self.step = self._saved["cycle"], self._saved["step"]
        self._stopwatch.seconds.update(self._saved["seconds"])  # adds to this process's times
        self._saved = None  # frees as much memory as the networks and their optimisers take
        for cycle in range(1, self.cycle):
            replay.append(*self._read_batch(cycle, None, files.RESTORE))
        tqdm.write(f"continuing {self.dir} in cycle {self.cycle} at step {self.step}")

    def steps(self, first: int, last: int, desc: str) -> Iterator[int]:
        """Count the steps of this cycle from `first`, or from `step` in a resumed run, to `last` - 1.

        Shows a progress bar, adds the time to the phase `desc`, saves checkpoints, and stops on a signal.
        """
        start = max(first, self.step)
        with self.timed(desc), progress_bar(last - first, f"cycle {self.cycle}, {desc}", initial=start - first) as bar:
            self._bar, self._counted_from = bar, (start, time.perf_counter())
            for step in range(start, last):
                self.step = step
                if step > start and (self._interrupt or step % self.args.checkpoint_every == 0):
                    self._save_checkpoint()
                yield step
                bar.update()
        self.step, self._bar = max(last, start), None
        if self._interrupt and start < last:  # in the last step
            self._save_checkpoint()

    def end_cycle(self, policy: torch.nn.Module, critic: torch.nn.Module) -> None:
        """End this cycle: score and keep its policy, and save a checkpoint at the start of the next.

        With `--keep-every` above 1 only some cycles do so, always including the first and the last.
        """
        self._check_finite()
        kept = self._kept(self.cycle)
        if kept:
            self._keep_policy(policy, critic)
        self.cycle, self.step = self.cycle + 1, self.step if self.cycle > 0 else 0  # 0: pre-training isn't counted
        if kept:
            self._save_checkpoint()
            self._film()

    def _kept(self, cycle: int) -> bool:
        return cycle % self.args.keep_every == 0 or cycle == self.args.num_cycles

    def _save_checkpoint(self) -> None:
        """Save everything as it is before `self.step` of this cycle, and end the run if a signal has arrived."""
        with self.timed("waiting for evaluations"):
            self._metrics.save()
        self._check_finite()
        with self.timed("writing"):
            parts = {
                n: p.get_state() if isinstance(p, torch.Generator) else p.state_dict() for n, p in self._parts.items()
            }
            state = {"parts": parts, "torch": torch.get_rng_state()}
            content = {"cycle": self.cycle, "step": self.step, "state": state, "seconds": dict(self._stopwatch.seconds)}
            content |= {"lines": self._metrics.lines}
            if (self.cycle, self.step) == (1, 0):  # for runs with --pretrained
                files.save_torch(self.cycle_dir(0) / CHECKPOINT, content)
            files.save_torch(self.dir / CHECKPOINT, content)
        self._interrupt.check()

    def _check_finite(self) -> None:
        """Raise UserError if a network has parameters that aren't finite. NaN stays NaN, so a late check finds it."""
        for name, part in self._parts.items():
            if isinstance(part, torch.nn.Module) and not all(p.isfinite().all() for p in part.parameters()):
                raise UserError(
                    f"{name} has parameters that aren't finite in cycle {self.cycle} at step {self.step}: check the "
                    f"loss, the rewards and teacher {self.args.teacher}. The last good state is "
                    f"{self.dir / CHECKPOINT}, if it exists."
                )

    # ---- episodes

    def cycle_dir(self, cycle: int) -> Path:
        """The folder of a cycle's batch, policy and evaluation."""
        return self.dir / f"cycle_{cycle:04d}"

    def demonstrations(self) -> tuple[list[Episode], dict[str, np.ndarray]]:
        """The teacher's episodes, seeded by its hash alone, and annotations that come with them.

        A recorded teacher gives its first `--demo-episodes` episodes, or all if it has fewer, with `teacher_action`
        (steps, action_size), its actions before noise. A snapshot's episodes are cached in `--demo-dir`, those of your
        own class, whose weights we can't see, in `cycle_0000/batch.npz`.
        """
        args, teacher = self.args, self.teacher
        if isinstance(teacher, teachers.Recorded):
            episodes = teacher.episodes[: args.demo_episodes]
            return episodes, {"teacher_action": teacher.intended[: rollouts.num_steps(episodes)]}
        if not self.env.simulated:
            raise UserError(f"{self.env.env_id} can't be simulated: record its demonstrations, --teacher FILE.npz.")
        path = self.cycle_dir(0) / "batch.npz"
        if not isinstance(teacher, teachers.UserTeacher):
            setting = self.env, args.demo_episodes, args.demo_sigma, Path(args.demo_dir)
            path = teachers.demonstrations_file(teacher, *setting)
        asked = teacher.action, args.demo_sigma, (int(teacher.sha256, 16),), range(args.demo_episodes)
        with self.timed("demonstrations"), self._interrupt.at_once():
            if not path.exists():
                files.save_arrays(path, **rollouts.pack(self._workers.episodes(*asked, "demonstrations")))
            episodes = rollouts.unpack(files.load_arrays(path, "demonstrations", files.REMAKE))
        self._demonstration_queries = 2 * rollouts.num_steps(episodes)
        return episodes, {}

    def score_teacher(self) -> dict[str, float]:
        """The teacher's metrics: its mean noise-free return on the report's start seeds, or that of its recorded
        episodes, kept in `teacher.json`; and the queries of its demonstrations: each step needs an action and an a*.
        """
        path = self.dir / "teacher.json"
        if isinstance(self.teacher, teachers.Recorded):
            returns = [episode.episodic_return for episode in self.demonstrations()[0]]
            files.save_json(path, {"returns": returns})
        mean = float(np.mean(self._score(path, self.teacher.action)))
        return {"teacher/episodic_return": mean, "teacher/demonstration_queries": self._demonstration_queries}

    def deploy(
        self, policy: torch.nn.Module, sigma: float, actor_steps: int
    ) -> tuple[list[Episode], dict[str, np.ndarray]]:
        """Run whole episodes with a fixed policy until there are `actor_steps` in all, or read back this cycle's batch.

        With `--deploy elsewhere` the episodes come from a file, with `--annotate elsewhere` the annotations.

        Raises:
            FilesNeeded: a file isn't there yet.
            UserError: the policy or the environment returned invalid values.
        """
        folder, missing = self.cycle_dir(self.cycle), actor_steps - self.actor_step
        try:
            with self.timed("deploying"), self._interrupt.at_once():
                if not (folder / "batch.npz").exists():
                    if self.args.deploy == "elsewhere":
                        episodes = elsewhere.deployed(folder, policy, sigma, self.env, missing)
                    else:
                        began, stream = time.perf_counter(), (self.args.seed, rollouts.DEPLOY, self.cycle)
                        episodes = self._workers.steps(policy, sigma, stream, missing, f"cycle {self.cycle}, deploying")
                        self._sps = rollouts.num_steps(episodes) / (time.perf_counter() - began)
                    files.save_arrays(folder / "batch.npz", **rollouts.pack(episodes))
                return self._read_batch(self.cycle, policy, files.REMAKE)
        except (KeyboardInterrupt, elsewhere.FilesNeeded):
            self._save_checkpoint()  # with --keep-every the last one may be some cycles old
            raise

    def _read_batch(
        self, cycle: int, policy: torch.nn.Module | None, cure: str
    ) -> tuple[list[Episode], dict[str, np.ndarray]]:
        """A cycle's episodes, whose steps it counts, and the annotations that came for them from elsewhere."""
        folder, stream = self.cycle_dir(cycle), (self.args.seed, rollouts.ANNOTATE, cycle)
        episodes = rollouts.unpack(files.load_arrays(folder / "batch.npz", "batch", cure))
        self.actor_step += rollouts.num_steps(episodes)
        if self.args.annotate == "here":
            return episodes, {}
        fraction = self.args.annotate_fraction
        return episodes, elsewhere.annotated(folder, policy, episodes, self.env, fraction, stream)

    def _score(self, path: Path, actor: Actor) -> list[float]:
        """Noise-free returns, cached in `path`; all cycles and methods get the same start seeds."""
        if not path.exists():
            with self.timed("report episodes"):
                stream, indices = (self.args.seed, rollouts.REPORT), range(self.args.report_episodes)
                episodes = self._workers.episodes(actor, 0.0, stream, indices, f"scoring {path.parent.name}")
            returns = [episode.episodic_return for episode in episodes]
            files.save_json(path, {"returns": returns})
        return files.load_json(path, "evaluation", files.REMAKE)["returns"]

    def _keep_policy(self, policy: torch.nn.Module, critic: torch.nn.Module) -> None:
        """Save this cycle's policy as a snapshot, and score it."""
        folder = self.cycle_dir(self.cycle)
        metadata = {"cycle": self.cycle, "name": self.name, "seed": self.args.seed}
        metadata |= {"actor_step": self.actor_step, "learner_step": self.step if self.cycle > 0 else 0}
        metadata |= {"command": launch.command(self.args, self._script.name), "versions": versions(self._script)}
        values: dict[str, float] = {}
        if self.env.simulated:
            returns = self._score(folder / "evaluation.json", policy)
            metadata |= {"score": float(np.mean(returns)), "score_episodes": len(returns)}
            level = report.summarise(np.array(returns))
            interval = {"report/ci_low": level["ci95"][0], "report/ci_high": level["ci95"][1]}
            values = {"report/episodic_return": level["mean"]} | interval
            name = "clone" if self.cycle == 0 and self.teacher is not None else f"cycle {self.cycle}"
            tqdm.write(f"{name}: mean return {np.mean(returns):.1f} of {len(returns)} episodes")
        self.log(self.step, values)
        with self.timed("writing"):
            snapshots.save(folder / "snapshot.pt", self.env, policy, critic, metadata)

    def _film(self) -> None:
        """Film the kept policies that have no film yet, if asked to; a later call makes up for an interrupted one."""
        for path in report.by_cycle(self.dir, "snapshot.pt").values() if self.args.capture_video else ():
            if not path.with_name("video.gif").exists():
                with self.timed("filming"), self._interrupt.at_once():
                    evaluate.film([path], path.with_name("video.gif"))

    # ---- metrics and report

    def log(self, step: int, values: dict[str, Any], evaluate: Actor | None = None) -> None:
        """Write a line of metrics: 0-dim tensors or numbers under any keys. None is left out.

        The run adds the clocks, `charts/SPS` (environment steps per second, to the first line after a deployment) and
        `charts/UPS` (updates per second, while learning).

        Args:
            step: learner steps so far, or in cycle 0 steps of pre-training.
            evaluate: a policy to run without noise, for `eval/episodic_return` in this line. The workers run the policy
                as it is now, and the line waits for them.
        """
        clock = {"cycle": self.cycle, "actor_step": self.actor_step, "learner_step": step}
        clock |= {"learner_step": 0, "pretrain_step": step} if self.cycle == 0 else {}
        clock |= {"wall_s": round(self._stopwatch.total(), 3)}
        values, self._sps = values | {"charts/SPS": self._sps}, None
        if self._bar is not None and self.cycle > 0:
            start, began = self._counted_from
            values |= {"charts/UPS": (self.step + 1 - start) / (time.perf_counter() - began)}
        pending = None
        with self.timed("waiting for evaluations"):
            if evaluate is not None and self.args.eval_episodes > 0 and self.env.simulated:
                self._metrics.flush(at_most=2 * self._workers.num_workers)
                stream = (self.args.seed, rollouts.EVALUATE, math.ceil(step / self.args.eval_every))
                pending = self._workers.submit(evaluate, 0.0, stream, range(self.args.eval_episodes))
            self._metrics.add(clock, values, pending)
        if self._bar is not None and self._metrics.last_return is not None:
            self._bar.set_postfix_str(f"return={self._metrics.last_return:.0f}")

    def report(self, **queries: int) -> Path:
        """Write the report and the picture, print where everything is, and return the folder.

        Args:
            queries: teacher queries for annotations and learning; the metrics hold the others.
        """
        with self.timed("report"), self._interrupt.at_once():
            self._metrics.flush(at_most=0)
            if self.teacher is not None:
                self.score_teacher()  # again, if the file is lost
            for cycle in filter(self._kept, range(self.args.num_cycles + 1)):
                path = self.cycle_dir(cycle) / "evaluation.json"
                if self.env.simulated and not path.exists():  # the file is lost
                    self._score(path, snapshots.load(path.with_name("snapshot.pt"), torch.device("cpu")).action)
            if self.args.annotate == "elsewhere":
                states = [files.load_arrays(path, "states") for path in sorted(self.dir.glob("cycle_*/states.npz"))]
                asked_here = not isinstance(self.teacher, teachers.Recorded)  # about --demos-in-replay
                here = queries["states_annotated"] - self.actor_step if asked_here else 0
                queries["states_annotated"] = here + sum(len(found["index"]) for found in states)
            self._film()
            report.make_report(self.dir, queries, self._stopwatch.seconds)
            picture = report.draw_learning_curve(self.dir)
        self._metrics.finish_wandb()
        tqdm.write(f"seconds  {self._stopwatch}\nreport   {self.dir / 'report.json'}")
        tqdm.write(f"picture  {picture or 'none'}\npolicies {self.dir}/cycle_*/snapshot.pt")
        return self.dir
