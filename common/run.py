"""Run: all that a script asks of its run folder. A run is ended in any way and goes on to the same end, bit for bit.

The place of a run is (cycle, step), and it is in every checkpoint: `restore` brings everything back to it, `steps`
counts on from it, and `deploy` reads back the batches before it.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import Interrupted, UserError, checkpoint, evaluate, files, launch, report, rollouts, snapshots, teachers
from common.envs import EnvSpec
from common.folder import Folder, versions
from common.metrics import Metrics
from common.rollouts import Actor, Episode
from common.teachers import Teacher
from common.workers import Workers

BAR = {"disable": None, "leave": False, "dynamic_ncols": True}  # quiet where there is no terminal


class Run:
    """One run in one folder. As a context manager it holds the folder's lock, the workers and the signal handlers.

    Attributes:
        cycle, step: the place: 0 and a step of pre-training, or a cycle and the number of learner steps taken so far.
        actor_step: environment steps of the batches that `deploy` has returned.
        sps: environment steps per second of the last deployment, None if it was read back.
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
        if args.capture_video:
            evaluate.check_renderer()
        self.args, self.row, self.env, self.teacher = args, row, env, teacher
        self.cycle, self.step, self.actor_step, self.sps = 0, 0, 0, None
        self.seconds: dict[str, float] = {}
        self._timer = ("starting", time.monotonic())
        self._signal, self._busy, self._bar = 0, False, None
        self._bad_step: torch.Tensor | None = None
        self._parts: dict[str, Any] = {}
        sha256 = None if teacher is None else teacher.sha256
        self._folder, borrowed = Folder(args, row, sha256, Path(script)), []
        self.dir = self._folder.path
        if not self._folder.is_new:
            self._saved = checkpoint.load(self.dir, self._folder.run_id)
        elif args.pretrained is not None:
            self._saved, borrowed = checkpoint.load_pretrained(Path(args.pretrained), args, sha256, after_pretraining)
            self._folder.copy_cycle_0(Path(args.pretrained))
        else:
            self._saved = None
        self._folder.begin()
        saved = self._saved or {"metrics": None, "wall_s": 0.0, "wandb_id": None}
        self._wall_before, self._began, self._wandb_id = saved["wall_s"], time.monotonic(), saved["wandb_id"]
        self._metrics = Metrics(self.dir / "metrics.csv", keys, saved["metrics"])
        self._workers = Workers(args.num_workers, ray_address=args.ray_address)
        if args.track:
            about = {
                "project": args.wandb_project_name,
                "entity": args.wandb_entity,
                "group": row,
                "name": self.dir.name,
            }
            self._wandb_id = self._metrics.start_wandb(
                self._wandb_id, config=dataclasses.asdict(args) | {"row": row}, **about
            )
        self._metrics.borrow(borrowed)

    def __enter__(self) -> "Run":
        self._handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
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
            self.cycle, self.step, self.seconds = self._saved["cycle"], self._saved["step"], self._saved["seconds"]
            self._metrics.last_return, self._saved = self._saved["last_return"], None
            tqdm.write(f"continuing {self.dir} in cycle {self.cycle} at step {self.step}")

    def steps(self, first: int, last: int, desc: str) -> Iterator[int]:
        """Count the steps of this cycle from `first`, or from the place further on, to `last` - 1.

        Shows a progress bar, books the time under `desc`, saves checkpoints, and stops on a signal.
        """
        start = max(first, self.step)
        with self.timed(desc), tqdm(total=last - first, initial=start - first, **BAR) as self._bar:
            self._bar.set_description_str(f"cycle {self.cycle}, {desc}")
            self._started = (start, time.perf_counter())
            for step in range(start, last):
                self.step = step
                if step > start and (self._signal or step % self.args.checkpoint_every == 0):
                    self._save_checkpoint()
                if self._signal:  # before the first step there is nothing new to save
                    self._interrupt()
                self._busy = True
                yield step
                self._busy = False
                self._bar.update()
        self.step, self._bar = max(last, start), None

    @property
    def updates_per_second(self) -> float:
        """Since `steps` began to count; of the step that is being taken too."""
        start, began = self._started
        return (self.step + 1 - start) / (time.perf_counter() - began)

    def next_cycle(self, policy: torch.nn.Module, critic: torch.nn.Module) -> None:
        """End this cycle: score and keep its policy, and save a checkpoint at the start of the next.

        With `--keep-every` above 1 only some cycles, and always the first and the last, get files.
        """
        self._check_finite()
        kept, cycle = self._folder.kept(self.cycle), self.cycle
        if kept:
            self._keep_policy(policy, critic)
        self.cycle, self.step = cycle + 1, self.step if cycle > 0 else 0
        if kept:
            self._save_checkpoint()
        if cycle == 0:  # what --pretrained of another run takes
            self._folder.keep_pretrained()

    def _save_checkpoint(self) -> None:
        """Save everything as it is before `self.step` of this cycle."""
        with self.timed("waiting for evaluations"):
            self._metrics.flush(wait=True)
        self._check_finite()
        self._busy = True  # a signal waits until the file is there
        with self.timed("writing"):
            self._folder.write_batches()
            content = {"run": self._folder.run_id, "cycle": self.cycle, "step": self.step, "wall_s": self._wall_s()}
            content |= {"state": checkpoint.collect(self._parts), "seconds": self.seconds, "wandb_id": self._wandb_id}
            content |= {"metrics": self._metrics.place(), "last_return": self._metrics.last_return}
            checkpoint.save(self.dir, content)
        self._busy = False
        if self._signal:
            self._interrupt()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self._signal = self._signal, number
        if again or not self._busy:  # else the step or the file is finished first; what isn't saved is made again
            self._interrupt()

    def _interrupt(self) -> None:
        name = signal.Signals(self._signal).name
        message = f"interrupted by {name}; go on with: python {self._folder.script.name} --resume {self.dir}"
        raise Interrupted(message, int(self._signal))

    def watch(self, value: torch.Tensor, step: int) -> None:
        """Remember, on the device and without waiting for it, the first step whose 0-dim `value` isn't finite."""
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, device=value.device)
        first = torch.where(torch.isfinite(value), self._bad_step, step)
        self._bad_step = torch.where(self._bad_step < 0, first, self._bad_step)

    def _check_finite(self) -> None:
        if self._bad_step is not None and (step := int(self._bad_step)) >= 0:
            raise UserError(
                f"a loss or gradient of cycle {self.cycle} stopped being finite at step {step}, by what the script or "
                f"teacher {self.args.teacher} computes; the last good state is {self.dir / checkpoint.NEWEST}."
            )

    # ---- episodes

    def demonstrations(self) -> list[Episode]:
        """The teacher's episodes, made once and cached in `--demo-dir`."""
        args, length = self.args, self.env.episode_length
        with self.timed("demonstrations"), self._episode_bar(args.demo_episodes * length, "demonstrations") as told:
            folder = Path(args.demo_dir)
            return teachers.demonstrations(
                self.teacher, self.env, args.demo_episodes, args.demo_sigma, folder, self._workers, told
            )

    def score_teacher(self) -> float:
        """The teacher's mean noise-free return on the report's start seeds, kept in `teacher.json`."""
        return float(np.mean(self._score(self.dir / "teacher.json", self.teacher.action)))

    def deploy(self, cycle: int, policy: Actor, sigma: float, actor_steps: int) -> list[Episode]:
        """Run whole episodes with a fixed policy until there are `actor_steps` in all, or read back those of a cycle.

        Raises:
            UserError: a batch of a past cycle is lost or damaged, or the policy or the environment returned nonsense.
        """
        with self.timed("deploying"):
            try:
                episodes = self._folder.read_batch(cycle)
                if episodes is None and cycle < self.cycle:
                    raise UserError(f"{self.dir} has lost its batch of cycle {cycle}; start again in a new folder.")
            except UserError as error:
                if cycle < self.cycle:
                    raise
                tqdm.write(f"{error} It is deployed again.")  # its policy is at hand, so it is the very same batch
                episodes = None
            self.sps = None
            if episodes is None:
                episodes = self._run_episodes(cycle, policy, sigma, actor_steps - self.actor_step)
                self._folder.add_batch(cycle, episodes)
        self.actor_step += sum(len(episode.reward) for episode in episodes)
        return episodes

    def _run_episodes(self, cycle: int, policy: Actor, sigma: float, missing: int) -> list[Episode]:
        """The fewest first episodes of the cycle's stream that have `missing` steps or more."""
        began, stream, length = time.perf_counter(), (self.args.seed, rollouts.DEPLOY, cycle), self.env.episode_length
        episodes: list[Episode] = []
        with self._episode_bar(missing, f"cycle {cycle}, deploying") as told:
            while missing > 0:
                indices = range(len(episodes), len(episodes) + -(-missing // length))
                try:
                    more = self._workers.collect(self.env.env_id, policy, sigma, stream, indices, told)
                except UserError as error:
                    raise UserError(f"{error} The last good state is {self.dir / checkpoint.NEWEST}.") from error
                for episode in more:
                    if missing > 0:
                        episodes.append(episode)
                        missing -= len(episode.reward)
                length = max(1, sum(len(episode.reward) for episode in episodes) // len(episodes))
        self.sps = sum(len(episode.reward) for episode in episodes) / (time.perf_counter() - began)
        return episodes

    def _score(self, path: Path, actor: Actor) -> list[float]:
        """Noise-free returns, kept in `path`, of episodes with the same start seeds for every cycle and method."""
        if not path.exists():
            count, length = self.args.report_episodes, self.env.episode_length
            with (
                self.timed("report episodes"),
                self._episode_bar(count * length, f"scoring {path.parent.name}") as told,
            ):
                stream = (self.args.seed, rollouts.REPORT)
                episodes = self._workers.collect(self.env.env_id, actor, 0.0, stream, range(count), told)
            returns = [episode.episodic_return for episode in episodes]
            content = {"cycle": self.cycle, "learner_step": self._learner_step, "returns": returns}
            files.save_json(path, content)
        return files.load_json(path, "evaluation")["returns"]

    def _keep_policy(self, policy: torch.nn.Module, critic: torch.nn.Module) -> None:
        """Save this cycle's policy as a snapshot, score it, and film it if asked to."""
        folder = self._folder.cycle_dir(self.cycle)
        returns = self._score(folder / "evaluation.json", policy)
        metadata = {
            "cycle": self.cycle,
            "row": self.row,
            "seed": self.args.seed,
            "command": launch.command(self.args, self._folder.script.name),
        }
        metadata |= {"actor_step": self.actor_step, "learner_step": self._learner_step, "versions": versions()}
        metadata |= {"score": float(np.mean(returns)), "score_episodes": len(returns)}
        with self.timed("writing"):
            snapshots.save(folder / "snapshot.pt", self.env, policy, critic, metadata)
        name = "clone" if self.cycle == 0 and self.teacher is not None else f"cycle {self.cycle}"
        tqdm.write(f"{name}: mean return {np.mean(returns):.1f} of {len(returns)} episodes")
        if self.args.capture_video:
            evaluate.film_apart(folder / "snapshot.pt", folder / "video.gif")

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
        names = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
        if names:  # one transfer for all of them
            numbers = torch.stack([values[name].detach().float() for name in names]).tolist()
            values = values | dict(zip(names, numbers, strict=True))
        clock = {"cycle": self.cycle, "actor_step": self.actor_step, "learner_step": step if self.cycle > 0 else 0}
        clock |= {"pretrain_step": step if self.cycle == 0 else None, "wall_s": round(self._wall_s(), 3)}
        pending = None
        with self.timed("waiting for evaluations"):
            if evaluate is not None and self.args.eval_episodes > 0:
                while self._metrics.evaluations_waiting > 2 * self._workers.num_workers:
                    self._metrics.flush_one()
                stream = (self.args.seed, rollouts.EVALUATE, -(-step // self.args.eval_every))
                pending = self._workers.submit(self.env.env_id, evaluate, 0.0, stream, range(self.args.eval_episodes))
            self._metrics.add(clock | values, pending)
        if self._bar is not None and self._metrics.last_return is not None:
            self._bar.set_postfix_str(f"return={self._metrics.last_return:.0f}")

    def report(self, **queries: int) -> Path:
        """Write the report and the picture, say where everything is, and return the folder.

        Args:
            queries: how much the teacher was asked, by what.
        """
        with self.timed("report"):
            self._metrics.flush(wait=True)
            seconds = {name: round(value, 2) for name, value in self.seconds.items()}
            content = report.make_report(self.dir, queries, seconds)
            picture = self.dir / "learning_curve.png"
            with files.writing(picture):
                report.draw_learning_curve(self.dir)
        self._metrics.finish_wandb(content, picture)
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])
        tqdm.write("seconds  " + ", ".join(f"{name} {value:.0f}" for name, value in longest if value >= 1))
        tqdm.write(f"report   {self.dir / 'report.json'}\npicture  {picture}\npolicies {self.dir}/cycle_*/snapshot.pt")
        return self.dir

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Book the time inside the block under `what`, and not under the block around it."""
        outer = self._switch_timer(what)
        try:
            yield
        finally:
            self._switch_timer(outer)

    def _switch_timer(self, what: str) -> str:
        now, (before, since) = time.monotonic(), self._timer
        self.seconds[before] = self.seconds.get(before, 0.0) + now - since
        self._timer = (what, now)
        return before

    def _wall_s(self) -> float:
        return self._wall_before + time.monotonic() - self._began

    @contextlib.contextmanager
    def _episode_bar(self, steps: int, what: str) -> Iterator[Callable[[list[Episode]], None]]:
        """A progress bar over environment steps that shows the mean return so far."""
        returns: list[float] = []
        with tqdm(total=steps, desc=what, unit="step", unit_scale=True, **BAR) as bar:

            def told(episodes: list[Episode]) -> None:
                returns.extend(episode.episodic_return for episode in episodes)
                bar.update(sum(len(episode.reward) for episode in episodes))
                bar.set_postfix_str(f"return={np.mean(returns):.0f}")

            yield told
