"""Learning curves as pictures."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rlx2_jax.envs import JAX
from rlx2_jax.io import files

Rows = Sequence[Mapping[str, Any]]
"""Lines of a `metrics.jsonl`."""

COLORS = ("#0b62a4", "#d1495b", "#2e8b57", "#8d6a9f", "#e08e2b", "#5c5c5c")
"""One per curve, in order."""


def column(rows: Rows, name: str) -> np.ndarray:
    """One metric over the rows; null becomes NaN."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)


plain_text = matplotlib.rc_context({"text.parse_math": False})
"""Decorates what draws texts of a person's: a dollar sign is one."""


def legible(text: str) -> str:
    """A text as it was meant, from a command line or a file's name that Python could not decode."""
    return os.fsencode(text).decode("utf-8", "replace") if any("\ud800" <= c <= "\udfff" for c in text) else text


def headline(config: Mapping[str, Any]) -> str:
    """What a run is, in a line: method, agent, task, seed, sparsity of actor and critics."""
    backend = "" if config["backend"] == JAX else f" ({config['backend']})"
    shares = " / ".join(f"{100 * config[f'{name}_sparsity']:.10g} %" for name in ("actor", "critic"))
    return f"{config['method']} {config['agent']} on {config['env']}{backend}, seed {config['seed']}, sparsity {shares}"


@plain_text
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
    axes["return"].set(title=legible(title), ylabel="return per episode")
    axes["return"].legend(loc="best", frameon=False)

    axes["links"].plot(steps, column(rows, "links_grown"), color=COLORS[2], label="links")
    axes["links"].set(title="links moved per point", ylim=(0, max(1, axes["links"].get_ylim()[1])))
    axes["buffer"].plot(steps, column(rows, "replay_size"), color=COLORS[3], label="transitions")
    distance = axes["buffer"].twinx()
    distance.plot(steps, column(rows, "policy_distance"), color=COLORS[4], lw=1, ls="--")
    axes["buffer"].plot([], [], color=COLORS[4], lw=1, ls="--", label="distance (right)")
    for axis in (axes["buffer"], distance):
        axis.set_ylim(0, 1.6 * axis.get_ylim()[1])  # Room for the legend of both.
    axes["buffer"].set(title="transitions kept; policy distance")
    distance.tick_params(colors=COLORS[4])
    axes["value"].plot(steps, column(rows, "q_mean"), color=COLORS[1], label="Q")
    axes["value"].set(title="mean Q on batches")
    if diagnosed:
        _draw_diagnostics(axes, rows)
    for name, axis in axes.items():
        tidy(axis)
        axis.set_xlabel("environment steps")
        if name != "return":
            axis.title.set_fontsize(10)
            axis.legend(loc="upper left" if name in ("buffer", "bias") else "best", frameon=False, fontsize="small")
    return figure


def _draw_diagnostics(axes: Mapping[str, Any], rows: Rows) -> None:
    steps = column(rows, "env_steps")
    for name, color in (("actor", COLORS[0]), ("critic", COLORS[1])):
        axes["overlap"].plot(steps, column(rows, f"{name}_overlap"), color=color, label=name)
        axes["dormant"].plot(steps, column(rows, f"{name}_dormant"), color=color, label=name)
    axes["overlap"].set(title="share of links as at the start", ylim=(0, 1.03))
    axes["dormant"].set(title="share of hidden units dormant", ylim=(0, None))
    paid = column(rows, "return_discounted")
    axes["bias"].plot(steps, paid + column(rows, "value_bias"), color=COLORS[1], label="Q")
    axes["bias"].plot(steps, paid, color=COLORS[5], lw=1, ls="--", label="discounted return")
    axes["bias"].set(title="value at the start of episodes")
    low, high = axes["bias"].get_ylim()
    axes["bias"].set_ylim(low, high + 0.5 * (high - low))  # Room for the legend of both.


FORMATS = (".png", ".pdf", ".svg")
"""Endings of the files that a picture can be written to."""


def render(figure: Figure, ending: str, source: str | None = None) -> bytes:
    """A figure as the bytes of a file of one of `FORMATS`, with a word on its data kept inside."""
    buffer = io.BytesIO()
    about: dict[str, str | None] = {"Subject" if ending == ".pdf" else "Source": source} if source else {}
    # The same picture is the same file.
    if ending in (dated := {".pdf": "CreationDate", ".svg": "Date"}):
        about[dated[ending]] = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # A box in its place says so.
        figure.savefig(buffer, format=ending[1:], metadata=about)
    return buffer.getvalue()


def save(figure: Figure, path: Path, source: str | None = None) -> None:
    """Write a figure as what the path's ending says; see `render`."""
    files.write_bytes(path, render(figure, path.suffix.lower(), source))


def tidy(axis: Any) -> None:
    """The look of all panels."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.margins(x=0.01)
    axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))
