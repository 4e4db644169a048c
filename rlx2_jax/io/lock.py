"""One process at a time in a directory."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlx2_jax.errors import WorkdirError

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None
    import msvcrt

PATIENCE = 30.0
"""Seconds to wait for the process before: workers that lost their parent save before they end."""

HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""Errors of a lock that another process holds."""


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # Of a reader that is gone.
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def hold(directory: Path, patience: float = PATIENCE, say: Callable[[str], None] = _tell) -> Iterator[int]:
    """Hold a directory, made if it does not exist; gives the lock's file descriptor, which child processes may inherit.

    Args:
      directory: to hold.
      patience: seconds to wait for another process.
      say: takes one line where there is something to wait for.

    Raises:
      WorkdirError: not writable, or held by another process for longer than `patience` seconds.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise WorkdirError(
            f"workdir {directory} cannot be written ({error.strerror}); name another with --workdir."
        ) from None
    try:
        _wait(file, directory, patience, say)
        yield file
    finally:
        os.close(file)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other processes from a directory for a moment, leaving nothing in it."""
    if fcntl is None:
        with hold(directory):
            yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _wait(file: int, directory: Path, patience: float, say: Callable[[str], None]) -> None:
    end = time.monotonic() + patience
    said = False
    while True:
        try:
            _take(file)
            return
        except OSError as error:
            if error.errno not in HELD:
                raise WorkdirError(
                    f"workdir {directory} cannot be locked ({error.strerror}); name one on another file system."
                ) from None
        if time.monotonic() > end:
            raise WorkdirError(
                f"workdir {directory} is in use by another process; wait for it, or name another --workdir."
            )
        if not said:
            said = True
            say(f"workdir {directory} is in use by another process; waiting up to {patience:g} s for it")
        time.sleep(0.1)


def _take(file: int) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
