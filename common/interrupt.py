"""SIGINT, SIGTERM, SIGUSR1 and SIGHUP: the step is finished, then everything is saved, then the run ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from common import Interrupted


class Interrupt:
    """Takes these signals while a run lasts. `message` says how to go on."""

    def __init__(self, message: str) -> None:
        """Take over nothing yet."""
        self._message, self._number, self._busy = message, 0, False

    def start(self) -> None:
        """Take over the signals: SIGHUP unless it is ignored, as under nohup, and none outside the main thread."""
        names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # Windows lacks the last two
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        if threading.current_thread() is not threading.main_thread():
            numbers = []
        ignored = [n for n in numbers if n.name == "SIGHUP" and signal.getsignal(n) == signal.SIG_IGN]
        self._handlers = {n: signal.signal(n, self._on_signal) for n in numbers if n not in ignored}

    def stop(self) -> None:
        """Give them back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        """Whether a signal has arrived."""
        return self._number != 0

    def check(self) -> None:
        """End the run if a signal has arrived."""
        if self:
            raise Interrupted(f"interrupted by {signal.Signals(self._number).name}; {self._message}", self._number)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Inside the block a first signal waits: a step or a file is finished before the run ends."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self._number = bool(self), number
        if again or not self._busy:  # else `check` is called in a moment; what isn't saved is made again
            self.check()
