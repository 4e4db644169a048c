"""A sweep, from its plan to its table.

What it leaves, and what it does:

    workdir/plan.json              runs, batches, compilations (see `sweeps.plans`)
    workdir/sweep.csv, sweep.json  one row per run (see `sweeps.table`)
    workdir/runs/<name>/           what a single run leaves, without checkpoints (see `training.workdirs`)
    workdir/batches/<name>/        checkpoints of a batch while it runs; done.json when it is done

    sweep = plan, refuse or extend what the workdir holds; then, for one batch after another,
        compile, start or restore; then the loop (see `training.loop`), in which
            evaluate:   report, and each run's files; the table
            checkpoint: the state and the rows of the whole batch
            finish:     summaries, curves, done
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax

from rlx2_jax.config import Config, resolve
from rlx2_jax.errors import ConfigError, FileError, WorkdirError
from rlx2_jax.io import lock
from rlx2_jax.runtime import compilation, memory, numerics
from rlx2_jax.sweeps import hosts, layout, plans, table, workers
from rlx2_jax.sweeps.batch import BatchRun
from rlx2_jax.training import loggers, workdirs
from rlx2_jax.training.compiled import Compiled
from rlx2_jax.training.display import Display
from rlx2_jax.training.signals import StopSignals


class SweepResult(NamedTuple):
    """What a sweep gave."""

    plan: plans.Plan
    """How the runs were laid out."""
    table: list[table.Line]
    """A row per run, as in `sweep.json`."""
    finished: bool
    """False if it was asked to stop, or a worker died; the same call continues it then."""
    failed: tuple[str, ...] = ()
    """Runs whose worker died."""


def make_plan(
    configs: Sequence[Config],
    workdir: str | Path,
    *,
    parallel: str = plans.PARALLEL[0],
    fields: Sequence[str] = (),
    devices: int | None = None,
    runs_per_device: int | None = None,
    worker_count: int | None = None,
) -> plans.Plan:
    """What `sweep` would do; writes nothing.

    Args:
      configs: as from `plans.product`, or not resolved.
      workdir: of the sweep; what it holds is extended.
      parallel: one of `plans.PARALLEL`.
      fields: fields that differ between runs, beyond those that every table has.
      devices: as many of the devices as this, which must divide the runs; None for all, filling up with copies.
      runs_per_device: no more than this many at once, whatever the memory.
      worker_count: processes at once, for `processes`; None for one per core.

    Raises:
      ConfigError: a sweep that cannot be.
      WorkdirError: the workdir holds another sweep.
    """
    if parallel != plans.PARALLEL[0] and jax.process_count() > 1:
        raise ConfigError(
            f"--parallel={parallel} serves one host; use --parallel={plans.PARALLEL[0]} with --multihost."
        )
    check_way(parallel, worker_count)
    resolved = [resolve(config) for config in configs]
    for config in {config.logger: config for config in resolved}.values():
        loggers.require(config)
    if parallel == "processes":
        for name, value in (("devices", devices), ("runs_per_device", runs_per_device)):
            if value is not None:
                raise ConfigError(f"{name}={value} says nothing to --parallel=processes; leave it out.")
        return plans.lay_out(resolved, parallel=parallel, fields=fields, held=plans.read(Path(workdir)))
    if devices is not None and not 1 <= devices <= jax.device_count():
        raise ConfigError(f"devices={devices}: there are {jax.device_count()}; name one to as many.")
    if runs_per_device is not None and runs_per_device < 1:
        raise ConfigError(f"runs_per_device={runs_per_device}: use at least 1.")
    return plans.lay_out(
        resolved,
        parallel=parallel,
        fields=fields,
        devices=jax.device_count() if devices is None else devices,
        device_bytes=hosts.least(_device_bytes()),
        runs_per_device=runs_per_device,
        pad=devices is None,
        held=plans.read(Path(workdir)),
    )


def check_way(parallel: str, worker_count: int | None) -> None:
    """Refuse a way of running in parallel that there is not.

    Raises:
      ConfigError: another than `plans.PARALLEL`, or a number of workers that cannot be.
    """
    if parallel not in plans.PARALLEL:
        raise ConfigError(f"unknown parallel {parallel!r}; valid: {', '.join(plans.PARALLEL)}.")
    if parallel == "processes":
        workers.core_groups(worker_count)
    elif worker_count is not None:
        raise ConfigError(f"workers={worker_count} says nothing to --parallel={parallel}; leave it out.")


def _device_bytes() -> float | None:
    """Free memory of the fullest of this host's devices; those of a CPU share the host's."""
    local = jax.local_devices()
    free = [memory.available_bytes(device) for device in local]
    known = [count for count in free if count is not None]
    if not known:
        return None
    return min(known) / (len(local) if local[0].platform == "cpu" else 1)


@numerics.by_usual_rules
@numerics.one_blas_thread()
def sweep(
    configs: Sequence[Config],
    workdir: str | Path,
    *,
    parallel: str = plans.PARALLEL[0],
    fields: Sequence[str] = (),
    devices: int | None = None,
    runs_per_device: int | None = None,
    worker_count: int | None = None,
    show_progress: bool = True,
    on_table: table.Listener | None = None,
) -> SweepResult:
    """Train all runs; continue where the workdir is, if it holds this sweep or a part of it.

    Args:
      configs: as for `make_plan`, like all but the following.
      workdir: made if it does not exist.
      parallel: one of `plans.PARALLEL`.
      fields: see `make_plan`.
      devices: see `make_plan`.
      runs_per_device: see `make_plan`.
      worker_count: see `make_plan`.
      show_progress: lines and a bar on standard error.
      on_table: told of the plan and its table whenever that was written, in the process that writes it.

    Returns:
      Plan and table. On SIGINT, SIGTERM or SIGHUP the sweep saves, and returns unfinished.

    Raises:
      ConfigError: a sweep that cannot be.
      WorkdirError: a workdir that cannot be used.
      FileError: something that cannot be written, such as on a full disk; it is said what is kept.
      CheckpointError: a checkpoint that is not good, or cannot be written.
    """
    directory = Path(workdir)
    planned = functools.partial(
        make_plan,
        configs,
        directory,
        parallel=parallel,
        fields=fields,
        devices=devices,
        runs_per_device=runs_per_device,
        worker_count=worker_count,
    )
    workdirs.check_name(directory)
    compilation.use_cache_by_default()
    planned()  # What cannot be is refused before anything is made.
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(lock.hold(directory)) if hosts.is_first() else None
        hosts.barrier("workdir held")
        laid_out = planned()
        hosts.barrier("plan read")
        total = sum(run.config.total_steps for run in laid_out.runs)
        display = stack.enter_context(Display(total, show_progress and hosts.is_first()))
        stop = stack.enter_context(StopSignals(display.say))
        return _begin(laid_out, directory, worker_count, held, stop, display, on_table)


def _begin(
    laid_out: plans.Plan,
    directory: Path,
    worker_count: int | None,
    held: int | None,
    stop: StopSignals,
    display: Display,
    on_table: table.Listener | None,
) -> SweepResult:
    """Train what is laid out, in the way that the plan says."""
    for line in plans.describe(laid_out):
        display.say(line)
    if laid_out.parallel == "processes":
        assert held is not None, "this way serves one host, which holds the workdir"
        return _in_processes(laid_out, directory, worker_count, held, stop, display, on_table)
    over = layout.Layout(jax.devices()[: laid_out.devices], laid_out.parallel)
    return _Sweep(laid_out, directory, over, display, on_table).go(stop)


def _in_processes(
    laid_out: plans.Plan,
    directory: Path,
    worker_count: int | None,
    held: int,
    stop: StopSignals,
    display: Display,
    on_table: table.Listener | None,
) -> SweepResult:
    """Train each run in a process of its own."""
    plans.write(directory, laid_out)
    try:
        lines, failed = workers.go(laid_out, directory, worker_count, held, stop, display, on_table)
    except FileError as error:
        raise error.adding("the runs keep their checkpoints, and the same command continues them") from None
    finished = all(line["finished"] or line["diverged"] for line in lines)
    display.say(_last_words(laid_out, directory, finished, stop.received or "the end of a worker"))
    return SweepResult(laid_out, lines, finished, tuple(failed))


class _Sweep:
    """Batches, one after another."""

    def __init__(
        self,
        laid_out: plans.Plan,
        directory: Path,
        over: layout.Layout,
        display: Display,
        on_table: table.Listener | None,
    ):
        self.plan = laid_out
        self.on_table = on_table
        self.directory = directory
        self.layout = over
        self.display = display
        self.standings: dict[str, table.Standing] = {}
        self.compiled: dict[tuple[int, int], Compiled] = {}

    def go(self, stop: StopSignals) -> SweepResult:
        """Run to the end, or until asked to stop."""
        self._keep_plan()
        for batch in self.plan.batches:
            self._read(batch)
        self._keep_table()
        finished = True
        with ThreadPoolExecutor() as pool:
            for batch in self.plan.batches:
                if self._done(batch).exists():
                    continue
                if not finished or hosts.any_of(stop.received is not None):
                    finished = False
                    break
                finished = self._train(batch, pool, stop)
        self.display.say(_last_words(self.plan, self.directory, finished, stop.received or "another host"))
        return SweepResult(self.plan, self._table(), finished)

    def _train(self, batch: plans.PlannedBatch, pool: ThreadPoolExecutor, stop: StopSignals) -> bool:
        """One batch; nothing of it stays on the devices."""
        with self._open(batch, pool, stop) as run:
            finished = run.go()
        self._keep_table(run)
        return finished

    def _open(self, batch: plans.PlannedBatch, pool: ThreadPoolExecutor, stop: StopSignals) -> BatchRun:
        runs = [self.plan.run(name) for name in batch.runs]
        # Of all runs of the program, as the batches that share its compilation have to share its shapes.
        alike = [name for other in self.plan.batches if other.program == batch.program for name in other.runs]
        program = plans.build([self.plan.run(name).config for name in alike])
        schedule = plans.common_schedule(run.config for run in runs)
        key = batch.program, batch.rows
        if key not in self.compiled:
            # One program at a time on the devices.
            self.compiled = {key: layout.compile_batch(self.layout, program, schedule, batch.rows, self.display.stage)}
            self.plan = plans.count_compilation(self.plan)
            self._keep_plan()
            compiled = self.compiled[key]
            self.display.say(f"{batch.name}: {compilation.describe(compiled.parts, compiled.seconds)}")
        return BatchRun(
            batch,
            runs,
            self.directory,
            program,
            schedule,
            self.layout,
            self.compiled[key],
            self.display,
            pool,
            stop,
            self._evaluated,
        )

    def _keep_plan(self) -> None:
        if hosts.is_first():
            plans.write(self.directory, self.plan)
        hosts.barrier("plan written")
        if not (self.directory / "plan.json").exists():
            raise WorkdirError(
                f"workdir {self.directory} is not the same directory on every host; name one on a shared file system."
            )

    def _evaluated(self, run: BatchRun) -> None:
        means = self._keep_table(run)
        self.display.say(f"{run.batch.name} {run.clock.steps:>12,} steps  return {means}  {run.speed():,.0f} updates/s")

    def _keep_table(self, run: BatchRun | None = None) -> str:
        """Write the table and move the bar, which says each method's mean return."""
        if run is not None:
            self.standings |= run.standings()
        lines = self._table()
        if hosts.is_first():
            table.write(self.directory, lines)
            if self.on_table is not None:
                self.on_table(self.plan, lines)
        means = table.means_text(lines)
        self.display.advance(sum(line["env_steps"] for line in lines), means)
        return means

    def _table(self) -> list[table.Line]:
        return table.lines(self.plan, self.standings)

    def _done(self, batch: plans.PlannedBatch) -> Path:
        return self.directory / "batches" / batch.name / "done.json"

    def _read(self, batch: plans.PlannedBatch) -> None:
        """Where the runs of a batch were when the sweep stopped."""
        diverged = plans.read_diverged(self._done(batch), "diverged")
        for name in batch.runs:
            rows = workdirs.read_rows(self.directory / "runs" / name)
            finished = self._done(batch).exists() and name not in diverged
            self.standings[name] = table.Standing(rows, finished, diverged.get(name))


def _last_words(laid_out: plans.Plan, directory: Path, finished: bool, why: str) -> str:
    end = "finished" if finished else f"stopped by {why}, the same command continues it"
    return f"sweep of {len(laid_out.runs)} runs {end}; table in {directory}/sweep.csv"
