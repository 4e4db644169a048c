"""Stopping politely: the first Ctrl-C or SIGTERM asks a run to save and end, a second Ctrl-C interrupts it."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopSignals:
    """While entered, remembers whether SIGINT or SIGTERM came. Does nothing outside the main thread.

    What came to one that was entered inside another one, that other one has received too.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
            outer = getattr(handler, "__self__", None)
            if self.received and isinstance(outer, StopSignals):
                outer.received = self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
