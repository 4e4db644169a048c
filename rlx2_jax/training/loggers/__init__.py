"""Loggers: what shows a run's evaluations while it goes on, beside `metrics.jsonl`, which is the run's own history.

A module here is a logger of its name: the class that it calls `logger`. One of a person's own is `package.module:name`,
anything that makes a `Logger` of a `Run`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping

from rlx2_jax.config import Config, registry
from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import places
from rlx2_jax.training.loggers.base import Kept, Logger, Run

__all__ = ["Kept", "Logger", "Loggers", "Run", "find", "require"]

EXTRAS = ("wandb", "trackio")
"""Loggers that need the package of their name, which an extra of that name brings."""

OWN_FILES = "tensorboard"
"""The logger whose files are the run's own: where they cannot be written, neither can the others, and the run ends."""


def find(name: str) -> Callable[[Run], Logger]:
    """What makes the logger of a name.

    Raises:
      ConfigError: there is none of that name or at that place, or it needs what is not installed.
    """
    if ":" in name:
        own: Callable[[Run], Logger] = places.imported(name, "name")
        if not callable(own):
            raise ConfigError(
                f"logger={name} is of type {type(own).__name__}; name a class or function that makes a logger of a Run."
            )
        return own
    if name in EXTRAS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"logger={name} cannot be imported: {places.said(error)}; pip install 'rlx2-jax[{name}]', or name "
                "another --logger."
            ) from error
    module = importlib.import_module(f"{__name__}.{name}")
    found: Callable[[Run], Logger] = module.logger
    return found


def require(config: Config) -> None:
    """See that the loggers of a run are there, before anything expensive.

    Raises:
      ConfigError: one of them is not.
    """
    for name in _names(config):
        find(name)


def _names(config: Config) -> list[str]:
    return [name for name in dict.fromkeys(config.logger.split(",")) if name != registry.NO_LOGGER]


class Loggers:
    """All loggers of one run. One that fails is told of and left out from then on, but for the run's own files."""

    def __init__(self, run: Run):
        """Begin them.

        Raises:
          FileError: TensorBoard's files cannot be written, as from all methods.
        """
        self._say = run.say
        self._going: dict[str, Logger] = {}
        for name in _names(run.config):
            with self._outlived(name):
                self._going[name] = find(name)(run)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Show one evaluation made at a number of environment steps; numbers that are not finite are left out."""
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        self._each(lambda logger: logger.log(finite, step))
        self._each(lambda logger: logger.flush())

    def close(self) -> None:
        """End all."""
        self._each(lambda logger: logger.close())
        self._going = {}

    def _each(self, do: Callable[[Logger], None]) -> None:
        for name, logger in list(self._going.items()):
            with self._outlived(name):
                do(logger)

    @contextlib.contextmanager
    def _outlived(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if name == OWN_FILES:
                raise
            self._going.pop(name, None)
            self._say(f"logger {name} failed: {places.said(error)}; the run goes on without it")
