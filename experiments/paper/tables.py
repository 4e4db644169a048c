"""Numbers and tables as a report writes them, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rlx2_jax.analysis import statistics
from rlx2_jax.analysis.statistics import Estimate


def shown(found: Estimate | None, factor: float = 1, digits: int | None = None, *, signed: bool = False) -> str:
    """A number and its interval, which one run has not; with three digits unless told."""
    if found is None:
        return "-"
    numbers = [factor * number for number in (found.value, found.low, found.high)]
    if digits is None:
        digits = max(0, 2 - int(np.log10(max(map(abs, numbers), default=1) or 1)))
    value, low, high = (f"{number:{'+' if signed else ''}.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]" if found.fewest > 1 else value


def relative(
    statistic: Callable[..., np.ndarray], sample: statistics.Sample, reference: statistics.Sample
) -> Estimate | None:
    """A ratio to other scores; None where those are no measure."""
    return statistics.estimate(statistic, sample, reference) if statistics.is_measure(reference) else None


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its head first."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
