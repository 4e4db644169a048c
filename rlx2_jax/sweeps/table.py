"""The table of a sweep: one row per run, as CSV and JSON, complete at any time."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax.io import files
from rlx2_jax.sweeps.plans import Plan, PlannedRun
from rlx2_jax.training import workdirs
from rlx2_jax.training.record import Row

Line = dict[str, Any]
"""One run in the table."""


Listener = Callable[[Plan, Sequence[Line]], None]
"""Wants to know of every table that is written."""


class Standing(NamedTuple):
    """Where a run is. The table holds no clocks: a sweep that was stopped ends with the same one."""

    rows: Sequence[Row] = ()
    """Rows of its evaluations."""
    finished: bool = False
    """Whether it came to its end."""
    diverged: int | None = None
    """Environment steps after which its values were no longer finite."""


def lines(plan: Plan, standings: Mapping[str, Standing]) -> list[Line]:
    """The table, in the plan's order."""
    return [_line(run, plan.fields, standings.get(run.name, Standing())) for run in plan.runs]


def write(workdir: Path, table: Sequence[Line]) -> None:
    """Replace sweep.csv and sweep.json."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    files.write_bytes(workdir / "sweep.csv", text.getvalue().encode())
    files.write_json(workdir / "sweep.json", list(table))


def means_text(table: Sequence[Line]) -> str:
    """Mean of the last returns of each method's runs, and how many have one, in words."""
    found: dict[str, list[float]] = {}
    for line in table:
        if line["last"] is not None:
            found.setdefault(line["method"], []).append(line["last"])
    return "  ".join(f"{method} {np.mean(last):.5g} (n={len(last)})" for method, last in found.items())


def _line(run: PlannedRun, fields: Sequence[str], standing: Standing) -> Line:
    c, rows = run.config, standing.rows
    scores = workdirs.last_scores(list(rows), c.score_evaluations)
    plain = c.to_dict()
    return {
        "env": c.env,
        "agent": c.agent,
        "method": c.method,
        "actor_sparsity": c.actor_sparsity,
        "critic_sparsity": c.critic_sparsity,
        "seed": c.seed,
        **{name: plain[name] for name in fields},
        "score": float(np.mean(scores)) if scores else None,
        "best": max((row["return_mean"] for row in rows), default=None),
        "last": rows[-1]["return_mean"] if rows else None,
        "env_steps": rows[-1]["env_steps"] if rows else 0,
        "nonfinite": rows[-1].get("nonfinite", 0) if rows else 0,
        "finished": standing.finished,
        "diverged": standing.diverged is not None,
        "run": run.name,
    }
