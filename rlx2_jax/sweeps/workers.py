"""A sweep as parallel processes: one run each, on cores of their own.

On a CPU packed runs are faster than any batching of masked ones, and they cannot be batched: the number of links is a
shape there. So every worker trains one run of the plan as `experiments/train.py` would, and this process keeps the
table. A worker that dies loses no more than the steps since its last checkpoint, and no other run. A worker may also
make a clone, which begins anew if its worker died.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import jax

import rlx2_jax
from rlx2_jax import envs
from rlx2_jax.config import Config
from rlx2_jax.errors import ConfigError, DivergedError, RlxError
from rlx2_jax.io import files
from rlx2_jax.runtime import limits
from rlx2_jax.sweeps import plans, table
from rlx2_jax.training import workdirs
from rlx2_jax.training.display import Display
from rlx2_jax.training.signals import StopSignals

DIVERGED = 3
"""Exit code of a worker whose run's values stopped being finite; Python's own, of a crash, is 1."""

REFUSED = 2
"""Exit code of a worker whose run could not be."""

PACKAGE = Path(rlx2_jax.__file__).parent

BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
import rlx2_jax
del sys.path[0]
from rlx2_jax.sweeps.worker import main
sys.exit(main())
"""
"""What a worker does first: it takes this very package, and nothing else from where this is or from where it starts,
so that a module of a person's with the name of one of Python's own does not come before it."""

POLL_SECONDS = 0.5
"""Between two looks at the workers."""


def code_of(error: RlxError) -> int:
    """The exit code that tells how a run, or a clone, failed."""
    return DIVERGED if isinstance(error, DivergedError) else REFUSED


class Task(NamedTuple):
    """What one worker does."""

    name: str
    config: Config
    workdir: Path
    """Directory of its run, which goes on from its last checkpoint, or of its clone, which is made anew."""
    teacher: Path | None = None
    """The policy to imitate; None to learn by reward."""


class End(NamedTuple):
    """How a task ended."""

    task: Task
    code: int
    """0 if it is done or was stopped; `DIVERGED`; `REFUSED`; of a process that died, negative if a signal ended it."""
    error: str
    """What was wrong, without a full stop: the last line that the worker wrote."""

    @property
    def how(self) -> str:
        """Words on how it ended, where its task is not done."""
        if self.code > 0:
            return f"ended with exit code {self.code}: {self.error}"
        return f"was ended by {signal.Signals(-self.code).name}" if self.code else "was stopped"


class _Worker(NamedTuple):
    task: Task
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    cores: tuple[int, ...]

    def end(self) -> End:
        """How it ended, once it has."""
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().rpartition("\n")[2].rstrip(".")
        self.errors.close()
        return End(self.task, self.process.returncode, last)


def core_groups(count: int | None) -> list[tuple[int, ...]]:
    """The cores this process may use, in `count` groups as equal as can be; None for a group per core.

    Raises:
      ConfigError: more workers than cores, or none.
    """
    cores = limits.cores()
    count = len(cores) if count is None else count
    if not 1 <= count <= len(cores):
        raise ConfigError(f"workers={count}: of the cores here this process may use {len(cores)}; name one to as many.")
    return [tuple(cores[k::count]) for k in range(count)]


def work(
    tasks: Sequence[Task],
    count: int | None,
    stop: StopSignals,
    ended: Callable[[End], None],
    look: Callable[[Sequence[str]], None] = lambda names: None,
    lock: int | None = None,
) -> None:
    """Do all tasks, `count` at a time, until all are done or a stop is asked for.

    Args:
      tasks: in the order in which they begin.
      count: workers at once; None for one per core.
      stop: asked between two looks.
      ended: told of every worker that ended.
      look: called between two looks with the names of the tasks that are being done.
      lock: a file descriptor that workers hold as long as they live.
    """
    free = core_groups(count)
    waiting = list(tasks)
    active: list[_Worker] = []
    stopping = False
    try:
        while active or (waiting and not stopping):
            if stop.received and not stopping:
                stopping = True
                for each in active:
                    each.process.terminate()
            while waiting and free and not stopping:
                active.append(_start(waiting.pop(0), free.pop(0), lock))
            time.sleep(POLL_SECONDS)
            for each in [each for each in active if each.process.poll() is not None]:
                active.remove(each)
                free.append(each.cores)
                ended(each.end())
            look([each.task.name for each in active])
    finally:
        for each in active:
            each.process.terminate()


def go(
    plan: plans.Plan,
    workdir: Path,
    count: int | None,
    lock: int,
    stop: StopSignals,
    display: Display,
    on_table: table.Listener | None = None,
) -> tuple[list[table.Line], list[str]]:
    """Train every run that is not done, until all are done or a stop is asked for.

    Args:
      plan: without batches.
      workdir: of the sweep.
      count: as for `work`.
      lock: file descriptor of the workdir's lock.
      stop: as for `work`.
      display: shows what comes in.
      on_table: told of every table that is written.

    Returns:
      The table, and the names of runs whose worker died.
    """
    watch = _Watch(plan, workdir, display, on_table)
    failed: list[str] = []

    def ended(end: End) -> None:
        if not watch.ended(end) and not stop.received:
            failed.append(end.task.name)

    tasks = [Task(run.name, run.config, watch.directory(run.name)) for run in plan.runs if not watch.done(run.name)]
    work(tasks, count, stop, ended, watch.look, lock)
    watch.look([run.name for run in plan.runs], always=True)
    return watch.lines, failed


class _Watch:
    """What the workers have written so far."""

    def __init__(self, plan: plans.Plan, workdir: Path, display: Display, on_table: table.Listener | None):
        self.plan = plan
        self.on_table = on_table
        self.workdir = workdir
        self.display = display
        self.diverged: dict[str, int] = plans.read_diverged(workdir / "diverged.json")
        self.standings = {run.name: self._standing(run.name) for run in plan.runs}
        self.lines: list[table.Line] = []
        self.look([run.name for run in plan.runs], always=True)

    def directory(self, name: str) -> Path:
        """Directory of a run."""
        return self.workdir / "runs" / name

    def done(self, name: str) -> bool:
        """Whether a run is not to be started."""
        return self.standings[name].finished or name in self.diverged

    def ended(self, end: End) -> bool:
        """Note how a worker ended, and say so; false if its run is to be continued."""
        name = end.task.name
        standing = self.standings[name] = self._standing(name)
        if end.code == DIVERGED:
            self.diverged[name] = standing.rows[-1]["env_steps"] if standing.rows else 0
            files.write_json(self.workdir / "diverged.json", self.diverged)
            self.standings[name] = self._standing(name)
        self.look([name], always=True)
        if self.done(name):
            score = next(line["score"] for line in self.lines if line["run"] == name)
            told = "diverged" if name in self.diverged else "done" if score is None else f"score {score:.1f}"
            count = sum(self.done(run.name) for run in self.plan.runs)
            self.display.say(f"{name}: {told}; {count:,} of {len(self.plan.runs):,} runs are done")
            return True
        further = "" if end.code == REFUSED else "; the same command continues the run"
        self.display.say(f"{name}: its worker {end.how}{further}")
        return False

    def look(self, names: Sequence[str], *, always: bool = False) -> None:
        """Read what there is of some runs; if anything is new, the table and the bar say so."""
        found = {name: self._standing(name) for name in names}
        if not always and all(len(self.standings[name].rows) == len(new.rows) for name, new in found.items()):
            return
        self.standings |= found
        self.lines = table.lines(self.plan, self.standings)
        table.write(self.workdir, self.lines)
        if self.on_table is not None:
            self.on_table(self.plan, self.lines)
        self.display.advance(sum(line["env_steps"] for line in self.lines), table.means_text(self.lines))

    def _standing(self, name: str) -> table.Standing:
        directory = self.directory(name)
        rows = workdirs.read_rows(directory)
        finished = files.read_json(directory / "summary.json", {}).get("finished") is True
        return table.Standing(rows, finished, self.diverged.get(name))


def _start(task: Task, cores: tuple[int, ...], lock: int | None) -> _Worker:
    errors = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BOOT, str(PACKAGE.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=() if lock is None else (lock,),
        # Ctrl-C at a terminal reaches this process alone, which passes it on once.
        start_new_session=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    order = {
        "config": task.config.to_dict(),
        "workdir": str(task.workdir),
        "teacher": None if task.teacher is None else str(task.teacher),
        "cores": cores,
        "cache": jax.config.values["jax_compilation_cache_dir"],
        "argv": sys.argv,
        # Where a person's own environments are imported from, and those that the person registered.
        "path": sys.path,
        "env": envs.place_of(task.config.env),
    }
    assert process.stdin is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    return _Worker(task, process, errors, cores)
