"""Blocks of episodes in worker processes or on a Ray cluster. The data is the same as in this process, bit for bit."""

import concurrent.futures
import copy
import faulthandler
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pebble
import torch
from tqdm import tqdm

from common import UserError, progress
from common.envs import EnvSpec
from common.rollouts import BLOCK, Actor, Episode, Pending, num_steps, run_block

MAX_TRIES = 3  # of one block, before a lost worker becomes an error [ours]
BLOCK_TIMEOUT = 3600.0  # seconds until a block counts as hung [ours: a teacher that plans for 1 s a step needs 1,000]


def _run_pickled(
    pickled_actor: bytes, env_id: str, sigma: float, stream: tuple[int, ...], indices: range
) -> list[Episode]:
    return run_block(env_id, pickle.loads(pickled_actor), sigma, stream, indices)


def _run_on_ray(timeout: float, *arguments: Any) -> list[Episode] | str:
    """Run a block in a Ray worker, which is lost on purpose if it hangs. Returns the sentence of a UserError."""
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        return _run_pickled(*arguments)
    except UserError as error:
        return str(error)
    finally:
        faulthandler.cancel_dump_traceback_later()


class _OnRay:
    """A block on a Ray cluster. Ray itself runs it again, at once, when its node or worker is lost."""

    def __init__(self, ray: ModuleType, task: Any, what: str) -> None:
        self._ray, self._task, self._what = ray, task, what

    def done(self) -> bool:
        return bool(self._ray.wait([self._task], timeout=0)[0])

    def result(self) -> list[Episode]:
        try:
            answer = self._ray.get(self._task)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"{self._what} failed on the cluster ({type(error).__name__}): {error}") from error
        if isinstance(answer, str):
            raise UserError(answer)
        return [Episode(*(np.array(values) for values in episode)) for episode in answer]  # Ray's can't be written to


class _InWorker:
    """A block in a worker. `result` runs it again when its worker died or hung; being pure, it gives the same bits."""

    def __init__(self, submit: Callable[[], concurrent.futures.Future], what: str) -> None:
        self._submit, self._what = submit, what
        self._future = submit()

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> list[Episode]:
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return self._future.result()
            except (pebble.ProcessExpired, BrokenProcessPool, concurrent.futures.TimeoutError) as error:
                reason = repr(error)
                if attempt < MAX_TRIES:
                    print(f"a worker was lost in {self._what}: {reason}; running it again.", file=sys.stderr)
                    self._future = self._submit()
        raise UserError(f"{self._what} lost its worker {MAX_TRIES} times, at last by: {reason}.")


class Workers:
    """Runs blocks in `num_workers` processes, in this one if 0, or on a Ray cluster. The data is always the same."""

    def __init__(
        self, env: EnvSpec, num_workers: int, block_timeout: float = BLOCK_TIMEOUT, ray_address: str | None = None
    ) -> None:
        """Start nothing yet; processes start, and a cluster is asked for, with the first block.

        Args:
            env: the task of all episodes.
            block_timeout: seconds after which a block in a worker counts as hung and is run again.
            ray_address: of a running cluster, or "auto" for the one this machine is in. It runs as many blocks at once
                as it has free CPUs, whatever `num_workers` says.
        """
        self._env, self.num_workers, self._timeout, self._pool = env, num_workers, block_timeout, None
        self._ray_address, self._ray = ray_address, None
        if ray_address is not None:
            self.num_workers = max(1, num_workers)

    def _start(self) -> pebble.ProcessPool:
        # A fork server's children come from a process that never ran torch, CUDA or a thread: clean, and fast to start.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "dm_control.suite"])
        return pebble.ProcessPool(self.num_workers, initializer=_initialise_worker, context=context)

    def _start_ray(self) -> ModuleType:
        try:
            import ray
        except ImportError as error:
            raise UserError("--ray-address needs Ray: pip install -r requirements-ray.txt") from error
        root = Path(__file__).resolve().parent.parent  # nodes need the packages, but no checkout
        code = [str(root / "common"), *(str(path) for path in root.glob("*.py"))]
        try:
            ray.init(self._ray_address, runtime_env={"py_modules": code}, logging_level="warning")
        except (ConnectionError, RuntimeError, ValueError) as error:  # none there, or of another version
            raise UserError(f"--ray-address {self._ray_address}: {error}") from error
        return ray

    def submit(self, actor: Actor, sigma: float, stream: tuple[int, ...], indices: range) -> Pending:
        """Run one block with the actor as it is now: later changes to its weights don't reach the block."""
        if isinstance(actor, torch.nn.Module):
            actor = copy.deepcopy(actor).cpu()
        env_id = self._env.env_id
        what = f"episodes {indices.start}-{indices.stop - 1} of stream {stream} on {env_id}"
        if self._ray_address is not None:
            self._ray = self._ray or self._start_ray()
            pickled = self._ray.cloudpickle.dumps(actor)  # takes the classes of `__main__` along
            task = self._ray.remote(_run_on_ray).options(max_retries=MAX_TRIES - 1, num_cpus=1)
            return _OnRay(self._ray, task.remote(self._timeout, pickled, env_id, sigma, stream, indices), what)
        arguments = [pickle.dumps(actor), env_id, sigma, stream, indices]
        if self.num_workers == 0:
            done = concurrent.futures.Future()
            done.set_result(_run_pickled(*arguments))
            return done
        return _InWorker(lambda: self._schedule(arguments), what)

    def _schedule(self, arguments: list[Any]) -> concurrent.futures.Future:
        if self._pool is not None and not self._pool.active:
            self.close()  # pebble gives its pool up when a worker dies while none is busy
        if self._pool is None:
            self._pool = self._start()
        return self._pool.schedule(_run_pickled, arguments, timeout=self._timeout)

    def episodes(
        self, actor: Actor, sigma: float, stream: tuple[int, ...], indices: range, desc: str
    ) -> list[Episode]:  # fmt: skip
        """Run the episodes `indices` of a stream and return them in order, with a progress bar named `desc`."""
        with progress.bar(len(indices) * self._env.episode_length, desc, unit="step", unit_scale=True) as bar:
            return self._run(actor, sigma, stream, indices, [], bar)

    def steps(self, actor: Actor, sigma: float, stream: tuple[int, ...], missing: int, desc: str) -> list[Episode]:
        """Run the fewest first episodes of a stream that have `missing` steps in all, or more."""
        episodes: list[Episode] = []
        with progress.bar(missing, desc, unit="step", unit_scale=True) as bar:
            while (left := missing - num_steps(episodes)) > 0:
                # As many as are needed if they are as long as those so far, which depends on nothing but the data.
                length = max(1, num_steps(episodes) // len(episodes)) if episodes else self._env.episode_length
                indices = range(len(episodes), len(episodes) + -(-left // length))
                self._run(actor, sigma, stream, indices, episodes, bar)
        ends = itertools.accumulate(len(episode.reward) for episode in episodes)
        return episodes[: 1 + sum(end < missing for end in ends)]

    def _run(
        self, actor: Actor, sigma: float, stream: tuple[int, ...], indices: range, episodes: list[Episode], bar: tqdm
    ) -> list[Episode]:  # fmt: skip
        """Append the episodes `indices` to `episodes`."""
        cuts = [indices.start, *(i for i in indices[1:] if i % BLOCK == 0), indices.stop]
        blocks = (self.submit(actor, sigma, stream, range(*pair)) for pair in itertools.pairwise(cuts))
        if self.num_workers > 0:
            blocks = iter(list(blocks))  # all at once; without workers one by one, for the progress bar
        for block in blocks:
            new = block.result()
            episodes += new
            bar.update(num_steps(new))
            bar.set_postfix_str(f"return={np.mean([episode.episodic_return for episode in episodes]):.0f}")
        return episodes

    def close(self) -> None:
        """Stop the processes, busy or not."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None
        if self._ray is not None:
            self._ray.shutdown()  # ends this run's tasks, not the cluster
            self._ray = None


def _initialise_worker() -> None:
    """One thread, gone when the run is gone; pebble has made it deaf to Ctrl-C, for the run itself decides."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        multiprocessing.parent_process().join()  # returns when the run ends, however it ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
