"""What benchmarks share: contestants that take turns, and how their times are told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROUNDS = 5
"""At least; quartiles of fewer say nothing."""


def in_turns(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, by round, for the given time: in every other round the other way about."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, rounds = list(calls), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or rounds < ROUNDS:
        for name in order:
            began = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - began)
        order, rounds = order[::-1], rounds + 1
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of a single value, that one twice."""
    first, _, third = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return first, third
