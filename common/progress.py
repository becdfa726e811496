"""Progress bars, and the time of each phase of a run."""

import collections
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def bar(total: int, desc: str, **options: Any) -> tqdm:
    """A progress bar, quiet where there is no terminal."""
    return tqdm(total=total, desc=desc, disable=None, leave=False, dynamic_ncols=True, **options)


class Stopwatch:
    """`seconds` per phase. Time counts once, for the innermost block; outside all blocks the phase is `starting`."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self._phase, self._since = "starting", time.monotonic()

    @contextmanager
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
