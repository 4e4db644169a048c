"""A batch of runs, as the loop drives it: many runs, one state on the devices, and each run's own files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlx2_jax.config import Schedule
from rlx2_jax.errors import FileError
from rlx2_jax.io import files
from rlx2_jax.io.checkpoints import Checkpoints
from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.sweeps import hosts
from rlx2_jax.sweeps.layout import Layout
from rlx2_jax.sweeps.plans import PlannedBatch, PlannedRun
from rlx2_jax.sweeps.table import Standing
from rlx2_jax.training import loop, programs, workdirs
from rlx2_jax.training.compiled import Compiled
from rlx2_jax.training.display import Display
from rlx2_jax.training.programs import Program
from rlx2_jax.training.record import Record, Totals, plain_row
from rlx2_jax.training.signals import StopSignals


class BatchRun:
    """A batch on the devices, with the records of its runs. A context manager: it holds the batch's checkpoints.

    The loop drives it (see `loop.Executor`). Every host knows the rows of all runs, and writes the files of those on
    its own devices.
    """

    def __init__(
        self,
        batch: PlannedBatch,
        runs: Sequence[PlannedRun],
        workdir: Path,
        program: Program,
        schedule: Schedule,
        layout: Layout,
        compiled: Compiled,
        display: Display,
        pool: ThreadPoolExecutor,
        stop: StopSignals,
        evaluated: Callable[[BatchRun], None],
    ):
        """Prepare the runs' directories and put the state on the devices: fresh, or from the last good checkpoint.

        `evaluated` is called after each evaluation.

        Raises:
          WorkdirError: a run's directory that cannot be used.
          CheckpointError: no good checkpoint among those there are.
        """
        self.batch = batch
        self.runs = runs
        self.config = program.config
        self.directory = workdir / "batches" / batch.name
        self.layout = layout
        self.compiled = compiled
        self.display = display
        self.pool = pool
        self.stop = stop
        self.evaluated = evaluated
        self.mine = [row for row in layout.local_rows(batch.rows) if row < len(runs)]
        """Rows of runs whose files this host writes."""
        self.diverged: dict[str, int] = {}
        self.clock = loop.Clock()
        self.saved_at = -1
        self._rates = loop.Rates(0, 0)

        filled = [runs[min(row, len(runs) - 1)].config for row in range(batch.rows)]
        sizes = program.env.observation_size, program.env.action_size
        self.keys = layout.put(np.stack([jax.random.PRNGKey(config.seed) for config in filled]))
        hparams = [make_hparams(config, *sizes) for config in filled]
        self.hparams = layout.put(jax.tree.map(lambda *leaves: np.stack(leaves), *hparams))
        self.schedule = layout.put(schedule, None)
        self.records: list[Record] = []
        for row, run in enumerate(runs):
            path = workdir / "runs" / run.name
            if row in self.mine:
                workdirs.prepare(path, run.config, resume=(path / "config.json").exists(), overwrite=False)
            computed = dataclasses.replace(run.config, compute=program.config.compute)
            self.records.append(Record(computed, program.env, path if row in self.mine else None, display.say))
        self.checkpoints = Checkpoints(self.directory, _identity(batch, runs))
        self._start(workdir)

    def __enter__(self) -> BatchRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self.checkpoints.__exit__(*exception)

    def _start(self, workdir: Path) -> None:
        if hosts.is_first():
            self.checkpoints.forget_incomplete()
        hosts.barrier("checkpoints looked at")
        if self.checkpoints.steps():
            self.saved_at, state, found = self.checkpoints.restore(
                self.layout.flat_shapes(self.compiled.template),
                warn=self.display.say,
                barrier=hosts.barrier,
                kinds=loop.SECONDS | {"diverged": dict},
            )
            self.state = self.layout.folded(state)
            self.clock.resume(self.saved_at, found)
            self.diverged = found["diverged"]
            kept = found.get("rows", {})
            self.display.say(f"{self.batch.name}: resumed at step {self.saved_at:,}")
        else:
            kept = {run.name: [] for run in self.runs}
            self.state = self.compiled.init(self.keys, self.hparams)
        steps = self.clock.steps
        first = self._by_row(self.state.first_masks)
        for row, (run, record) in enumerate(zip(self.runs, self.records, strict=True)):
            rows = kept.get(run.name)
            until = min(steps, self.diverged.get(run.name, steps + 1) - 1)
            for told in record.open(until, rows, first.get(row)):
                self.display.say(told)
            if row not in self.mine and rows is None:
                rows = files.read_json_lines(workdir / "runs" / run.name / "metrics.jsonl")
                record.rows = [line for line in rows if line["env_steps"] <= steps]

    def go(self) -> bool:
        """Run to the end, or until any host is asked to stop; whether it is done.

        Raises:
          FileError: something cannot be written; it is said what is kept.
          CheckpointError: a checkpoint cannot; it says so itself.
        """
        try:
            return loop.go(self, self.clock, self.config)
        except FileError as error:
            kept = workdirs.kept(self.directory, self.saved_at)
            raise error.adding(f"of {self.batch.name}, {kept}") from None

    def advance(self) -> np.ndarray:
        """Train for a chunk; which rows are finite."""
        self.state = self.compiled.chunk(self.compiled.renew(self.state), self.hparams, self.schedule)
        return self.layout.gather(self.compiled.finite(self.state))

    def examine(self, finite: np.ndarray) -> None:
        """Note runs that diverged; the others go on."""
        for run, good in zip(self.runs, finite, strict=False):
            if not good and run.name not in self.diverged:
                self.diverged[run.name] = self.clock.steps
                self.display.say(f"{run.name} diverged before step {self.clock.steps:,}; the others go on")

    def updates(self) -> int:
        """Updates that each run has made."""
        return int(self.state.progress.critic_calls)

    def stopping(self) -> bool:
        """Whether a signal came to any host."""
        return hosts.any_of(self.stop.received is not None)

    def standings(self) -> dict[str, Standing]:
        """Where each run is."""
        ended = self.clock.steps >= self.config.total_steps
        return {
            run.name: Standing(record.rows, ended and run.name not in self.diverged, self.diverged.get(run.name))
            for run, record in zip(self.runs, self.records, strict=True)
        }

    def speed(self) -> float:
        """Updates per second of all runs together, before the last evaluation."""
        return self._rates.updates * len(self.runs)

    def evaluate(self, rates: loop.Rates) -> None:
        """Make a row of each run that has not diverged, and its files."""
        self.state, reports = self.compiled.report(self.compiled.renew(self.state), self.hparams, self.schedule)
        reports = self.layout.gather(reports)
        self.examine(np.isfinite(reports["return_mean"]))
        self._rates = rates
        clocks = self.clock.columns(rates)
        agent = self.state.agent
        seen = self._by_row((agent.actor.params, programs.agent_masks(agent)))

        def add(row: int) -> None:
            report = {name: values[row] for name, values in reports.items()}
            self.records[row].add(plain_row(report) | clocks, *seen.get(row, ({}, None)))

        going = [row for row, run in enumerate(self.runs) if run.name not in self.diverged]
        list(self.pool.map(add, going))
        self.evaluated(self)

    def _by_row(self, tree: Any) -> dict[int, Any]:
        """Part of a state, of each row on this host's devices."""
        local = self.layout.local(tree)
        rows = self.layout.local_rows(self.batch.rows)
        return {row: jax.tree.map(lambda x, k=k: x[k], local) for k, row in enumerate(rows)}

    def checkpoint(self) -> None:
        """Save the state of all rows and the rows so far, unless they are saved already."""
        step = self.clock.steps
        if self.saved_at == step:
            return
        for row in self.mine:
            if (directory := self.records[row].directory) is not None:
                workdirs.require_still_there(directory)
        history = {run.name: record.history() for run, record in zip(self.runs, self.records, strict=True)}
        record = self.clock.seconds() | {"diverged": self.diverged, "rows": history}
        state = self.layout.flat(self.state)
        try:
            self.checkpoints.save(step, state, record)
        finally:
            self.state = self.layout.folded(state)
        self.saved_at = step

    def finish(self, done: bool) -> None:
        """Write summaries and curves; a batch that is done needs its checkpoints no more."""
        nonfinite = self.layout.gather(self.state.nonfinite)
        masks = self._by_row((self.state.first_masks, programs.agent_masks(self.state.agent))) if done else {}

        for row in self.mine:
            totals = Totals(
                env_steps=self.clock.steps,
                updates=self.updates(),
                nonfinite=int(nonfinite[row]),
                compile_seconds=self.compiled.seconds,
                compilation=self.compiled.parts,
                **self.clock.seconds(),
            )
            diverged = self.runs[row].name in self.diverged
            finished = done and not diverged
            if finished:
                self.records[row].keep_masks(*masks[row])
            self.records[row].close(totals, finished=finished, diverged=diverged)
        if done:
            self.checkpoints.__exit__()
            hosts.barrier("all files written")
            if hosts.is_first():
                files.write_json(self.directory / "done.json", {"diverged": self.diverged})
                for name in ("checkpoints", "checksums", "rejected"):
                    shutil.rmtree((self.directory / name).resolve(), ignore_errors=True)


def _identity(batch: PlannedBatch, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    identity = lambda run: json.dumps(workdirs.checkpoint_identity(run.config), sort_keys=True)
    digest = lambda run: hashlib.sha256(identity(run).encode()).hexdigest()
    return {"rows": batch.rows, "runs": {run.name: digest(run) for run in runs}}
