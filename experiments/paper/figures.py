"""Studies as pictures: learning curves with bands, scores with intervals, and what the mechanisms did."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlx2_jax.analysis import statistics
from rlx2_jax.analysis.statistics import Estimate
from rlx2_jax.viz.curves import COLORS, tidy

Lines = Sequence[Mapping[str, Any]]
"""Runs of one arm, as in runs.jsonl."""

RESAMPLES = 500
"""Bootstrap resamples of a band, which is drawn and not read as a number."""

LABEL_WIDTH = 9
"""Characters beside each other under a bar; a longer name goes on in the next line at spaces, hyphens, `_` and `=`."""

SLANTED = 6
"""Bars beside which more leave no room for long names."""

TITLE_WIDTH, SLANTED_WIDTH = 22, 34
"""Characters in a line over a panel, and of a slanted name; longer ones go on in the next line at spaces."""


MORE_COLORS = ("#1b9aaa", "#a0522d", "#c2408f", "#7c8a00", "#4b4fb0", "#c9a227", "#6b6b47")
"""For arms of a study beyond the fourth, so that eleven beside the focus and the dense agent have one each."""


def arm_colors(arms: Sequence[str], focus: str) -> dict[str, str]:
    """A colour for each arm of a study, the same in all its pictures, whichever of them have runs.

    Grey for the dense agent, the first one for the focus, the arm that the study is about, the others in order.
    """
    others = [name for name in arms if name not in ("dense", focus)]
    cycle = dict(zip(others, itertools.cycle(COLORS[1:-1] + MORE_COLORS), strict=False))
    return {"dense": COLORS[-1], focus: COLORS[0], **cycle}


def draw_arms(
    arms: Mapping[str, Lines],
    estimates: Mapping[str, Estimate],
    baseline: Estimate | None,
    title: str,
    colors: Mapping[str, str],
) -> Figure:
    """Learning curves, a panel per arm, and the scores of all arms beside each other.

    Args:
      arms: runs by arm.
      estimates: of the mean score, by arm.
      baseline: the dense agent's, drawn as a line with a band beside the scores; if it is one of the arms, its mean
        curve is in the other arms' panels too.
      title: of the picture.
      colors: of `arm_colors`.
    """
    columns = math.ceil(math.sqrt(len(arms)))
    rows = math.ceil(len(arms) / columns)
    figure = Figure(figsize=(12, max(4.8, 2 * rows)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.7, 1], squeeze=False)[0]
    panels = left.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    cloned = any(line["kind"] == "cloning" for lines in arms.values() for line in lines)
    for panel, (name, lines) in zip(panels.flat, arms.items(), strict=False):
        _band(panel, lines, "return_mean", colors[name], name)
        _seeds(panel, lines, "return_mean", colors[name])
        if "dense" in arms and name != "dense":
            steps, points = _means(arms["dense"], "return_mean")
            panel.plot(steps, [p.value for p in points], color=colors["dense"], lw=0.8, ls="--")
        panel.set_title(_broken(name, TITLE_WIDTH), fontsize=9, color=colors[name])
        tidy(panel)
    for panel, above in zip(panels.flat[len(arms) :], panels.flat[len(arms) - columns :], strict=False):
        panel.set_visible(False)
        above.tick_params(labelbottom=True)
    dashed = ", dashed: dense" if "dense" in arms else ""
    left.suptitle(f"{title}\nthin: seeds, thick: mean, band: its 95 % interval{dashed}", fontsize=10)
    left.supxlabel("updates" if cloned else "environment steps", fontsize=9)
    left.supylabel("return per episode", fontsize=9)
    _draw_scores(right.subplots(), arms, estimates, baseline, colors)
    return figure


def _broken(name: str, width: int) -> str:
    """A name in lines of about a width, broken at spaces alone."""
    return textwrap.fill(name, width, break_long_words=False, break_on_hyphens=False)


def _draw_scores(
    axis: Axes,
    arms: Mapping[str, Lines],
    estimates: Mapping[str, Estimate],
    baseline: Estimate | None,
    colors: Mapping[str, str],
) -> None:
    for i, (name, lines) in enumerate(arms.items()):
        found = estimates[name]
        axis.bar(i, found.value, color=colors[name], alpha=0.45, width=0.7)
        if found.fewest > 1:
            axis.errorbar(
                i - 0.15, found.value, [[found.value - found.low], [found.high - found.value]], color="black", capsize=4
            )
        # Beside each other, so that equal scores do not hide one another.
        places = i + np.linspace(0.02, 0.28, len(lines)) if len(lines) > 1 else [i + 0.15]
        scores = [line["score"] for line in sorted(lines, key=lambda line: line["seed"])]
        axis.plot(places, scores, "o", color=colors[name], ms=4.5, mec="black", mew=0.5)
    if baseline is not None:
        axis.axhline(baseline.value, color="black", lw=0.8, ls="--", label="dense, with its interval")
        if baseline.fewest > 1:
            axis.axhspan(baseline.low, baseline.high, color="black", alpha=0.07, lw=0)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    # A bar is narrower than a long name: it is broken, or slanted where bars are many.
    if len(arms) > SLANTED and max(map(len, arms)) > LABEL_WIDTH:
        labels = [_broken(f"{name}, n={len(lines)}", SLANTED_WIDTH) for name, lines in arms.items()]
        axis.set_xticks(range(len(arms)), labels, fontsize=8, rotation=60, ha="right", rotation_mode="anchor")
    else:
        names = [name if len(name) <= LABEL_WIDTH else re.sub(r"(?<=[-_=@])| ", "\n", name) for name in arms]
        labels = [f"{name}\nn={len(lines)}" for name, lines in zip(names, arms.values(), strict=True)]
        axis.set_xticks(range(len(arms)), labels, fontsize=8)
    axis.set(ylabel="score: seeds, mean, 95 % interval", xlim=(-0.6, max(len(arms), 3) - 0.4))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)


def draw_buffer(
    arms: Mapping[str, Lines], threshold: float, least: int, title: str, colors: Mapping[str, str]
) -> Figure:
    """Transitions kept and policy distance over time, by arm.

    Args:
      arms: runs by arm.
      threshold: policy distance above which a dynamic buffer drops old data.
      least: transitions that it never drops.
      title: of the picture.
      colors: of `arm_colors`.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    figure.suptitle(f"{title} (thin: seeds, thick: mean)")
    kept, far = figure.subplots(1, 2)
    for name, lines in arms.items():
        for axis, column in ((kept, "replay_size"), (far, "policy_distance")):
            _seeds(axis, lines, column, colors[name])
            steps, points = _means(lines, column)
            axis.plot(steps, [p.value for p in points], color=colors[name], lw=2, label=name)
    kept.axhline(least, color="black", lw=0.8, ls=":", label="fewest that a dynamic one keeps")
    kept.set(xlabel="environment steps", ylabel="transitions kept", yscale="log")
    far.axhline(threshold, color="black", lw=0.8, ls="--", label="threshold")
    far.set(xlabel="environment steps", ylabel="policy distance of the oldest", ylim=(0, None))
    for axis in (kept, far):
        tidy(axis)
    handles = [*kept.get_legend_handles_labels()[0], far.get_legend_handles_labels()[0][-1]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
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
    axis.axhline(100, color="black", lw=0.8, ls="--", label="dense")
    axis.axhline(97, color="black", lw=0.8, ls=":", label="97 % of dense")
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


def _seeds(axis: Axes, lines: Lines, name: str, color: str) -> None:
    """Every run as a thin line."""
    for line in lines:
        found = line["evaluations"]
        if name in found:
            values = [np.nan if value is None else value for value in found[name]]
            axis.plot(found["steps"], values, color=color, lw=0.5, alpha=0.6)


def _band(axis: Axes, lines: Lines, name: str, color: str, label: str) -> None:
    """Mean with its interval."""
    steps, points = _means(lines, name)
    axis.fill_between(steps, [p.low for p in points], [p.high for p in points], color=color, alpha=0.15, lw=0)
    axis.plot(steps, [p.value for p in points], color=color, label=label, lw=1.5)


def _means(lines: Lines, name: str) -> tuple[list[int], list[Estimate]]:
    """Means over the seeds that have the evaluation: a diverged run has none after its end."""
    found = [(line["evaluations"]["steps"], line["evaluations"][name]) for line in lines if name in line["evaluations"]]
    at: dict[int, list[float]] = {}
    for steps, values in found:
        for step, value in zip(steps, values, strict=True):
            if value is not None:
                at.setdefault(step, []).append(value)
    steps = sorted(at)
    return steps, [statistics.estimate(statistics.mean, [np.array(at[step])], resamples=RESAMPLES) for step in steps]
