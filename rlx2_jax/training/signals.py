"""Stopping politely: the first Ctrl-C, SIGTERM or SIGHUP asks a run to save and end, a second Ctrl-C interrupts it."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that ask for an end; the last is that of a connection which was lost, and not on every system."""


class StopSignals:
    """While entered, remembers whether a signal asked for an end. Does nothing outside the main thread.

    What came to one that was entered inside another one, that other one has received too.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        """Prepare; nothing is noticed before the context is entered.

        Args:
          say: takes a line at once when the first signal comes, in a thread of its own: the main thread may be inside a
            compiled program, and hears of signals when that is done.
        """
        self.received: str | None = None
        self._say = say
        self._previous: dict[int, object] = {}
        self._ear: _Ear | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                # Who started us with nohup does not want us to end with the connection.
                if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
            if self._say is not None:
                self._ear = _Ear(self._say, frozenset(self._previous))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ear is not None:
            self._ear.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
            outer = getattr(handler, "__self__", None)
            if self.received and isinstance(outer, StopSignals):
                outer.received = self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


class _Ear:
    """A thread that says at once that a signal came: Python writes its number to a socket when it arrives."""

    def __init__(self, say: Callable[[str], None], numbers: frozenset[int]):
        self._say = say
        self._numbers = numbers
        # Not a pipe: on Windows, Python 3.11 cannot write to one without waiting.
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        signal.set_wakeup_fd(self._before)
        self._write.close()
        self._thread.join()
        self._read.close()

    def _listen(self) -> None:
        while heard := self._read.recv(1):
            if heard[0] in self._numbers:
                name = signal.Signals(heard[0]).name
                self._say(f"{name} heard: what is being computed now is finished, then the run is saved and ends")
                return
