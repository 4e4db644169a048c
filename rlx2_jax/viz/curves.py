"""Learning curves as pictures."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlx2_jax import files

Rows = Sequence[Mapping[str, Any]]
"""Lines of a `metrics.jsonl`."""

COLORS = ("#0b62a4", "#d1495b", "#2e8b57", "#8d6a9f", "#e08e2b", "#5c5c5c")
"""One per curve, in order."""


def column(rows: Rows, name: str) -> np.ndarray:
    """One metric over the rows; null becomes NaN."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)


def draw_run(rows: Rows, title: str) -> Figure:
    """One run: return with the spread over evaluation episodes, what the three mechanisms did, and diagnostics.

    Rows of runs from before there were diagnostics make a picture without them.
    """
    diagnosed = any("value_bias" in row for row in rows)
    layout: list[Any] = [["return"] * 3, ["links", "buffer", "value"], ["overlap", "dormant", "bias"]][: 2 + diagnosed]
    figure = Figure(figsize=(9, 8.2 if diagnosed else 6.2), layout="constrained")
    axes = figure.subplot_mosaic(layout, height_ratios=[1.7, 1, 1][: len(layout)])
    steps = column(rows, "env_steps")
    mean, std = column(rows, "return_mean"), column(rows, "return_std")
    axes["return"].fill_between(steps, mean - std, mean + std, color=COLORS[0], alpha=0.18, lw=0)
    axes["return"].plot(steps, mean, color=COLORS[0], marker="o", ms=3, label="mean")
    axes["return"].plot([], [], color=COLORS[0], alpha=0.3, lw=7, label="± 1 std over episodes")
    axes["return"].set(title=title, ylabel="return per episode")
    axes["return"].legend(loc="lower right", frameon=False)

    axes["links"].plot(steps, column(rows, "links_grown"), color=COLORS[2])
    axes["links"].set(title="links moved per point", ylim=(0, None))
    axes["buffer"].plot(steps, column(rows, "replay_size"), color=COLORS[3])
    axes["buffer"].set(title="transitions kept; policy distance", ylim=(0, None))
    distance = axes["buffer"].twinx()
    distance.plot(steps, column(rows, "policy_distance"), color=COLORS[4], lw=1, ls="--")
    distance.set_ylim(0, None)
    distance.tick_params(colors=COLORS[4])
    axes["value"].plot(steps, column(rows, "q_mean"), color=COLORS[1])
    axes["value"].set(title="mean Q on batches")
    if diagnosed:
        _draw_diagnostics(axes, rows)
    for axis in axes.values():
        tidy(axis)
        axis.set_xlabel("environment steps")
    return figure


def _draw_diagnostics(axes: Mapping[str, Any], rows: Rows) -> None:
    steps = column(rows, "env_steps")
    for name, color in (("actor", COLORS[0]), ("critic", COLORS[1])):
        axes["overlap"].plot(steps, column(rows, f"{name}_overlap"), color=color, label=name)
        axes["dormant"].plot(steps, column(rows, f"{name}_dormant"), color=color, label=name)
    axes["overlap"].set(title="links as at the start", ylim=(0, 1.03))
    axes["dormant"].set(title="dormant hidden units", ylim=(0, None))
    paid = column(rows, "return_discounted")
    axes["bias"].plot(steps, paid + column(rows, "value_bias"), color=COLORS[1], label="Q")
    axes["bias"].plot(steps, paid, color=COLORS[5], lw=1, ls="--", label="return")
    axes["bias"].set(title="Q and return at the start")
    for name in ("overlap", "dormant", "bias"):
        axes[name].legend(loc="best", frameon=False, fontsize="small")


def draw_comparison(runs: Mapping[str, Rows], title: str) -> Figure:
    """The returns of several runs in one picture, with the spread over evaluation episodes."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for color, (name, rows) in zip(itertools.cycle(COLORS), runs.items(), strict=False):
        steps, mean, std = (column(rows, k) for k in ("env_steps", "return_mean", "return_std"))
        axis.fill_between(steps, mean - std, mean + std, color=color, alpha=0.15, lw=0)
        axis.plot(steps, mean, color=color, label=name)
    axis.set(title=title, xlabel="environment steps", ylabel="return per episode (± 1 std over episodes)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    tidy(axis)
    return figure


def png(figure: Figure, source: str | None = None) -> bytes:
    """A figure as a PNG file's bytes, with a word on its data kept inside."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Source": source} if source else None)
    return buffer.getvalue()


def save(figure: Figure, path: Path, source: str | None = None) -> None:
    """Write a figure as PNG; see `png`."""
    files.write_bytes(path, png(figure, source))


def tidy(axis: Any) -> None:
    """The look of all panels."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.margins(x=0.01)
    axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))
