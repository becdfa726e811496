"""What a run shows while it works, and where its time goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def bar(total: int, desc: str, **options: Any) -> tqdm:
    """A progress bar, quiet where there is no terminal."""
    return tqdm(total=total, desc=desc, disable=None, leave=False, dynamic_ncols=True, **options)


class Stopwatch:
    """Seconds by what they were spent on. Every moment counts once, for the innermost block."""

    def __init__(self) -> None:
        """Start, with what comes before the first block as `starting`."""
        self.seconds: dict[str, float] = {}
        self.before = 0.0  # seconds of all, from before the run was continued
        self._began = time.monotonic()
        self._now = ("starting", self._began)

    @property
    def total(self) -> float:
        """Seconds since the run was started, without those in which it didn't run."""
        return self.before + time.monotonic() - self._began

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Book the time inside the block under `what`, and not under the block around it."""
        outer = self._switch(what)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, what: str) -> str:
        now, (before, since) = time.monotonic(), self._now
        self.seconds[before] = self.seconds.get(before, 0.0) + now - since
        self._now = (what, now)
        return before

    def __str__(self) -> str:
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {value:.0f}" for name, value in longest if value >= 1)
