"""What one run leaves while it goes on: its rows, and the files made of them (see `training.workdirs`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax import networks, policies
from rlx2_jax.analysis import accounting
from rlx2_jax.config import RunConfig
from rlx2_jax.envs import Environment
from rlx2_jax.envs.labels import Labels
from rlx2_jax.errors import RlxError
from rlx2_jax.io import files, provenance
from rlx2_jax.policies import history, tickets
from rlx2_jax.runtime import compilation
from rlx2_jax.training import workdirs
from rlx2_jax.training.loggers import Loggers, Run
from rlx2_jax.viz import curves

DRAWING = 0.02
"""Share of a run's time that its picture may take while it goes on."""

FIRST_DRAWING = 10.0
"""Seconds of a run before its first picture, which takes about half a second: many runs are over by then."""

Row = dict[str, Any]
"""One evaluation, as in metrics.jsonl."""


class Totals(NamedTuple):
    """Where a run stands, beyond what its rows say."""

    env_steps: int
    updates: int
    nonfinite: int
    """Transitions kept out of replay."""
    training_seconds: float
    """Spent in chunks."""
    wall_seconds: float
    """Spent in all, over all starts."""
    compile_seconds: float
    compilation: Mapping[str, compilation.Seconds]
    """What each program took of it."""


class Record:
    """The evaluations of one run, on the host and in its directory."""

    def __init__(
        self,
        config: RunConfig,
        env: Environment,
        directory: Path | None,
        say: Callable[[str], None] = print,
    ):
        """Prepare; nothing is written before `open`.

        Args:
          config: of the run.
          env: its task.
          directory: prepared (see `training.workdirs.prepare`), or None to write nothing.
          say: tells what loggers have to say.
        """
        self.config = config
        self.directory = directory
        self.rows: list[Row] = []
        self._best = -math.inf
        self._sizes = env.observation_size, env.action_size
        self._labels = Labels.of(env)
        self._account = accounting.account(config, *self._sizes)
        self._say = say
        self._loggers: Loggers | None = None
        self._masks: history.Recorder | None = None
        self._provenance = provenance.about()
        self._draw_from = time.monotonic() + FIRST_DRAWING

    def open(
        self, env_steps: int, kept: Sequence[Row] | None = (), first: tickets.Compressed | None = None
    ) -> list[str]:
        """Begin at a step: what a directory holds of later ones is forgotten, what it held of earlier ones is kept.

        Args:
          env_steps: the step.
          kept: rows up to it, as a checkpoint has them (see `training.workdirs.rewind`).
          first: masks that the run began with; without them no masks are recorded over training.

        Returns:
          Sentences on what the directory held else, or lacks.
        """
        if self.directory is None:
            self.rows = list(kept or ())
            return []
        self.rows, told = workdirs.rewind(self.directory, env_steps, self.config.eval_every, kept)
        if self._has_best(env_steps):
            self._best = max((row["return_mean"] for row in self.rows), default=-math.inf)
        else:
            policies.locate(self.directory, "best").unlink(missing_ok=True)
        self._loggers = Loggers(Run.of(self.config, self.directory, env_steps, self._say))
        lacking = None
        if first is not None:
            describe = lambda steps: policies.describe(self.config, steps, None, self._sizes, self._labels)
            self._masks = history.Recorder(self.directory / history.NAME, self.config, self._sizes, describe)
            lacking = self._masks.begin(env_steps, first)
        return [sentence for sentence in (told, lacking) if sentence]

    def _has_best(self, env_steps: int) -> bool:
        """Whether the best policy is there, and of no evaluation that was forgotten.

        Where such a one has taken its place, the next evaluation's takes it: usually these are made again, to the bit,
        and the same one with them.
        """
        assert self.directory is not None
        try:
            return bool(policies.load(policies.locate(self.directory, "best")).about["env_steps"] <= env_steps)
        except RlxError:
            return False

    def history(self) -> list[Row]:
        """The rows as a resumed run reads them."""
        return files.plain(self.rows)

    def add(self, row: Row, params: networks.Params, masks: tickets.Networks | None = None) -> None:
        """One evaluation, the actor's parameters it was made with, and the masks of both networks."""
        best = row["return_mean"] > self._best
        self._best = max(self._best, row["return_mean"])
        self.rows.append(row)
        if self.directory is None:
            return
        assert self._loggers is not None
        files.append_json_line(self.directory / "metrics.jsonl", row)
        self._loggers.log(row, row["env_steps"])
        for name in policies.FILES.values() if best else (policies.NAME,):
            policies.save(self.directory / name, params, self.about())
        if self._masks is not None and masks is not None:
            self._masks.add(row["env_steps"], masks)

    def about(self) -> dict[str, Any]:
        """What is saved with the policy or the masks of the last row."""
        last: Mapping[str, Any] = self.rows[-1] if self.rows else {}
        return policies.describe(
            self.config, last.get("env_steps", 0), last.get("return_mean"), self._sizes, self._labels
        )

    def keep_masks(self, first: tickets.Compressed, final: tickets.Networks) -> None:
        """Write the masks that the run began with, one bit per weight, and those it ended with."""
        if self.directory is not None:
            initial = {name: tickets.expand(first[name], final[name]) for name in final}
            tickets.save(self.directory / tickets.NAME, initial, final, self.about())

    def draw(self, *, last: bool = False) -> None:
        """Replace curve.png, unless it was drawn a moment ago and this is not the last time."""
        began = time.monotonic()
        if self.directory is None or not self.rows or (began < self._draw_from and not last):
            return
        curves.save(curves.draw_run(self.rows, curves.headline(self.config.to_dict())), self.directory / "curve.png")
        ended = time.monotonic()
        self._draw_from = ended + (ended - began) / DRAWING

    def close(self, totals: Totals, *, finished: bool, diverged: bool = False) -> dict[str, Any]:
        """Write summary.json, and give it back."""
        self.draw(last=True)
        summary = self._summary(totals, finished) | {"diverged": diverged}
        if self.directory is not None:
            files.write_json(self.directory / "summary.json", summary)
        if self._loggers is not None:
            self._loggers.close()
        return summary

    def _summary(self, totals: Totals, finished: bool) -> dict[str, Any]:
        rows, seconds = self.rows, max(totals.training_seconds, 1e-9)
        scores = workdirs.last_scores(rows, self.config.score_evaluations)
        last: Mapping[str, Any] = rows[-1] if rows else {}
        return {
            "finished": finished,
            "env_steps": totals.env_steps,
            "updates": totals.updates,
            "score": float(np.mean(scores)) if scores else None,
            "score_evaluations": len(scores),
            "best": max((row["return_mean"] for row in rows), default=None),
            "actor_sparsity": last.get("actor_sparsity"),
            "critic_sparsity": last.get("critic_sparsity"),
            "size_ratio": self._account.size_ratio,
            "flops_train_ratio": self._account.flops_train_ratio,
            "flops_test_ratio": self._account.flops_test_ratio,
            "steps_per_second": totals.env_steps / seconds,
            "updates_per_second": totals.updates / seconds,
            "wall_seconds": totals.wall_seconds,
            "compile_seconds": totals.compile_seconds,
            "compilation": {
                name: {"traced": round(s.traced, 2), "compiled": round(s.compiled, 2), "cached": s.cached}
                for name, s in totals.compilation.items()
            },
            "nonfinite": totals.nonfinite,
            "compute": self.config.compute,
            **self._provenance,
        }


def plain_row(report: Mapping[str, Any]) -> Row:
    """A report's scalars as Python numbers."""
    return {name: np.asarray(value).item() for name, value in report.items()}
