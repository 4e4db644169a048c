"""TensorBoard: a file of a run's scalars under `tensorboard/` of the run, written by whoever calls.

tensorboardX's own `SummaryWriter` hands them to a thread, which dies of a clock that was set or of a full disk, unseen;
closing it then waits for that thread for ever.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlx2_jax.io import files
from rlx2_jax.training.loggers.base import Run


class TensorBoard:
    """One event file of one run."""

    def __init__(self, run: Run):
        """Begin at the run's step: in TensorBoard, what earlier files in the directory hold of later ones is hidden.

        Raises:
          FileError: it cannot be written, as from all methods; the file is closed then.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._new: Any = event_pb2.Event
        self._directory: Path = run.directory / "tensorboard"
        directory, steps = self._directory, run.step
        begun = directory.exists()
        with files.writing(directory):
            directory.mkdir(exist_ok=True)
            self._writer: Any = EventsWriter(str(directory / "events"))
        if begun:
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(steps + 1, file_version="brain.Event:2")
            self._write(steps + 1, session_log=started)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if name != "env_steps":
                self._write(step, summary=scalar(name, value))

    def flush(self) -> None:
        """Put what was added on disk."""
        self._do(self._writer.flush)

    def close(self) -> None:
        """The end; also flushes."""
        self._do(self._writer.close)

    def _do(self, write: Callable[[], object]) -> None:
        with files.writing(self._directory):
            try:
                write()
            except OSError:
                with contextlib.suppress(OSError):  # What is not written yet would be tried again at the end.
                    self._writer._py_recordio_writer.close()
                raise

    def _write(self, step: int, **content: Any) -> None:
        event = self._new(wall_time=time.time(), step=step, **content)
        self._do(lambda: self._writer.write_event(event))


logger = TensorBoard
