"""What a run has left in its directory, read again for people: all that is sound, and why the rest is not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from rlx2_jax import policies
from rlx2_jax.config import Config, RunConfig, resolve
from rlx2_jax.errors import ConfigError, FileError, RlxError, WorkdirError
from rlx2_jax.io import archives, files
from rlx2_jax.policies import history
from rlx2_jax.training import workdirs
from rlx2_jax.viz import page as pages
from rlx2_jax.viz import viewer
from rlx2_jax.viz.panels import RecordedRun
from rlx2_jax.viz.rollout import roll_out

T = TypeVar("T")

NAME = "report.html"
"""Name of the page in a run's directory."""

SEED = 1_000_000
"""Of the episode that is shown: the one that `experiments/rollout.py` plays."""

NUMBER = int | float
"""Types of a number."""

SUMMARY: dict[str, Any] = {
    "finished": bool,
    "env_steps": int,
    "updates": int,
    "steps_per_second": NUMBER,
    "updates_per_second": NUMBER,
    "wall_seconds": NUMBER,
    "compile_seconds": NUMBER,
    "compute": str,
    "commit": str | None,
    "device": str,
    "versions": dict,
    "compilation": dict,
}
"""Types of what is read of a summary."""


def read(workdir: Path) -> RecordedRun:
    """The run that a directory holds.

    Raises:
      WorkdirError: it holds none, or a clone.
    """
    config = _config(workdir)
    workdirs.refuse_clone(workdir)
    lacking: dict[str, str] = {}

    def attempt(name: str, load: Callable[[], T], otherwise: T) -> T:
        try:
            return load()
        except RlxError as error:
            lacking[name] = str(error).replace(f"{workdir}/", "")
            return otherwise

    rows = attempt("rows", lambda: _rows(workdir), list[dict[str, Any]]())
    summary = attempt("summary", lambda: _summary(workdir), None)
    policy = attempt("policy", lambda: policies.load(workdir), None)
    masks = attempt("masks", lambda: history.load(workdir), None)
    return RecordedRun(workdir.resolve().name, config, rows, summary, policy, masks, lacking)


def _config(workdir: Path) -> RunConfig:
    """The settings of a run, also of one whose code is not here, or that an earlier version made."""
    values = workdirs.read_config(workdir)
    known = {field.name: values[field.name] for field in dataclasses.fields(Config) if field.name in values}
    try:
        return RunConfig.from_dict(known)
    except ConfigError:
        pass
    try:
        return resolve(Config.from_dict(known))
    except ConfigError as error:
        raise WorkdirError(f"{workdir} holds a run that cannot be read here: {error}") from None


def _rows(workdir: Path) -> list[dict[str, Any]]:
    if rows := workdirs.read_rows(workdir):
        return rows
    raise FileError("metrics.jsonl holds no evaluation yet; let the run go on.")


def _summary(workdir: Path) -> dict[str, Any]:
    path = workdir / "summary.json"
    mend = "restore a copy, or let the run go on with --resume"
    summary: dict[str, Any] | None = files.read_json(path, None, mend=mend)
    if summary is None:
        raise FileError("there is no summary.json yet: the run goes on, or was killed.")
    try:
        archives.require(summary, SUMMARY)
        for took in summary["compilation"].values():
            archives.require(took, {"traced": NUMBER, "compiled": NUMBER, "cached": bool})
    except (ValueError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is damaged ({error}); {mend}.") from None
    return summary


def page(workdir: Path, *, rollout: bool = False) -> bytes:
    """The page of the run that a directory holds (see `viz.page`).

    Args:
      workdir: of the run.
      rollout: play an episode of its policy, to be shown there; where that cannot be, the page says why.

    Raises:
      WorkdirError: there is no run.
    """
    run = read(workdir)
    if not rollout:
        return pages.page(run)
    if run.policy is None:
        return pages.page(run, why_not=f"no episode can be played: {run.lacking['policy']}")
    try:
        episode = viewer.page(roll_out(run.policy, jax.random.split(jax.random.PRNGKey(SEED), 1)[0]))
    except RlxError as error:
        return pages.page(run, why_not=f"no episode can be shown: {error}")
    return pages.page(run, episode)
