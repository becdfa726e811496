"""Run: all that a script asks of its run folder. A run is ended in any way and goes on to the same end, bit for bit.

The place of a run is (cycle, step), and it is in every checkpoint: `restore` brings everything back to it, `steps`
counts on from it, and `deploy` reads back the batches before it.
"""

import contextlib
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import (
    UserError,
    checkpoint,
    elsewhere,
    evaluate,
    files,
    metrics,
    progress,
    report,
    rollouts,
    snapshots,
    teachers,
)  # fmt: skip
from common.envs import EnvSpec
from common.folder import Folder
from common.interrupt import Interrupt
from common.rollouts import Actor, Episode
from common.teachers import Teacher
from common.workers import Workers


class Run:
    """One run in one folder. As a context manager it holds the folder's lock, the workers and the signal handlers.

    Attributes:
        cycle, step: the place: 0 and a step of pre-training, or a cycle and the number of learner steps taken so far.
        actor_step: environment steps of the batches that `deploy` has returned.
        sps: environment steps per second of the last deployment, None if it was read back.
        timed: books the time inside a block under a name, and not under the block around it.
    """

    def __init__(
        self, args: Any, row: str, env: EnvSpec, teacher: Teacher | None, keys: tuple[str, ...],
        after_pretraining: tuple[str, ...], script: str,
    ) -> None:  # fmt: skip
        """Start a run, or continue the one that `args.run_dir` holds.

        Args:
            args: the script's flags, with every derived number filled in.
            row: the name of what the flags run.
            keys: the metric keys of this script, in the order of the columns.
            after_pretraining: the flags that may differ in the run that `--pretrained` names.
            script: the path of the script.

        Raises:
            UserError: the folder can't be written, is in use, or holds another run; or `--pretrained` doesn't fit.
        """
        self._stopwatch = progress.Stopwatch()
        self.timed = self._stopwatch.timed
        if args.track:
            metrics.check_login()
        if args.capture_video:
            evaluate.check_can_film(env.env_id)
        self.args, self.row, self.env, self.teacher = args, row, env, teacher
        self.cycle, self.step, self.actor_step, self.sps = 0, 0, 0, None
        self._parts: dict[str, Any] = {}
        self._bad_step: torch.Tensor | None = None
        self._bar: tqdm | None = None
        sha256 = None if teacher is None else teacher.sha256
        self._folder, self._saved, borrowed = Folder(args, row, sha256, Path(script)), None, []
        self.dir = self._folder.path
        if not self._folder.is_new:
            self._saved = checkpoint.load(self.dir, self._folder.run_id)
        if self._saved is None and args.pretrained is not None:
            self._saved, borrowed = checkpoint.load_pretrained(Path(args.pretrained), args, sha256, after_pretraining)
            self._folder.copy_cycle_0(Path(args.pretrained))
        self._folder.begin()
        saved = self._saved or {"metrics": None, "wall_s": 0.0, "wandb_id": None}
        self._stopwatch.before, self._wandb_id = saved["wall_s"], saved["wandb_id"]
        self._metrics = metrics.Metrics(self.dir / "metrics.csv", keys, saved["metrics"])
        if args.track:
            self._wandb_id = self._metrics.start_wandb(self._wandb_id, args, row)
        self._metrics.borrow(borrowed)
        self._workers = Workers(env, args.num_workers)
        again = shlex.join(["python", script, "--resume", str(self.dir.resolve())])  # true in any folder
        self._interrupt = Interrupt(f"go on with: {again}")

    def __enter__(self) -> "Run":
        self._interrupt.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._interrupt.stop()
        self._workers.close()
        with contextlib.suppress(OSError):  # of a full disk, which was reported when a line was written
            self._metrics.close(failed=kind is not None)
        self._folder.close()

    # ---- the place: restore, count, save

    def restore(self, **parts: Any) -> None:
        """Bring modules, optimisers and `torch.Generator`s to where a continued run was ended, and the place too.

        They are what every later checkpoint holds. In a new run nothing is changed: the place is cycle 0, step 0.
        """
        self._parts = parts
        if self._saved is not None:
            checkpoint.put_back(parts, self._saved["state"])
            self.cycle, self.step = self._saved["cycle"], self._saved["step"]
            self._stopwatch.seconds, self._metrics.last_return = self._saved["seconds"], self._saved["last_return"]
            borrowed = self._saved["run"] != self._folder.run_id
            self._saved = None  # it is as large as the networks and their optimisers
            tqdm.write(f"continuing {self.dir} in cycle {self.cycle} at step {self.step}")
            if borrowed:  # from here on this run goes on without the one that it began from
                self._save_checkpoint()

    def steps(self, first: int, last: int, desc: str) -> Iterator[int]:
        """Count the steps of this cycle from `first`, or from the place further on, to `last` - 1.

        Shows a progress bar, books the time under `desc`, saves checkpoints, and stops on a signal.
        """
        start = max(first, self.step)
        with self.timed(desc), progress.bar(last - first, f"cycle {self.cycle}, {desc}", initial=start - first) as bar:
            self._bar, self._counted_from = bar, (start, time.perf_counter())
            for step in range(start, last):
                self.step = step
                if step > start and (self._interrupt or step % self.args.checkpoint_every == 0):
                    self._save_checkpoint()
                self._interrupt.check()  # before the first step there is nothing new to save
                with self._interrupt.later():
                    yield step
                bar.update()
        self.step, self._bar = max(last, start), None

    @property
    def updates_per_second(self) -> float:
        """Since `steps` began to count, with the step that is being taken."""
        start, began = self._counted_from
        return (self.step + 1 - start) / (time.perf_counter() - began)

    def next_cycle(self, policy: torch.nn.Module, critic: torch.nn.Module) -> None:
        """End this cycle: score and keep its policy, and save a checkpoint at the start of the next.

        With `--keep-every` above 1 only some cycles, and always the first and the last, get files.
        """
        self._check_finite()
        kept = self._folder.kept(self.cycle)
        if kept:
            self._keep_policy(policy, critic)
        self.cycle, self.step = self.cycle + 1, self._learner_step
        if kept or self._interrupt:
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        """Save everything as it is before `self.step` of this cycle, and end the run if a signal has arrived."""
        with self.timed("waiting for evaluations"):
            self._metrics.flush(wait=True)
        self._check_finite()
        with self._interrupt.later(), self.timed("writing"):
            self._folder.write_batches()
            content = {"run": self._folder.run_id, "cycle": self.cycle, "step": self.step}
            content |= {"wall_s": self._stopwatch.total, "seconds": self._stopwatch.seconds}
            content |= {"state": checkpoint.collect(self._parts)}
            content |= {"metrics": self._metrics.place(), "last_return": self._metrics.last_return}
            content |= {"wandb_id": self._wandb_id}
            if (self.cycle, self.step) == (1, 0):  # for runs with --pretrained; first, for the next line ends cycle 0
                files.save_torch(self._folder.cycle_dir(0) / checkpoint.NEWEST, content)
            checkpoint.save(self.dir, content)
        self._interrupt.check()

    def watch(self, value: torch.Tensor, step: int) -> None:
        """Remember, on the device and without waiting for it, the first step whose 0-dim `value` isn't finite."""
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, device=value.device)
        first = torch.where(torch.isfinite(value), self._bad_step, step)
        self._bad_step = torch.where(self._bad_step < 0, first, self._bad_step)

    def _check_finite(self) -> None:
        if self._bad_step is not None and (step := int(self._bad_step)) >= 0:
            path = self.dir / checkpoint.NEWEST
            good = path if path.exists() else "its start"
            raise UserError(
                f"a loss or gradient of cycle {self.cycle} stopped being finite at step {step}, by what the script or "
                f"teacher {self.args.teacher} computes; the last good state is {good}."
            )

    # ---- episodes

    def demonstrations(self) -> tuple[list[Episode], dict[str, np.ndarray]]:
        """The teacher's episodes, made once and cached in `--demo-dir`, and what is known of them.

        Of recorded episodes that is `teacher_action`, what was meant, (their steps, action_size); others can be asked.
        """
        with self.timed("demonstrations"):
            where = Path(self.args.demo_dir)
            num_episodes, sigma = self.args.demo_episodes, self.args.demo_sigma
            episodes = teachers.demonstrations(self.teacher, self.env, num_episodes, sigma, where, self._workers)
        if isinstance(self.teacher, teachers.Recorded):
            return episodes, {"teacher_action": self.teacher.intended[: rollouts.num_steps(episodes)]}
        return episodes, {}

    def score_teacher(self) -> float:
        """The teacher's mean noise-free return on the report's start seeds, or of its recorded episodes.

        It is kept in `teacher.json`.
        """
        path = self.dir / "teacher.json"
        if isinstance(self.teacher, teachers.Recorded):
            returns = [episode.episodic_return for episode in self.demonstrations()[0]]
            files.save_json(path, {"cycle": 0, "learner_step": 0, "returns": returns})
        return float(np.mean(self._score(path, self.teacher.action, 0, 0)))

    def deploy(
        self, cycle: int, policy: torch.nn.Module, sigma: float, actor_steps: int
    ) -> tuple[list[Episode], dict[str, np.ndarray]]:
        """Run whole episodes with a fixed policy until there are `actor_steps` in all, or read back those of a cycle.

        With `--deploy elsewhere` somebody else runs them; with `--annotate elsewhere` they come with annotations.

        Raises:
            Waiting: what somebody else has to bring isn't there yet.
            UserError: a batch of a past cycle is lost or damaged, or the policy or the environment returned nonsense.
        """
        with self.timed("deploying"):
            episodes, self.sps = self._folder.read_batch(cycle, must_exist=cycle < self.cycle), None
            missing, folder = actor_steps - self.actor_step, self._folder.cycle_dir(cycle)
            if episodes is None and self.args.deploy == "elsewhere":
                episodes = elsewhere.deployed(folder, policy, sigma, self.env, missing)
                self._folder.add_batch(cycle, episodes)
            elif episodes is None:
                began, stream = time.perf_counter(), (self.args.seed, rollouts.DEPLOY, cycle)
                episodes = self._workers.steps(policy, sigma, stream, missing, f"cycle {cycle}, deploying")
                self.sps = rollouts.num_steps(episodes) / (time.perf_counter() - began)
                self._folder.add_batch(cycle, episodes)
            annotations = {}
            if self.args.annotate == "elsewhere":
                stream, fraction = (self.args.seed, rollouts.ANNOTATE, cycle), self.args.annotate_fraction
                run_id = self._folder.run_id
                annotations = elsewhere.annotated(folder, run_id, episodes, self.env, fraction, stream)
        self.actor_step += rollouts.num_steps(episodes)
        return episodes, annotations

    def _score(self, path: Path, actor: Actor, cycle: int, learner_step: int) -> list[float]:
        """Noise-free returns, kept in `path`, of episodes with the same start seeds for every cycle and method."""
        if not path.exists():
            with self.timed("report episodes"):
                stream, indices = (self.args.seed, rollouts.REPORT), range(self.args.report_episodes)
                episodes = self._workers.episodes(actor, 0.0, stream, indices, f"scoring {path.parent.name}")
            returns = [episode.episodic_return for episode in episodes]
            files.save_json(path, {"cycle": cycle, "learner_step": learner_step, "returns": returns})
        return files.load_json(path, "evaluation", files.REMAKE)["returns"]

    def _keep_policy(self, policy: torch.nn.Module, critic: torch.nn.Module) -> None:
        """Save this cycle's policy as a snapshot, score it, and film it if asked to."""
        folder = self._folder.cycle_dir(self.cycle)
        metadata = {"cycle": self.cycle, "row": self.row, "seed": self.args.seed} | self._folder.origin()
        metadata |= {"actor_step": self.actor_step, "learner_step": self._learner_step}
        if self.env.simulated:
            returns = self._score(folder / "evaluation.json", policy, self.cycle, self._learner_step)
            metadata |= {"score": float(np.mean(returns)), "score_episodes": len(returns)}
            name = "clone" if self.cycle == 0 and self.teacher is not None else f"cycle {self.cycle}"
            tqdm.write(f"{name}: mean return {np.mean(returns):.1f} of {len(returns)} episodes")
        with self.timed("writing"):
            snapshots.save(folder / "snapshot.pt", self.env, policy, critic, metadata)
        if self.args.capture_video:
            evaluate.film_apart(folder / "snapshot.pt", folder / "video.gif")

    def _check_policy(self, folder: Path) -> None:
        """Say if a kept policy is lost or damaged, and score it again if only its evaluation is lost."""
        try:
            metadata = files.load_torch(folder / "snapshot.pt", "policy snapshot")["metadata"]
            if self.env.simulated and not (folder / "evaluation.json").exists():
                actor = snapshots.load(folder / "snapshot.pt", torch.device("cpu")).action
                self._score(folder / "evaluation.json", actor, metadata["cycle"], metadata["learner_step"])
        except UserError as error:
            if self.env.simulated and not (folder / "evaluation.json").exists():
                raise
            tqdm.write(str(error))

    # ---- what it says

    @property
    def _learner_step(self) -> int:
        return self.step if self.cycle > 0 else 0

    def log(self, step: int, values: dict[str, Any], evaluate: Actor | None = None) -> None:
        """Write a line of metrics: 0-dim tensors or numbers; None is left out.

        Args:
            step: learner steps so far, or in cycle 0 steps of pre-training.
            evaluate: a policy whose noise-free return belongs into the line. It is run in the workers, as it is now,
                and the line waits for it.
        """
        self._check_finite()
        clock = {"cycle": self.cycle, "actor_step": self.actor_step, "learner_step": step if self.cycle > 0 else 0}
        clock |= {"pretrain_step": step if self.cycle == 0 else None, "wall_s": round(self._stopwatch.total, 3)}
        pending = None
        with self.timed("waiting for evaluations"):
            if evaluate is not None and self.args.eval_episodes > 0 and self.env.simulated:
                self._metrics.wait_for_evaluations(at_most=2 * self._workers.num_workers)
                stream = (self.args.seed, rollouts.EVALUATE, -(-step // self.args.eval_every))
                pending = self._workers.submit(evaluate, 0.0, stream, range(self.args.eval_episodes))
            self._metrics.add(clock, values, pending)
        if self._bar is not None and self._metrics.last_return is not None:
            self._bar.set_postfix_str(f"return={self._metrics.last_return:.0f}")

    def report(self, **queries: int) -> Path:
        """Write the report and the picture, say where everything is, and return the folder.

        Args:
            queries: how much the teacher was asked, by what.
        """
        with self.timed("report"):
            self._metrics.flush(wait=True)
            if self.teacher is not None:
                self.score_teacher()  # if that is lost
            for cycle in filter(self._folder.kept, range(self.args.num_cycles + 1)):
                self._check_policy(self._folder.cycle_dir(cycle))
            content = report.make_report(self.dir, queries, self._stopwatch.seconds)
            report.draw_learning_curve(self.dir)
        self._metrics.finish_wandb(content, self.dir / "learning_curve.png")
        tqdm.write(f"seconds  {self._stopwatch}\nreport   {self.dir / 'report.json'}")
        tqdm.write(f"picture  {self.dir / 'learning_curve.png'}\npolicies {self.dir}/cycle_*/snapshot.pt")
        return self.dir
