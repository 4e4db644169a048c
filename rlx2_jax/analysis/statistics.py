"""What can be said of a handful of runs: point estimates with 95 % bootstrap intervals, and permutation tests.

A sample is one array of per-seed scores for each task, `[n_task]`, or the scores of a single task. Intervals are
percentile intervals of the stratified bootstrap: seeds are drawn again with replacement within each task, all tasks
together (Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, 2021). With few seeds
such an interval is too narrow: of normally distributed scores it holds the mean in 75 % of cases with three seeds, 80 %
with four, 84 % with five, 88 % with eight and 93 % with twenty. `for_few` says which one comes nearer to what it
should.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

Sample = Sequence[np.ndarray]
"""One array per task; the last axis of each is seeds, leading axes are resamples."""

RESAMPLES = 10_000
"""Resamples of a bootstrap, where no other number is asked for."""

TRIM = 0.25
"""Share of the scores that the interquartile mean leaves out at either end."""


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    n: int
    """Runs in the (first) sample."""
    value: float
    """The point estimate."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    fewest: int
    """Scores of the sample and task that has the fewest; with 1 there is nothing to draw again, and no interval."""


class Summary(NamedTuple):
    """A mean with what is needed to judge it."""

    n: int
    """Number of values."""
    mean: float
    """Their mean."""
    std: float
    """Sample standard deviation; 0 for one value."""
    low: float
    """Lower end of the 95 % percentile-bootstrap interval of the mean, widened for few values (`for_few`)."""
    high: float
    """Upper end."""


def mean(sample: Sample) -> np.ndarray:
    """Mean over tasks of the mean over seeds."""
    return np.mean([scores.mean(-1) for scores in sample], axis=0)


def iqm(sample: Sample) -> np.ndarray:
    """Interquartile mean of all scores of all tasks, which must share a scale: the mean without a quarter at each end.

    Tasks weigh the same: scores of one that has fewer of them are repeated until all have as many. A quarter of less
    than four scores is none, and this is the mean then.
    """
    count = math.lcm(*(scores.shape[-1] for scores in sample))
    pooled = np.sort(np.concatenate([np.repeat(s, count // s.shape[-1], -1) for s in sample], -1), -1)
    cut = int(TRIM * pooled.shape[-1])
    return pooled[..., cut : pooled.shape[-1] - cut].mean(-1)


def is_measure(reference: Sample) -> bool:
    """Whether ratios to scores mean something: all are above zero, and so is the mean of any resample of them."""
    return all((scores > 0).all() for scores in reference)


def ratio(sample: Sample, reference: Sample) -> np.ndarray:
    """Mean over tasks of the ratio of means."""
    return np.mean([a.mean(-1) / b.mean(-1) for a, b in zip(sample, reference, strict=True)], axis=0)


def iqm_ratio(sample: Sample, reference: Sample) -> np.ndarray:
    """Interquartile mean of all scores of all tasks, each divided by the mean of the reference on its task."""
    return iqm([a / b.mean(-1)[..., None] for a, b in zip(sample, reference, strict=True)])


def improvement(sample: Sample, other: Sample) -> np.ndarray:
    """Probability that a run of one method beats a run of the other, ties counting half; mean over tasks."""
    wins = []
    for a, b in zip(sample, other, strict=True):
        difference = a[..., :, None] - b[..., None, :]
        wins.append(((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1)))
    return np.mean(wins, axis=0)


def permutation(sample: Sample, other: Sample, *, most: int = 20_000, seed: int = 0) -> float:
    """Two-sided p-value of the permutation test that two methods' scores are of one distribution on each task.

    It is the share of the ways to give the scores of a task to the two methods, as many to each as it has, in which the
    means over tasks differ at least as much as they do. Exact where there are few such ways (Fisher, 1935); between
    four scores and four it cannot be below 2 / 70, between three and three not below 2 / 20.

    Args:
      sample: tasks in the same order as those of the other.
      other: of the other method.
      most: if there are more ways than this, as many random ones stand for them.
      seed: of these.

    Raises:
      ValueError: an empty sample, or a score that is not finite.
    """
    # SciPy's permutation test knows no tasks.
    tasks = list(zip(*_checked([sample, other]), strict=True))
    exact = math.prod(math.comb(a.size + b.size, a.size) for a, b in tasks) <= most
    rng = np.random.default_rng(seed)
    per_task = []
    for a, b in tasks:
        pooled = np.concatenate([a, b])
        if exact:
            chosen = np.array(list(itertools.combinations(range(pooled.size), a.size)))
        else:
            chosen = rng.permuted(np.tile(np.arange(pooled.size), (most, 1)), axis=1)[:, : a.size]
        first = pooled[chosen].sum(-1)
        per_task.append(first / a.size - (pooled.sum() - first) / b.size)
    found = np.abs(functools.reduce(np.add.outer, per_task).ravel() if exact else np.sum(per_task, axis=0))
    observed = abs(sum(a.mean() - b.mean() for a, b in tasks))
    # The observed way itself is among them, to rounding.
    extreme = found >= observed - 1e-9 * found.max()
    return float(extreme.mean() if exact else (1 + extreme.sum()) / (1 + most))


def for_few(confidence: float, n: int) -> float:
    """The confidence to ask of a percentile interval of `n` scores so that it has the one that is meant, about.

    It is larger: the bootstrap's spread lacks a factor of sqrt(n / (n - 1)), and its tails are a normal distribution's
    where Student's are due (Hesterberg, *What Teachers Should Know about the Bootstrap*, 2015, section 5.3).
    """
    tail = scipy.stats.t.ppf((1 - confidence) / 2, n - 1) * math.sqrt(n / (n - 1))
    return float(1 - 2 * scipy.stats.norm.cdf(tail))


def estimate(
    statistic: Callable[..., np.ndarray],
    *samples: Sample,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic of independent samples with its stratified-bootstrap interval.

    Args:
      statistic: of as many samples as given; works on leading axes.
      samples: tasks in the same order in each, every task with at least one score.
      confidence: of the interval, as a share.
      resamples: bootstrap resamples.
      seed: of the bootstrap, fixed so that the same scores give the same interval.

    Raises:
      ValueError: an empty sample, or a score that is not finite.
    """
    plain = _checked(samples)
    rng = np.random.default_rng(seed)
    drawn = [[scores[rng.integers(0, scores.size, (resamples, scores.size))] for scores in sample] for sample in plain]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(statistic(*drawn), [tail, 100 - tail])
    return Estimate(
        n=sum(scores.size for scores in plain[0]),
        value=float(statistic(*plain)),
        low=float(low),
        high=float(high),
        fewest=min(scores.size for sample in plain for scores in sample),
    )


def _checked(samples: Sequence[Sample]) -> list[list[np.ndarray]]:
    """Scores as they can be reckoned with."""
    listed = [[*sample] for sample in samples]
    tasks = [[sample] if all(np.ndim(scores) == 0 for scores in sample) else sample for sample in listed]
    plain = [[np.asarray(scores, np.float64) for scores in sample] for sample in tasks]
    if not plain or any(not sample or any(s.size == 0 or not np.isfinite(s).all() for s in sample) for sample in plain):
        raise ValueError("statistics need at least one finite score for each task.")
    return plain


def summarize(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Mean, spread and a 95 % bootstrap interval of the mean of independent values, widened for few (`for_few`).

    Args:
      values: `[n]`, at least one; one that is not finite makes all of it so.
      resamples: bootstrap resamples.
      seed: of the bootstrap.
    """
    values = np.asarray(values, np.float64)
    std = float(values.std(ddof=1)) if values.size > 1 else 0.0
    if not np.isfinite(values).all():
        return Summary(values.size, float(values.mean()), std, math.nan, math.nan)
    confidence = for_few(0.95, values.size) if values.size > 1 else 0.95
    found = estimate(mean, [values], confidence=confidence, resamples=resamples, seed=seed)
    return Summary(found.n, found.value, std, found.low, found.high)
