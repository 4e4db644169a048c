"""A sweep as parallel processes: one run each, on cores of their own.

On a CPU packed runs are faster than any batching of masked ones, and they cannot be batched: the number of links is a
shape there. So every worker trains one run of the plan as `experiments/train.py` would, and this process keeps the
table. A worker that dies loses no more than the steps since its last checkpoint, and no other run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import jax

from rlx2_jax import files, provenance
from rlx2_jax.errors import ConfigError
from rlx2_jax.sweeps import plan as plans
from rlx2_jax.sweeps import table
from rlx2_jax.training.display import Display
from rlx2_jax.training.signals import StopSignals

DIVERGED = 3
"""Exit code of a worker whose run's values stopped being finite; Python's own, of a crash, is 1."""

REFUSED = 2
"""Exit code of a worker whose run could not be."""

POLL_SECONDS = 0.5
"""Between two looks at the workers."""


class _Worker(NamedTuple):
    run: plans.Run
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    cores: tuple[int, ...]


def core_groups(count: int | None) -> list[tuple[int, ...]]:
    """The cores this process may use, in `count` groups as equal as can be; None for a group per core.

    Raises:
      ConfigError: more workers than cores, or none.
    """
    cores = provenance.cores()
    count = len(cores) if count is None else count
    if not 1 <= count <= len(cores):
        raise ConfigError(f"workers={count}: this machine has {len(cores)} cores; name one to as many.")
    return [tuple(cores[k::count]) for k in range(count)]


def go(
    plan: plans.Plan,
    workdir: Path,
    count: int | None,
    lock: int,
    stop: StopSignals,
    display: Display,
    on_table: table.Listener | None = None,
) -> tuple[list[table.Line], list[str]]:
    """Train every run that is not done, `count` at a time, until all are done or a stop is asked for.

    Args:
      plan: without batches.
      workdir: of the sweep.
      count: workers at once; None for one per core.
      lock: file descriptor of the workdir's lock, which workers hold as long as they live.
      stop: asked between two looks.
      display: shows what comes in.
      on_table: told of every table that is written.

    Returns:
      The table, and the names of runs whose worker died.
    """
    watch = _Watch(plan, workdir, display, on_table)
    free = core_groups(count)
    waiting = [run for run in plan.runs if not watch.done(run)]
    active: list[_Worker] = []
    failed: list[str] = []
    stopping = False
    try:
        while active or (waiting and not stopping):
            if stop.received and not stopping:
                stopping = True
                for each in active:
                    each.process.terminate()
            while waiting and free and not stopping:
                active.append(_start(waiting.pop(0), workdir, free.pop(0), lock))
            time.sleep(POLL_SECONDS)
            for each in [each for each in active if each.process.poll() is not None]:
                active.remove(each)
                free.append(each.cores)
                if not watch.ended(each) and not stopping:
                    failed.append(each.run.name)
            watch.look([each.run for each in active])
    finally:
        for each in active:
            each.process.terminate()
    watch.look(plan.runs, always=True)
    return watch.lines, failed


class _Watch:
    """What the workers have written so far."""

    def __init__(self, plan: plans.Plan, workdir: Path, display: Display, on_table: table.Listener | None):
        self.plan = plan
        self.on_table = on_table
        self.workdir = workdir
        self.display = display
        self.diverged: dict[str, int] = files.read_json(workdir / "diverged.json", {})
        self.standings = {run.name: self._standing(run) for run in plan.runs}
        self.lines: list[table.Line] = []
        self.look(plan.runs, always=True)

    def done(self, run: plans.Run) -> bool:
        """Whether a run is not to be started."""
        return self.standings[run.name].finished or run.name in self.diverged

    def ended(self, each: _Worker) -> bool:
        """Note how a worker ended, and say so unless its run is done; false if it is to be continued."""
        name, code = each.run.name, each.process.returncode
        each.errors.seek(0)
        last = each.errors.read().decode(errors="replace").strip().rpartition("\n")[2].rstrip(".")
        each.errors.close()
        standing = self.standings[name] = self._standing(each.run)
        if code == DIVERGED:
            self.diverged[name] = standing.rows[-1]["env_steps"] if standing.rows else 0
            files.write_json(self.workdir / "diverged.json", self.diverged)
            self.standings[name] = self._standing(each.run)
        self.look([each.run], always=True)
        if self.done(each.run):
            return True
        how = f"ended with exit code {code}: {last}" if code > 0 else "was stopped"
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        how += "" if code == REFUSED else "; the same command continues the run"
        self.display.say(f"{name}: its worker {how}")
        return False

    def look(self, runs: Sequence[plans.Run], *, always: bool = False) -> None:
        """Read what there is of some runs; if anything is new, the table and the bar say so."""
        found = {run.name: self._standing(run) for run in runs}
        if not always and all(len(self.standings[name].rows) == len(new.rows) for name, new in found.items()):
            return
        self.standings |= found
        self.lines = table.lines(self.plan, self.standings)
        table.write(self.workdir, self.lines)
        if self.on_table is not None:
            self.on_table(self.plan, self.lines)
        self.display.advance(sum(line["env_steps"] for line in self.lines), table.means_text(self.lines))

    def _standing(self, run: plans.Run) -> table.Standing:
        directory = self.workdir / "runs" / run.name
        rows = files.read_json_lines(directory / "metrics.jsonl")
        finished = files.read_json(directory / "summary.json", {}).get("finished", False)
        return table.Standing(rows, finished, self.diverged.get(run.name))


def _start(run: plans.Run, workdir: Path, cores: tuple[int, ...], lock: int) -> _Worker:
    errors = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "rlx2_jax.sweeps.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=(lock,),
        # Ctrl-C at a terminal reaches this process alone, which passes it on once.
        start_new_session=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    task = {
        "config": run.config.to_dict(),
        "workdir": str(workdir / "runs" / run.name),
        "cores": cores,
        "cache": jax.config.values["jax_compilation_cache_dir"],
        "argv": sys.argv,
    }
    assert process.stdin is not None
    process.stdin.write(json.dumps(task).encode() + b"\n")
    process.stdin.flush()
    return _Worker(run, process, errors, cores)
