"""Signals that end a run: the current step or file is finished, then everything is saved, then the run ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from common import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # Windows lacks the last two; clusters send SIGUSR1 as a warning


class Interrupt:
    """Takes the signals while a run lasts. `message` says how to go on."""

    def __init__(self, message: str) -> None:
        """Take over nothing yet."""
        self._message, self._number, self._busy, self._handlers = message, 0, False, {}

    def start(self) -> None:
        """Take over the signals. In a thread that isn't the main one Python gives none, and the run does without."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)  # the run was started with nohup, to outlive its terminal
        self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}

    def stop(self) -> None:
        """Give them back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

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
