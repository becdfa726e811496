"""The growing batch: whole episodes appended once per cycle, read uniformly at random, never evicted.

n-step returns, their discounts and bootstrap observations, and annotations such as a teacher's actions never change, so
we compute them once, when a batch arrives.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from common.rollouts import Episode, num_steps

ANNOTATE_CHUNK = 4096  # rows per annotation call; fixed, because other row counts round differently [ours]


def n_step(reward: np.ndarray, discount: np.ndarray, n: int, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n-step returns, discounts and bootstrap offsets of one episode of T steps.

    With m = min(n, T - t), the return is sum_{i<m} (prod_{j<i} gamma d_{t+j}) r_{t+i}, the discount
    prod_{i<m} gamma d_{t+i} and the offset m: the window gets shorter near the end and never crosses an episode.

    Args:
        reward, discount: (T,), the environment's.

    Returns:
        n_step_return (T,) float64, n_step_discount (T,) float64, offset (T,) int64.
    """
    length = len(reward)
    n_step_return, n_step_discount = np.zeros(length), np.ones(length)
    for i in range(min(n, length)):
        inside = length - i  # the first `inside` windows reach step i
        n_step_return[:inside] += n_step_discount[:inside] * reward[i:]
        n_step_discount[:inside] *= gamma * discount[i:].astype(np.float64)
    return n_step_return, n_step_discount, np.minimum(n, length - np.arange(length))


class Replay:
    """Transitions of all batches so far, on the learner's device."""

    def __init__(
        self, capacity: int, obs_size: int, action_size: int, n_step: int, gamma: float, device: torch.device
    ) -> None:
        """Allocate `capacity` transitions; on a CPU, untouched memory costs nothing."""
        self._n_step, self._gamma, self._capacity, self._device = n_step, gamma, capacity, device
        shapes = {"obs": (obs_size,), "next_obs": (obs_size,), "action": (action_size,)}
        shapes |= {"n_step_return": (), "n_step_discount": ()}
        self._columns = {name: torch.empty(capacity, *shape, device=device) for name, shape in shapes.items()}
        self._ends = [0]  # transitions before the first batch and after each
        self._annotated: dict[str, set[int]] = {}  # column -> the batches that have it

    def __len__(self) -> int:
        return self._ends[-1]

    def append(self, episodes: Sequence[Episode], annotations: Mapping[str, np.ndarray] | None = None) -> None:
        """Add one batch of episodes.

        Args:
            annotations: columns that come with the batch, (steps, size) each; `annotate` skips them.

        Raises:
            ValueError: the batch is empty or doesn't fit.
        """
        start, count = len(self), num_steps(episodes)
        if count == 0 or start + count > self._capacity:
            raise ValueError(f"a batch of {count} transitions doesn't fit: {start} of {self._capacity} are used")
        end = start
        for episode in episodes:
            n_step_return, n_step_discount, offset = n_step(episode.reward, episode.discount, self._n_step, self._gamma)
            next_obs = episode.obs[np.arange(len(offset)) + offset]
            arrays = {"obs": episode.obs[:-1], "next_obs": next_obs, "action": episode.action}
            arrays |= {"n_step_return": n_step_return, "n_step_discount": n_step_discount}
            for name, values in arrays.items():
                self._columns[name][end : end + len(offset)] = torch.from_numpy(values)
            end += len(offset)
        for name, values in (annotations or {}).items():
            self._column(name, values.shape[1])[start:end] = torch.from_numpy(values)
            self._annotated.setdefault(name, set()).add(len(self._ends) - 1)
        self._ends.append(end)

    def annotate(self, name: str, function: Callable[[torch.Tensor], torch.Tensor], batches: str = "new") -> None:
        """Compute the column `function(obs)`, in chunks of at most 4096 rows that never span batches.

        Args:
            function: obs (B, obs_size) -> (B, size), the same size each time.
            batches: "new" for the batches that don't have the column yet, "all" for every batch.
        """
        done = self._annotated.setdefault(name, set())
        with torch.no_grad():
            for batch, (start, end) in enumerate(itertools.pairwise(self._ends)):
                if batches == "new" and batch in done:
                    continue
                for first in range(start, end, ANNOTATE_CHUNK):
                    rows = slice(first, min(first + ANNOTATE_CHUNK, end))
                    value = function(self._columns["obs"][rows])
                    self._column(name, value.shape[1])[rows] = value
                done.add(batch)

    def _column(self, name: str, size: int) -> torch.Tensor:
        """The column `name`, allocated at its first use."""
        if name not in self._columns:
            self._columns[name] = torch.empty(self._capacity, size, device=self._device)
        return self._columns[name]

    def sample(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw transitions uniformly with replacement, without a GPU synchronisation.

        Returns:
            obs, next_obs (B, obs_size), action (B, action_size), n_step_return, n_step_discount (B,), and the
            annotations (B, size). `next_obs` is the observation at the end of the n-step window.
        """
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self._device)
        return {name: column.index_select(0, index) for name, column in self._columns.items()}
