"""TensorBoard's file of a run's scalars, written by whoever calls.

tensorboardX's own `SummaryWriter` hands them to a thread, which dies of a clock that was set or of a full disk, unseen;
closing it then waits for that thread for ever.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class Events:
    """One event file in a directory."""

    def __init__(self, directory: Path, steps: int):
        """Begin at a step: in TensorBoard, what earlier files in the directory hold of later ones is hidden."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._new: Any = event_pb2.Event
        begun = directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        self._writer: Any = EventsWriter(str(directory / "events"))
        if begun:
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(steps + 1, file_version="brain.Event:2")
            self._write(steps + 1, session_log=started)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of one curve."""
        from tensorboardX.summary import scalar

        self._write(step, summary=scalar(name, value))

    def flush(self) -> None:
        """Put what was added on disk."""
        self._writer.flush()

    def close(self) -> None:
        """The end; also flushes."""
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._new(wall_time=time.time(), step=step, **content))
