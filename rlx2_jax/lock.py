"""One process at a time in a directory."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from rlx2_jax.errors import WorkdirError

PATIENCE = 30.0
"""Seconds to wait for the process before: workers that lost their parent save before they end."""


@contextlib.contextmanager
def hold(directory: Path, patience: float = PATIENCE) -> Iterator[int]:
    """Hold a directory, made if it does not exist; gives the lock's file descriptor, which child processes may inherit.

    Raises:
      WorkdirError: not writable, or held by another process for longer than `patience` seconds.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise WorkdirError(
            f"workdir {directory} cannot be written ({error.strerror}); name another with --workdir."
        ) from None
    with file:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    raise WorkdirError(
                        f"workdir {directory} cannot be locked ({error.strerror}); name one on another file system."
                    ) from None
                if time.monotonic() > end:
                    raise WorkdirError(
                        f"workdir {directory} is in use by another process; wait for it, or name another --workdir."
                    ) from None
                time.sleep(0.1)
        yield file.fileno()
