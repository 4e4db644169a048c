"""Launchers' processes that need not import anything: forks of one that has imported what all of them do.

For what a sweep or a run does once it is under way; that a launcher starts at all, and draws its pictures, is seen of
processes started as a person starts them (see `conftest.launch`).
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest import mock

from jax._src import xla_bridge

from rlx2_jax.training import record
from tests import preloaded

ROOT = Path(__file__).parents[1]


@functools.cache
def server() -> ForkServerContext:
    """Begins with the first fork, in the environment of then."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preloaded.__name__])
    # Python 3.11 does not tell it where modules are.
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        forkserver.ensure_running()
    return context


class Fork:
    """A script in a process of its own, with as much of `subprocess.Popen` as tests ask for; its output is kept."""

    def __init__(self, script: Path, *arguments: object, **variables: str):
        """Start it, with environment variables beside those of this process."""
        self._said = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        told = (str(script), [*map(str, arguments)], {**os.environ, **variables}, os.getcwd(), self._said.name)
        self._process: ForkServerProcess = server().Process(target=_main, args=told)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number among all processes."""
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As `poll` gives it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; nothing, and all that it wrote to both streams."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        self._said.seek(0)
        return "", self._said.read()


def _main(script: str, arguments: list[str], variables: Mapping[str, str], directory: str, said: str) -> None:
    """The life of a fork."""
    assert preloaded.ALONE and not xla_bridge.backends_are_initialized()
    for number in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(directory)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    record.curves = preloaded.PLAIN  # type: ignore[assignment]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        # As at the end of any other process; of these, Python 3.11 leaves it out.
        atexit._run_exitfuncs()
