"""The host loop of every kind of training: a run, a batch of runs, a clone.

In short:

    until the end, or until asked to stop:
        advance by a chunk, and examine whether what came out is sound
        every eval_every steps: evaluate
        every checkpoint_every steps: checkpoint
    checkpoint
    finish
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from rlx2_jax.config import RunConfig

SECONDS = {"training_seconds": float, "wall_seconds": float}
"""What a checkpoint's record holds of a clock."""


class Rates(NamedTuple):
    """Per second of training."""

    steps: float
    updates: float


class Clock:
    """How far training is, and the seconds that it took, over all starts of the same run."""

    def __init__(self) -> None:
        """Begin at step 0."""
        self.steps = 0
        self.training = self.evaluating = 0.0  # Seconds since this start.
        self.earlier: Mapping[str, float] = dict.fromkeys(SECONDS, 0.0)  # Those of the starts before.
        self._began = time.perf_counter()
        self._lap = 0, 0, 0.0  # Steps, updates and seconds of training at its beginning.

    def resume(self, steps: int, record: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose record holds `seconds`."""
        self.steps = steps
        self.earlier = {name: record[name] for name in SECONDS}

    @contextlib.contextmanager
    def chunk(self, steps: int) -> Iterator[None]:
        """While entered, so many steps are trained."""
        began = time.perf_counter()
        yield
        self.training += time.perf_counter() - began
        self.steps += steps

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """While entered, the policy is evaluated."""
        began = time.perf_counter()
        yield
        self.evaluating += time.perf_counter() - began

    def since_start(self) -> float:
        """Seconds in all since this start."""
        return time.perf_counter() - self._began

    def seconds(self) -> dict[str, float]:
        """Seconds of training, and in all, over all starts."""
        here = {"training_seconds": self.training, "wall_seconds": self.since_start()}
        return {name: self.earlier[name] + here[name] for name in SECONDS}

    def speed(self) -> float:
        """Steps per second of training, since the last lap."""
        return (self.steps - self._lap[0]) / self._lap_seconds()

    def lap(self, updates: int) -> Rates:
        """End a lap and begin another, as `updates` of them are made; the rates of the one that ended."""
        rates = Rates(self.speed(), (updates - self._lap[1]) / self._lap_seconds())
        self._lap = self.steps, updates, self.training
        return rates

    def columns(self, rates: Rates) -> dict[str, float]:
        """What a row says of time."""
        return {
            "steps_per_second": round(rates.steps, 1),
            "updates_per_second": round(rates.updates, 1),
            "wall_seconds": round(self.seconds()["wall_seconds"], 2),
        }

    def _lap_seconds(self) -> float:
        return max(self.training - self._lap[2], 1e-9)


class Executor(Protocol):
    """What the loop drives: a state on the devices, and what it leaves on the host."""

    def advance(self) -> np.ndarray:
        """Train for a chunk, and wait for it; whether the state is finite, for each run."""

    def examine(self, finite: np.ndarray) -> None:
        """Look at what `advance` gave; raises where nothing is left to go on with."""

    def updates(self) -> int:
        """Updates made so far."""

    def evaluate(self, rates: Rates) -> None:
        """Make a row and write it; the rates are those since the last one."""

    def checkpoint(self) -> None:
        """Save all that a resumed run needs, unless it is saved already."""

    def stopping(self) -> bool:
        """Whether it was asked to stop."""

    def finish(self, done: bool) -> None:
        """Leave what is left at the end; `done` is false if it was asked to stop before."""


def go(executor: Executor, clock: Clock, config: RunConfig) -> bool:
    """Train to the end, or until asked to stop.

    Args:
      executor: what is trained.
      clock: the executor's own, where training begins.
      config: whose lengths are taken.

    Returns:
      Whether it came to the end.
    """
    total, chunk, eval_every = config.total_steps, config.chunk_steps, config.eval_every
    checkpoint_every = config.checkpoint_every
    clock.lap(executor.updates())
    while clock.steps < total and not executor.stopping():
        with clock.chunk(chunk):
            finite = executor.advance()
        executor.examine(finite)
        if clock.steps % eval_every == 0:
            executor.evaluate(clock.lap(executor.updates()))
        if clock.steps // checkpoint_every > (clock.steps - chunk) // checkpoint_every:
            executor.checkpoint()
    executor.checkpoint()
    done = clock.steps >= total
    executor.finish(done)
    return done
