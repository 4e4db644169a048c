"""The largest sparsity at which the return stays within 3 % of the dense agent's: the paper's ultimate compression.

    search = bisect a grid of sparsities; at each one
        train a few seeds of it and of the dense agent; the interval of the ratio of their scores decides:
            above 97 % as a whole: kept, look further up
            below 97 % as a whole: lost, look further down
            neither: train twice as many seeds; when there are no more, the ratio itself decides, and the step is marked
    if a dense agent's score is not above zero there is nothing to keep, and the search is over

Who looks at an interval again and again finds it on one side at last. So the 5 % of errors that a step may make are
shared out over the looks it may take, and intervals are widened for the few seeds they are of (`statistics.for_few`).

It takes for granted that a sparsity which loses the return is not followed by one that keeps it. The search is a
function of the scores there are: it says which runs it needs next, and made again of the recorded scores it says the
same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax.analysis import statistics
from rlx2_jax.analysis.statistics import Estimate

GRID = (0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
"""Sparsities of actor and critics that may be the answer."""

TOLERANCE = 0.97
"""Share of the dense agent's return that has to be kept."""

CONFIDENCE = 0.95
"""Confidence of a step that is decided, with all its looks."""

FIRST_SEEDS = 5
"""Before anything is decided: of fewer no interval can be trusted."""

Scores = Mapping[float, Mapping[int, float]]
"""Score by sparsity and seed; sparsity 0 is the dense agent."""


class Step(NamedTuple):
    """One sparsity that was looked at."""

    sparsity: float
    ratio: Estimate
    """Ratio to the dense agent's score, with the interval that the step was decided by."""
    kept: bool
    decided: bool
    """Whether the interval decided; else the ratio does, with all seeds there are."""


class Search(NamedTuple):
    """How far the search is."""

    steps: tuple[Step, ...]
    missing: tuple[float, tuple[int, ...]] | None
    """Sparsity and seeds that have to be trained next; None if the search is at its end."""
    largest: float | None
    """Largest sparsity kept; None while anything is missing, or if none of the grid's is."""
    learned: bool = True
    """Whether the dense agent has a score to keep."""


def scores_of(lines: Iterable[Mapping[str, Any]]) -> dict[float, dict[int, float]]:
    """Recorded runs as `search` takes them."""
    scores: dict[float, dict[int, float]] = {}
    for line in lines:
        scores.setdefault(line["actor_sparsity"], {})[line["seed"]] = line["score"]
    return scores


def search(scores: Scores, seeds: Sequence[int], grid: Sequence[float] = GRID) -> Search:
    """Bisect as far as the scores reach.

    Args:
      scores: what is there.
      seeds: that may be trained, in this order.
      grid: of sparsities, rising.
    """
    low, high = -1, len(grid)
    steps: list[Step] = []
    counts = _looks(len(seeds))
    confidence = 1 - (1 - CONFIDENCE) / len(counts)
    while high - low > 1:
        middle = (low + high) // 2
        sparsity = grid[middle]
        for count in counts:
            asked = tuple(seeds[:count])
            for each in (0.0, sparsity):
                if lacking := tuple(seed for seed in asked if seed not in scores.get(each, {})):
                    return Search(tuple(steps), (each, lacking), None)
            sample, dense = ([np.array([scores[each][seed] for seed in asked])] for each in (sparsity, 0.0))
            if not statistics.is_measure(dense):
                return Search(tuple(steps), None, None, learned=False)
            trusted = statistics.for_few(confidence, max(count, FIRST_SEEDS))
            ratio = statistics.estimate(statistics.ratio, sample, dense, confidence=trusted)
            decided = count >= FIRST_SEEDS and (ratio.low >= TOLERANCE or ratio.high < TOLERANCE)
            if decided:
                break
        kept = ratio.value >= TOLERANCE
        steps.append(Step(sparsity, ratio, kept, decided))
        low, high = (middle, high) if kept else (low, middle)
    return Search(tuple(steps), None, grid[low] if low >= 0 else None)


def _looks(seeds: int) -> tuple[int, ...]:
    """How many seeds each look at a step takes, until there are no more."""
    counts = [min(FIRST_SEEDS, seeds)]
    while counts[-1] < seeds:
        counts.append(min(2 * counts[-1], seeds))
    return tuple(counts)
