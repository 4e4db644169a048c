"""What a logger is, what it is told of its run, and what a run keeps of a service that shows it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from rlx2_jax.config import RunConfig
from rlx2_jax.errors import FileError
from rlx2_jax.io import files
from rlx2_jax.training import workdirs

PROJECT = "rlx2_jax"
"""Project of a service that runs belong to, where its own variable of the environment names no other."""


class Run(NamedTuple):
    """What a logger is told of the run that it shows."""

    config: RunConfig
    """All settings of the run."""
    directory: Path
    """Of the run: a logger may keep files there."""
    name: str
    """Of the run: that of its directory."""
    group: str | None
    """The sweep that the run is one of, by the name of its directory."""
    step: int
    """Environment steps made so far: a resumed run makes the evaluations after them again."""
    say: Callable[[str], None]
    """Tells a sentence to whoever watches the run."""

    @classmethod
    def of(cls, config: RunConfig, directory: Path, step: int, say: Callable[[str], None]) -> Self:
        """The run of a directory, named and grouped by where that lies."""
        whole = directory.resolve()
        sweep = whole.parent.parent
        member = whole.parent.name == "runs" and (sweep / workdirs.PLAN).is_file()
        return cls(config, directory, whole.name, sweep.name if member else None, step, say)


class Logger(Protocol):
    """Shows the evaluations of one run somewhere; made of a `Run`.

    What its methods raise ends the logger, and not the run.
    """

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take one evaluation.

        Args:
          row: the finite numbers of its row (see `docs/files.md`), `env_steps` among them.
          step: environment steps at which it was made.
        """

    def flush(self) -> None:
        """Put what was logged where others see it."""

    def close(self) -> None:
        """End, and flush; the run is over, or was stopped and may be resumed."""


class Kept:
    """What a service holds of a run, kept in `<service>.json` of the run's directory, where a resumed run finds it.

    A resumed run makes the evaluations after its checkpoint again, bit by bit. Those that the service has already are
    not sent twice, so the steps that it sees only rise.
    """

    def __init__(self, run: Run, service: str):
        """Read what the run has kept; a run that has nothing gets a new id.

        Raises:
          FileError: the file cannot be read, is damaged, or cannot be written.
        """
        self._path = run.directory / f"{service}.json"
        values = files.read_json(self._path, {"id": uuid.uuid4().hex[:8], "env_steps": 0})
        if type(values.get("id")) is not str or type(values.get("env_steps")) is not int:
            raise FileError(f"{self._path} is damaged (no id and env_steps); restore a copy, or remove it.")
        self.id: str = values["id"]
        """Of the run, at the service."""
        self.env_steps: int = values["env_steps"]
        """Those of the last evaluation that the service has."""
        self._write()

    def reached(self, step: int) -> bool:
        """Whether the service has the evaluation of a step."""
        return step <= self.env_steps

    def reach(self, step: int) -> None:
        """Note that the service has the evaluation of a step.

        Raises:
          FileError: the file cannot be written.
        """
        self.env_steps = step
        self._write()

    def _write(self) -> None:
        files.write_json(self._path, {"id": self.id, "env_steps": self.env_steps})
