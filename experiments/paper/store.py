"""What is kept of a study's runs: `runs.jsonl`, one line per run, small enough to be committed.

Runs append. A line holds the run's whole configuration, so that a run which any study has recorded is not made again,
its evaluations, and where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paper.study import Run
from rlx2_jax.config import Config, RunConfig, resolve
from rlx2_jax.errors import ConfigError, FileError
from rlx2_jax.io import archives, files, lock
from rlx2_jax.networks import masking
from rlx2_jax.policies import tickets
from rlx2_jax.training import workdirs

FILE = "runs.jsonl"

Line = dict[str, Any]
"""One run."""

LEARNING, CLONING = "learning", "cloning"
"""Kinds of runs: reinforcement learning, and imitation of a trained agent, whose steps are updates."""

COLUMNS = (
    "return_mean",
    "return_std",
    "replay_size",
    "policy_distance",
    "links_grown",
    *("actor_overlap", "critic_overlap", "actor_dead", "critic_dead", "actor_dormant", "critic_dormant"),
    "critic_rank",
    "value_bias",
)
"""What is kept of every evaluation."""

DIGITS = 6
"""Significant ones of what is kept of an evaluation."""

COPIED = ("size_ratio", "flops_train_ratio", "flops_test_ratio", "updates_per_second", "wall_seconds")
"""What is kept of a summary as it is."""

ALWAYS_ZERO: Mapping[str, range] = {"Ant-v3": range(27, 111)}
"""Observations that are always zero, by task: those of contact forces, as under MuJoCo 2.0."""

DEAD_INPUTS = "dead_inputs"
"""Of a task with observations that are always zero: for each network, when a run began and when it ended, how many
links of the first layer come from those, and how many it has. Both critics count together."""

PROVENANCE = ("command", "commit", "device", "versions", "compute")


KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("study", "row", "arm", "kind", "agent", "env", "method"), str),
    **dict.fromkeys(("evaluations", "conditions", "provenance", "config"), dict),
    "score": int | float,
    "seed": int,
    "diverged": bool,
}
"""Types of the values of a line, which reports count on."""

MEND = "restore it from its repository"


def read(directory: Path) -> list[Line]:
    """The lines of a study's directory.

    Raises:
      FileError: a line that cannot be read, or is none of a run's.
    """
    path = directory / FILE
    lines = files.read_json_lines(path, MEND, whole=True)
    for number, line in enumerate(lines, 1):
        try:
            archives.require(line, KINDS)
        except ValueError as error:
            raise FileError(f"{path} is damaged ({error}, line {number}); {MEND}.") from None
    return lines


def append(directory: Path, lines: Iterable[Line]) -> None:
    """Add runs that the directory does not hold yet; several processes may do so at once."""
    wanted = list(lines)
    if not wanted:
        return
    with files.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with lock.alone(directory):
        kept = {name_of(line): line for line in read(directory)}
        before = len(kept)
        for line in wanted:
            kept.setdefault(name_of(line), line)
        if len(kept) > before:
            files.write_json_lines(directory / FILE, list(kept.values()))


def of_directory(run: Run, study: str, directory: Path, *, diverged: bool) -> Line:
    """The line of a run, or a clone, that is at its end.

    Args:
      run: which it is in the study.
      study: its name.
      directory: of the run, as `training.workdirs` describes it.
      diverged: whether its values stopped being finite; its lowest evaluation is then its score.
    """
    c = run.config
    kind, unit = (LEARNING, "env_steps") if run.teacher is None else (CLONING, "updates")
    rows = workdirs.read_rows(directory, unit)
    summary = files.read_json(directory / "summary.json", {})
    last = workdirs.last_scores(rows, c.score_evaluations)
    if diverged:
        # What it reached is not what it would have ended with; before its first evaluation it has earned nothing.
        last = [min((row["return_mean"] for row in rows), default=0.0)]
    return {
        "study": study,
        "row": run.row,
        "arm": run.arm,
        "kind": kind,
        "agent": c.agent,
        "env": c.env,
        "backend": c.backend,
        "method": c.method,
        "actor_sparsity": c.actor_sparsity,
        "critic_sparsity": c.critic_sparsity,
        "seed": c.seed,
        unit: rows[-1][unit] if rows else 0,
        "score": float(np.mean(last)),
        "score_evaluations": len(last),
        "best": max((row["return_mean"] for row in rows), default=None),
        "diverged": diverged,
        **{name: summary.get(name) for name in COPIED},
        "evaluations": {
            "steps": [row[unit] for row in rows],
            **{name: [_rounded(row.get(name)) for row in rows] for name in COLUMNS if any(name in row for row in rows)},
        },
        **({DEAD_INPUTS: dead} if (dead := _links_at_dead_inputs(c.env, directory)) else {}),
        "conditions": dict(run.conditions),
        "provenance": {name: summary.get(name) for name in PROVENANCE},
        # Of masks to begin with, what they are and not where they lay.
        "config": workdirs.checkpoint_identity(c) | {workdirs.COMPUTE: c.compute},
    }


def _links_at_dead_inputs(env: str, directory: Path) -> dict[str, list[list[int]]]:
    """What `DEAD_INPUTS` says of a run; nothing where its task has no such inputs, or it left no masks."""
    if env not in ALWAYS_ZERO or not (directory / tickets.NAME).exists():
        return {}
    masks = tickets.load(directory)
    layers = {name: [masking.kernels(tree[name])[0] for tree in (masks.initial, masks.final)] for name in masks.final}
    # Observations come before actions among a critic's inputs.
    count = lambda layer: [int(layer[..., [*ALWAYS_ZERO[env]], :].sum()), int(layer.sum())]
    return {name: [count(layer) for layer in pair] for name, pair in layers.items()}


def known(root: Path) -> dict[str, Line]:
    """Runs that any study under a directory has recorded, by identity."""
    found: dict[str, Line] = {}
    for path in sorted(root.glob(f"*/{FILE}")):
        for line in read(path.parent):
            key = of_line(line)
            if key is not None:
                found.setdefault(key, line)
    return found


def of_line(line: Line) -> str | None:
    """The identity of a recorded run; None for a clone, or a run of another version, whose settings are not today's."""
    settings = _settings(line["config"])
    return None if settings is None or line["kind"] != LEARNING else json.dumps(settings, sort_keys=True)


def identity(config: RunConfig) -> str:
    """A text that is the same for the same run.

    Raises:
      CheckpointError: masks to begin with that cannot be read.
    """
    return json.dumps(workdirs.checkpoint_identity(config), sort_keys=True)


def relabelled(line: Line, study: str, run: Run) -> Line:
    """A run that another study recorded, as one of this study."""
    return {**line, "study": study, "row": run.row, "arm": run.arm, "conditions": dict(run.conditions)}


def scores(lines: Sequence[Line], arm: str) -> np.ndarray:
    """Per-seed scores of one arm, in the order of the seeds."""
    mine = sorted((line for line in lines if line["arm"] == arm), key=lambda line: line["seed"])
    return np.array([line["score"] for line in mine], float)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


Name = tuple[str, str, str]
"""What makes a run one and the same within a study: row, arm, and conditions with settings. Whose masks it begins with
follows from its arm."""


def name_of(line: Line) -> Name:
    """Name of a recorded run."""
    return _name(line["row"], line["arm"], line["conditions"], line["config"])


def name_of_run(run: Run) -> Name:
    """Name of a run."""
    return _name(run.row, run.arm, run.conditions, run.config.to_dict())


def _name(row: str, arm: str, conditions: Mapping[str, Any], config: Mapping[str, Any]) -> Name:
    settings = _settings(config)
    plain = dict(config) if settings is None else settings
    # A dense agent is the same run, and another line, beside sparse ones of other sparsities.
    of_run = {k: v for k, v in plain.items() if k != workdirs.TICKET}
    return row, arm, json.dumps([dict(conditions), of_run], sort_keys=True)


def _settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of a recorded run, with those that are newer than the record; None if some are not today's."""
    try:
        values = resolve(Config.from_dict(dict(config))).to_dict()
    except ConfigError:
        return None
    return {k: v for k, v in values.items() if k not in workdirs.HOW}
