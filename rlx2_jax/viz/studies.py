"""Studies as pictures: learning curves with bands, scores with intervals, and what the mechanisms did."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rlx2_jax import statistics
from rlx2_jax.statistics import Estimate
from rlx2_jax.viz.curves import COLORS, tidy

Lines = Sequence[Mapping[str, Any]]
"""Runs of one arm, as in runs.jsonl."""

RESAMPLES = 500
"""For a band, which is drawn and not read."""

LABEL_WIDTH = 9
"""Characters beside each other under a bar; a longer name goes on in the next line after a hyphen."""


def draw_arms(
    arms: Mapping[str, Lines], estimates: Mapping[str, Estimate], baseline: Estimate | None, title: str
) -> Figure:
    """Learning curves of all arms, and their scores beside each other.

    Args:
      arms: runs by arm.
      estimates: of the mean score, by arm.
      baseline: the dense agent's, drawn as a line with a band.
      title: of the picture.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    colors = _colors(arms)
    for name, lines in arms.items():
        _band(left, lines, "return_mean", colors[name], name)
    cloned = any(line["kind"] == "cloning" for lines in arms.values() for line in lines)
    left.set(
        title=title,
        xlabel="updates" if cloned else "environment steps",
        ylabel="return per episode (mean, 95 % interval)",
    )
    left.legend(loc="best", frameon=False, fontsize=8)
    for i, (name, lines) in enumerate(arms.items()):
        found = estimates[name]
        right.bar(i, found.value, color=colors[name], alpha=0.55, width=0.7)
        if found.fewest > 1:
            right.errorbar(
                i, found.value, [[found.value - found.low], [found.high - found.value]], color="black", capsize=4
            )
        right.plot(
            [i + 0.18] * len(lines), [line["score"] for line in lines], "o", color=colors[name], ms=4, mec="white"
        )
    if baseline is not None:
        right.axhline(baseline.value, color="black", lw=0.8, ls="--")
        if baseline.fewest > 1:
            right.axhspan(baseline.low, baseline.high, color="black", alpha=0.07, lw=0)
    # A bar is narrower than a long name.
    labels = [f"{textwrap.fill(name, LABEL_WIDTH)}\nn={len(lines)}" for name, lines in arms.items()]
    right.set_xticks(range(len(arms)), labels, fontsize=8)
    right.set(title="score, 95 % interval and every seed", ylabel="return per episode")
    tidy(left)
    right.spines[["top", "right"]].set_visible(False)
    right.grid(axis="y", alpha=0.25)
    return figure


def draw_buffer(arms: Mapping[str, Lines], threshold: float, title: str) -> Figure:
    """Transitions kept and policy distance over time, by arm."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    kept, distance = figure.subplots(1, 2)
    colors = _colors(arms)
    for name, lines in arms.items():
        _band(kept, lines, "replay_size", colors[name], name)
        _band(distance, lines, "policy_distance", colors[name], name)
    kept.set(title=f"{title}: transitions kept", xlabel="environment steps", ylim=(0, None))
    distance.axhline(threshold, color="black", lw=0.8, ls="--")
    distance.set(title="policy distance of the oldest (dashed: threshold)", xlabel="environment steps", ylim=(0, None))
    kept.legend(loc="upper left", frameon=False, fontsize=8)
    tidy(kept)
    tidy(distance)
    return figure


def draw_sparsity(methods: Mapping[str, Mapping[float, Estimate]], title: str) -> Figure:
    """Return in percent of the dense agent's over sparsity, by method."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for color, (name, found) in zip(itertools.cycle(COLORS), methods.items(), strict=False):
        densities = [100 * (1 - sparsity) for sparsity in found]
        value, low, high = (100 * np.array([getattr(e, k) for e in found.values()]) for k in ("value", "low", "high"))
        axis.fill_between(densities, low, high, color=color, alpha=0.15, lw=0)
        axis.plot(densities, value, color=color, marker="o", ms=4, label=name)
    axis.axhline(100, color="black", lw=0.8, ls="--")
    axis.axhline(97, color="black", lw=0.5, ls=":")
    axis.set_xscale("log")
    axis.invert_xaxis()
    ticks = sorted({round(100 * (1 - s), 6) for found in methods.values() for s in found})
    axis.set_xticks(ticks, [f"{100 - tick:g} %" for tick in ticks])
    axis.minorticks_off()
    axis.set(title=title, xlabel="sparsity of actor and critics", ylabel="score, % of dense (95 % interval)")
    axis.legend(loc="best", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return figure


def _colors(arms: Mapping[str, Any]) -> dict[str, str]:
    """Grey for the dense agent, the others in order."""
    others = [name for name in arms if name != "dense"]
    return {"dense": COLORS[-1], **{name: COLORS[i % (len(COLORS) - 1)] for i, name in enumerate(others)}}


def _band(axis: Any, lines: Lines, name: str, color: str, label: str) -> None:
    """Mean with its interval over the seeds that have the evaluation: a diverged run has none after its end."""
    found = [(line["evaluations"]["steps"], line["evaluations"][name]) for line in lines if name in line["evaluations"]]
    at: dict[int, list[float]] = {}
    for steps, values in found:
        for step, value in zip(steps, values, strict=True):
            if value is not None:
                at.setdefault(step, []).append(value)
    steps = sorted(at)
    points = [statistics.estimate(statistics.mean, [np.array(at[step])], resamples=RESAMPLES) for step in steps]
    axis.fill_between(steps, [p.low for p in points], [p.high for p in points], color=color, alpha=0.15, lw=0)
    axis.plot(steps, [p.value for p in points], color=color, label=label, lw=1.5)
