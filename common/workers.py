"""Runs blocks of episodes in worker processes. The data is the same as in this process, bit for bit."""

import io
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import UserError
from common.envs import EnvSpec
from common.rollouts import BLOCK, Actor, Episode, num_steps, run_block

MAX_TRIES = 3  # losses of a worker, while we wait for one block, before they are an error [ours]


def progress_bar(total: int, desc: str, **options: Any) -> tqdm:
    """A progress bar, quiet where there is no terminal."""
    return tqdm(total=total, desc=desc, disable=None, leave=False, dynamic_ncols=True, **options)


class Pending:
    """A submitted block. It runs again if its worker dies, and gives the same bits because it is a pure function."""

    def __init__(self, workers: "Workers", arguments: tuple[Any, ...]) -> None:
        """Begin `_run_block` with these arguments."""
        self._workers, self._arguments = workers, arguments
        self._future = workers.begin(arguments)

    def __str__(self) -> str:
        env_id, _, _, stream, indices = self._arguments
        return f"episodes {indices.start}-{indices.stop - 1} of stream {stream} on {env_id}"

    def done(self) -> bool:
        """Whether `result` returns at once, unless the block's worker died."""
        return self._future.done()

    def result(self) -> list[Episode]:
        """Wait for the episodes and return them in order. Raises UserError if workers die MAX_TRIES times.

        Losing one worker ends them all; then each block begins again once its `result` is asked for.
        """
        for tries in itertools.count(1):
            while not wait([self._future], timeout=5).done:  # the pool doesn't see a death in the middle of sending
                self._workers.close_if_one_died()
            try:
                return self._future.result()
            except BrokenProcessPool as error:
                if tries == MAX_TRIES:
                    raise UserError(f"{self}: workers died {tries} times meanwhile, the last: {error!r}.") from error
                print(f"a worker was lost in {self}: {error!r}; running it again.", file=sys.stderr)
                self._future = self._workers.begin(self._arguments)


def _run_block(env_id: str, saved_actor: bytes, sigma: float, stream: tuple[int, ...], indices: range) -> list[Episode]:
    actor = torch.load(io.BytesIO(saved_actor), map_location="cpu", weights_only=False)  # workers have no GPU
    return run_block(env_id, actor, sigma, stream, indices)


class Workers:
    """Runs blocks in `num_workers` processes, or in this one if 0. The data is always the same."""

    def __init__(self, env: EnvSpec, num_workers: int) -> None:
        """Start nothing yet; processes start with the first block. `env` is the task of all episodes."""
        self._env, self.num_workers = env, num_workers
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, actor: Actor, sigma: float, stream: tuple[int, ...], indices: range) -> Pending:
        """Run one block with the actor as it is now: later changes to its weights don't affect the block.

        Raises:
            UserError: the workers can't start.
        """
        buffer = io.BytesIO()
        torch.save(actor, buffer)
        return Pending(self, (self._env.env_id, buffer.getvalue(), sigma, stream, indices))

    def begin(self, arguments: tuple[Any, ...]) -> Future:
        """Run `_run_block` in a worker, or at once if there are none; a pool that lost a worker is replaced."""
        if self.num_workers == 0:
            done: Future = Future()
            done.set_result(_run_block(*arguments))
            return done
        try:
            if self._pool is None:
                # A fork server's children come from a process that never ran torch, CUDA or a thread: clean and fast.
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload(["torch", "dm_control.suite"])
                self._pool = ProcessPoolExecutor(self.num_workers, context, _initialise_worker)
            return self._pool.submit(_run_block, *arguments)
        except BrokenProcessPool:
            self.close()
            return self.begin(arguments)
        except OSError as error:
            raise UserError(
                f"worker processes can't start ({error}); set TMPDIR to a folder with a short path, where their "
                "sockets fit, or run without them: --num-workers 0."
            ) from error

    def episodes(
        self, actor: Actor, sigma: float, stream: tuple[int, ...], indices: range, desc: str
    ) -> list[Episode]:  # fmt: skip
        """Run the episodes `indices` of a stream and return them in order, with a progress bar named `desc`."""
        with progress_bar(len(indices) * self._env.episode_length, desc, unit="step", unit_scale=True) as bar:
            return self._run(actor, sigma, stream, indices, [], bar)

    def steps(self, actor: Actor, sigma: float, stream: tuple[int, ...], missing: int, desc: str) -> list[Episode]:
        """Run a stream's episodes from the first on, just enough of them for `missing` steps in all."""
        episodes: list[Episode] = []
        with progress_bar(missing, desc, unit="step", unit_scale=True) as bar:
            while (left := missing - num_steps(episodes)) > 0:
                # An estimate of how many are needed, from the lengths so far; it depends on nothing but the data.
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
            blocks = list(blocks)  # all at once; without workers one by one, for the progress bar
        for block in blocks:
            new = block.result()
            episodes += new
            bar.update(num_steps(new))
            bar.set_postfix_str(f"return={np.mean([episode.episodic_return for episode in episodes]):.0f}")
        return episodes

    def close_if_one_died(self) -> None:
        """End all processes if one is dead: every block that isn't done raises BrokenProcessPool then."""
        if self._pool is not None and not all(process.is_alive() for process in list(self._pool._processes.values())):
            self.close()

    def close(self) -> None:
        """End the processes, busy or not, within a second or two."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        for process in list(pool._processes.values()):  # from Python 3.14 on it has kill_workers() for this
            process.kill()
        pool._result_queue._writer.close()  # else the pool waits for the rest of what a killed worker was sending
        pool.shutdown(cancel_futures=True)


def _initialise_worker() -> None:
    """Use one thread, ignore Ctrl-C, because the run decides when to end, and exit when the run is gone."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def exit_with_parent() -> None:
        multiprocessing.parent_process().join()  # returns when the run ends, however it ends
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
