"""Runs beside each other: a panel per task and agent, a curve per setting, seeds taken together."""

from __future__ import annotations

import itertools
import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rlx2_jax.analysis import statistics
from rlx2_jax.envs import JAX
from rlx2_jax.viz.curves import Rows, column, legible, plain_text, tidy

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by those who do not see all colours (Okabe and Ito, 2008)."""

STYLES = ("-", "--", "-.", ":")
"""The next one when the colours are used up."""

BANDS = {True: "95 % interval of the mean over seeds", False: "± 1 std over the episodes of an evaluation"}
"""What a band is, for several seeds and for one."""

UNTOLD = frozenset({"env", "backend", "agent", "seed", "actor_sparsity", "critic_sparsity"})
"""Fields that make a panel, that are taken together, or that are told in one."""

RESAMPLES = 500
"""Bootstrap resamples of a band, which is drawn and not read as a number."""

WRAP = 70
"""Characters in a line of a title."""


class DrawnRun(NamedTuple):
    """One run to be drawn."""

    name: str
    """Name of its directory, which tells it from runs that differ in nothing else."""
    config: Mapping[str, Any]
    """Resolved, as in config.json, without what only says how it was computed."""
    rows: Rows
    """Its evaluations."""


Panels = Mapping[str, Mapping[str, Sequence[Rows]]]
"""Runs of all seeds, by task and agent in words, then by setting in words."""


def arrange(runs: Sequence[DrawnRun]) -> Panels:
    """Runs by task and agent, then by what they differ in; those that differ in the seed alone stand together."""
    tasks: dict[str, list[DrawnRun]] = {}
    for run in runs:
        tasks.setdefault(_task(run.config), []).append(run)
    panels: dict[str, dict[str, list[Rows]]] = {}
    for task, members in tasks.items():
        groups = panels[task] = {}
        for run, label in zip(members, _labels([*_settings(members)]), strict=True):
            groups.setdefault(label, []).append(run.rows)
    return panels


def _settings(runs: Sequence[DrawnRun]) -> Iterator[dict[str, Any]]:
    """What makes a curve of its own, first what names it best; a run that was there before has its directory, too."""
    taken = set[str]()
    for run in runs:
        key = json.dumps(run.config, sort_keys=True)
        sparsity = [run.config["actor_sparsity"], run.config["critic_sparsity"]]
        again = {"run": run.name} if key in taken else {}
        taken.add(key)
        rest = {name: value for name, value in run.config.items() if name not in UNTOLD}
        yield {"method": run.config["method"], "sparsity": sparsity} | rest | again


def _task(config: Mapping[str, Any]) -> str:
    own = config["backend"] == JAX or config["env"].startswith("probe/")  # Probes once had the name of another.
    backend = "" if own else f" ({config['backend']})"
    return f"{config['agent'].upper()} on {config['env']}{backend}"


def _labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each setting in words: as few fields as tell all of them apart; its method if none does."""
    plain = [json.dumps(each, sort_keys=True) for each in settings]
    parts: list[list[str]] = [[] for _ in settings]
    known: list[tuple[str, ...]] = [() for _ in settings]
    for name in dict.fromkeys(name for each in settings for name in each):
        values = [json.dumps(each.get(name)) for each in settings]
        finer = [(*before, value) for before, value in zip(known, values, strict=True)]
        if len(set(finer)) == len(set(known)) or len(set(known)) == len(set(plain)):
            continue
        known = finer
        for part, each in zip(parts, settings, strict=True):
            if name in each:
                part.append(_words(name, each[name]))
    return [
        ", ".join(filter(None, part)) or str(each.get("method", "run"))
        for part, each in zip(parts, settings, strict=True)
    ]


def _words(name: str, value: Any) -> str:
    if name in ("method", "run"):
        return str(value)
    if name == "sparsity":
        return " / ".join(f"{100 * share:.10g} %" for share in value) + " sparse" if any(value) else ""
    return f"{name} {'x'.join(map(str, value)) if isinstance(value, list) else value}"


@plain_text
def draw(panels: Panels, title: str | None = None) -> Figure:
    """The returns of runs: a panel per task and agent, a curve per setting, with what its band is.

    Args:
      panels: of `arrange`.
      title: over all; a single panel's own without.
    """
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    names = list(dict.fromkeys(name for groups in panels.values() for name in groups))
    looks = dict(zip(names, itertools.cycle(itertools.product(STYLES, COLORS)), strict=False))
    handles = _legend(panels, looks)
    beside = 1 if columns == 1 else 2
    height = 3.3 * rows + 0.22 * math.ceil(len(handles) / beside) + 0.4
    figure = Figure(figsize=(max(7.0, 4.6 * columns), height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (task, groups) in zip(axes.flat, panels.items(), strict=False):
        for name, runs in groups.items():
            style, color = looks[name]
            steps, middle, low, high = _curve(runs)
            axis.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)
            axis.plot(steps, middle, color=color, ls=style, lw=1.8)
        axis.set(title=_wrapped(task), xlabel="environment steps", ylabel="return per episode")
        tidy(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if title is not None and len(panels) > 1:
        figure.suptitle(_wrapped(title))
    elif title is not None:
        axes[0, 0].set_title(_wrapped(title))
    figure.legend(handles=handles, loc="outside lower center", ncols=beside, frameon=False, fontsize=9)
    return figure


def _legend(panels: Panels, looks: Mapping[str, tuple[str, str]]) -> list[Artist]:
    """Each curve, and what its band is."""
    lines = [
        Line2D([], [], ls=style, color=color, lw=1.8, label=_counted(name, panels))
        for name, (style, color) in looks.items()
    ]
    several = sorted({len(runs) > 1 for groups in panels.values() for runs in groups.values()}, reverse=True)
    label = lambda many: f"band: {_which(many, several)}{BANDS[many]}"
    return [*lines, *(Patch(color="#888888", alpha=0.3, lw=0, label=label(many)) for many in several)]


def _which(many: bool, kinds: Sequence[bool]) -> str:
    return "" if len(kinds) == 1 else "of several seeds, " if many else "of one seed, "


def _counted(name: str, panels: Panels) -> str:
    counts = sorted({len(groups[name]) for groups in panels.values() if name in groups})
    seeds = " to ".join(str(count) for count in {counts[0]: 0, counts[-1]: 0})
    return f"{legible(name)} ({seeds} seed{'s' if counts[-1] > 1 else ''})"


def _wrapped(title: str) -> str:
    return textwrap.fill(legible(title), WRAP)


def _curve(runs: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, and mean, low and high there: over seeds, at the steps that all of them have; of one, over episodes."""
    if len(runs) == 1:
        steps, mean, std = (column(runs[0], name) for name in ("env_steps", "return_mean", "return_std"))
        return steps, mean, mean - std, mean + std
    returns = [dict(zip(column(rows, "env_steps"), column(rows, "return_mean"), strict=True)) for rows in runs]
    common = [step for step in returns[0] if all(math.isfinite(each.get(step, math.nan)) for each in returns)]
    confidence = statistics.for_few(0.95, len(runs))
    points = [
        statistics.estimate(
            statistics.mean, [np.array([each[step] for each in returns])], confidence=confidence, resamples=RESAMPLES
        )
        for step in common
    ]
    ends = np.array([(point.value, point.low, point.high) for point in points]).reshape(-1, 3)
    return np.array(common), ends[:, 0], ends[:, 1], ends[:, 2]
