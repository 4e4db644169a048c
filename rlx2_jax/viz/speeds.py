"""A benchmark as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLORS = {"dense": "#5c5c5c", "tiny": "#e08e2b", "masked": "#0b62a4", "packed": "#d1495b"}
"""Colour of each mode."""
ENVIRONMENTS = {"rlx2": "#d1495b", "batch": "#0b62a4", "brax": "#e08e2b"}
"""Colour of each way to step environments."""


def draw(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Updates per second of each mode, one panel per width; a tick marks the floor that the mode cannot pass."""
    widths = sorted({r["width"] for r in results})
    rows = {w: list(dict.fromkeys((r["agent"], r["env"]) for r in results if r["width"] == w)) for w in widths}
    modes = [mode for mode in COLORS if any(r["mode"] == mode for r in results)]
    counts = [len(rows[width]) for width in widths]
    figure = Figure(figsize=(2.2 + 0.75 * sum(counts), 4.2), layout="constrained")
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=counts)[0]
    step = 0.8 / len(modes)
    for panel, width in zip(panels, widths, strict=True):
        for result in (r for r in results if r["width"] == width):
            mode = result["mode"]
            x = rows[width].index((result["agent"], result["env"])) - 0.4 + step * (modes.index(mode) + 0.5)
            panel.bar(x, result["updates_per_second"], step * 0.9, color=COLORS[mode])
            panel.plot([x - step / 2, x + step / 2], [result["floor_updates_per_second"]] * 2, color="black", lw=1.2)
        panel.set_yscale("log")
        panel.set_xticks(range(len(rows[width])), [f"{agent}\n{env}" for agent, env in rows[width]], fontsize=8)
        panel.set_title(f"width {width}", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("updates per second (log scale)")
    for mode in modes:
        panels[0].bar(0, 0, color=COLORS[mode], label=mode)
    panels[0].plot([], [], color="black", lw=1.2, label="floor")
    figure.legend(loc="outside upper center", ncols=len(modes) + 1, frameon=False)
    return figure


def draw_sweep(
    results: Sequence[Mapping[str, Any]], alone: float, processes: Mapping[str, float], title: str
) -> Figure:
    """Aggregate updates per second over the number of runs in one program, and what other ways of running them give."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    runs = [result["runs"] for result in results]
    axis.plot(runs, [result["updates_per_second"] for result in results], marker="o", color="#0b62a4", label="together")
    axis.axhline(alone, color="#5c5c5c", ls="--", lw=1.2, label="one by one")
    for compute, speed in processes.items():
        axis.axhline(speed, color=COLORS[compute], ls=":", lw=1.6, label=f"processes, {compute}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(runs, [str(count) for count in runs])
    axis.set(xlabel="runs at once", ylabel="updates per second, all runs", title=title)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def draw_env(results: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Environment steps per second of each contestant, by task, with quartiles."""
    tasks, names = (list(dict.fromkeys(result[field] for result in results)) for field in ("task", "contestant"))
    figure = Figure(figsize=(2.5 + 1.3 * len(tasks), 4.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        own = [result for result in results if result["contestant"] == name]
        speeds = np.array([result["steps_per_second"] for result in own])
        quartiles = np.array([result["steps_per_second_quartiles"] for result in own])
        errors = np.abs(quartiles.T - speeds)
        places = [tasks.index(result["task"]) - 0.4 + width * (i + 0.5) for result in own]
        axis.bar(places, speeds, width * 0.9, yerr=errors, color=ENVIRONMENTS[name], label=name)
    axis.set_yscale("log")
    axis.set_xticks(range(len(tasks)), tasks, fontsize=8)
    axis.set(ylabel="environment steps per second (log scale)", title=title)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    return figure
