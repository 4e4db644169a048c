"""Running a study: what is missing is trained and recorded, in an order in which every run finds what it starts from.

    run_study = row after row,
        stage after stage: runs that need nothing; runs that begin with masks or a teacher which those left; ...
            sweep what no study has recorded; record each run when it is at its end
            clones of trained agents, recorded likewise

A study that searches has no stages: it trains what the search asks for next, until that needs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from paper import search, store
from paper.study import Run, Study
from rlx2_jax import policies
from rlx2_jax.errors import RlxError
from rlx2_jax.io import files, lock
from rlx2_jax.sweeps import plans, sweep, table, workers
from rlx2_jax.training import cloning, workdirs
from rlx2_jax.training.signals import StopSignals

Homes = dict[tuple[str, str, int], Path]
"""Directories of runs by row, arm and seed."""


class Place(NamedTuple):
    """Where a study keeps what."""

    directory: Path
    """Directory of its records, beside those of the other studies, and named like the study."""
    workdir: Path
    """Directory of its runs' own files."""
    parallel: str
    """Way of running in parallel, as for `sweeps.sweep`."""
    workers: int | None = None
    """Processes at once, as for `sweeps.sweep`."""


class _StoppedError(Exception):
    """A sweep or a clone was asked to stop, so nothing else is to begin."""


def run_study(study: Study, runs: Sequence[Run], place: Place, say: Callable[[str], None]) -> bool:
    """Train and record what is missing; false if it was asked to stop, or a worker died, which keeps no other run.

    Args:
      study: which the runs belong to.
      runs: of `plan.runs`.
      place: where.
      say: takes a line where something is left out, per clone, and per evaluation of one that is made in this process.

    Raises:
      WorkdirError: another process makes runs of the same row in the same workdir.
    """
    go = _search if study.search else _stages
    complete = True
    with StopSignals(say) as stop, _unmade_if_refused(place.directory, place.workdir):
        try:
            for where, mine in _by_place(runs, place.workdir).items():
                # Where nothing is to be made there is nothing to hold.
                with lock.hold(where) if missing(mine, place) else contextlib.nullcontext():
                    # A row that is not complete keeps none of the others.
                    complete &= go(mine, place._replace(workdir=where), say, stop)
        except _StoppedError:
            return False
    return complete


@contextlib.contextmanager
def _unmade_if_refused(*directories: Path) -> Iterator[None]:
    """Directories that are not left behind by what is refused before anything but locks is in them."""
    new = [[path for path in (each, *each.parents) if not path.exists()] for each in directories]
    try:
        yield
    except RlxError:
        for top in (paths[-1] for paths in new if paths):
            if all(path.is_dir() or path.name == ".lock" for path in top.rglob("*")):
                shutil.rmtree(top, ignore_errors=True)
        raise


def gather(runs: Sequence[Run], place: Place) -> None:
    """Record what the workdir holds of the given runs, as far as they are at their end; trains nothing."""
    for where, mine in _by_place(runs, place.workdir).items():
        _stages(mine, place._replace(workdir=where), lambda line: None, StopSignals(), train=False)


def missing(runs: Sequence[Run], place: Place) -> list[Run]:
    """The runs that would be trained, as far as this can be told before any is."""
    known, names = store.known(place.directory.parent), _recorded(place)
    lacking = [run for run in runs if store.name_of_run(run) not in names]
    return [run for run in lacking if run.needs or store.identity(run.config) not in known]


def _by_place(runs: Sequence[Run], workdir: Path) -> dict[Path, list[Run]]:
    """Runs of one row under the same conditions share a directory, which more seeds and arms extend."""
    found: dict[Path, list[Run]] = {}
    for run in runs:
        digest = hashlib.sha256(json.dumps(run.conditions, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{workdirs.in_name(run.row)}-{run.conditions['total_steps']}-{digest}"
        found.setdefault(workdir / name, []).append(run)
    return found


def _recorded(place: Place) -> dict[store.Name, bool]:
    """The runs that are recorded, and whether they diverged."""
    return {store.name_of(line): line["diverged"] for line in store.read(place.directory)}


def _stages(
    runs: Sequence[Run], place: Place, say: Callable[[str], None], stop: StopSignals, *, train: bool = True
) -> bool:
    homes: Homes = {}
    recorded = _recorded(place)
    # What begins with another run's files and is recorded needs those no more, and what diverged leaves none.
    needed = {key for run in runs if store.name_of_run(run) not in recorded for key in run.sources}
    needed -= {run.key for run in runs if recorded.get(store.name_of_run(run))}
    waiting, depth, complete = list(runs), 0, True
    while waiting:
        stage = [run for run in waiting if not (set(run.needs) & {other.arm for other in waiting})]
        waiting = [run for run in waiting if run not in stage]
        ready = []
        for run in stage:
            lacking = [key for key in run.sources if key not in homes]
            if not lacking:
                ready.append(_with_sources(run, homes))
            elif train and store.name_of_run(run) not in recorded:
                say(f"{run.arm}, seed {run.config.seed}, is left out: {lacking[0][1]} of that seed did not finish")
        swept = [run for run in ready if run.teacher is None]
        where = place._replace(workdir=place.workdir / f"stage-{depth}")
        if swept:
            complete &= _sweep(swept, needed, where, train=train)
            _check(stop)
        homes |= _homes(swept, where.workdir)
        clones = {_clone_home(run, place): run for run in ready if run.teacher is not None}
        wanted = {
            home: run
            for home, run in clones.items()
            if train and not _finished(home) and (run.key in needed or store.name_of_run(run) not in recorded)
        }
        complete &= _make_clones(wanted, homes, place, say, stop)
        for home, run in clones.items():
            if _finished(home):
                if home not in wanted:
                    _record_clone(run, home, place)
                homes[run.key] = home
        depth += 1
    return complete


def _with_sources(run: Run, homes: Homes) -> Run:
    """A run that begins with the masks another one left, with the place of those."""
    if run.ticket is None:
        return run
    home = homes[run.row, run.ticket, run.config.seed]
    return run._replace(config=dataclasses.replace(run.config, ticket=str(home)))


def _sweep(runs: Sequence[Run], needed: Set[tuple[str, str, int]], place: Place, *, train: bool) -> bool:
    """Make and record the runs that no study has recorded, and those whose files others need."""
    study = place.directory.name
    wanted: dict[str, list[Run]] = {}
    for run in runs:
        wanted.setdefault(store.identity(run.config), []).append(run)
    held = plans.read(place.workdir)
    kept = set[str]()

    def keep(plan: plans.Plan, lines: Sequence[table.Line]) -> None:
        found = []
        for line in lines:
            if line["run"] in kept or not (line["finished"] or line["diverged"]):
                continue
            where = place.workdir / "runs" / line["run"]
            summary = files.read_json(where / "summary.json", {})
            # A summary is the last that a run writes, and one of an earlier start may be there before.
            if summary.get("finished") or (line["diverged"] and summary):
                kept.add(line["run"])
                for run in wanted.get(store.identity(plan.run(line["run"]).config), []):
                    found.append(store.of_directory(run, study, where, diverged=line["diverged"]))
        store.append(place.directory, found)

    if not train:
        if held is not None:
            keep(held, files.read_json(place.workdir / "sweep.json", [], list))
        return True
    known = store.known(place.directory.parent)
    pairs = [(key, run) for key, members in wanted.items() for run in members]
    store.append(place.directory, [store.relabelled(known[key], study, run) for key, run in pairs if key in known])
    new = {key: run.config for key, run in pairs if key not in known or run.key in needed}
    if not new:
        return True
    # A sweep may be extended, not replaced, so what it holds is asked for again.
    configs = {store.identity(run.config): run.config for run in (held.runs if held else ())} | new
    result = sweep(
        list(configs.values()), place.workdir, parallel=place.parallel, worker_count=place.workers, on_table=keep
    )
    return result.finished


def _homes(runs: Sequence[Run], workdir: Path) -> Homes:
    """Where the finished runs of a sweep are."""
    held = plans.read(workdir)
    if held is None:
        return {}
    names = {store.identity(run.config): run.name for run in held.runs}
    found = {run.key: workdir / "runs" / names.get(store.identity(run.config), "") for run in runs}
    return {key: home for key, home in found.items() if _finished(home)}


def _finished(home: Path) -> bool:
    """Whether a directory holds a run, or a clone, that is at its end."""
    return bool(files.read_json(home / "summary.json", {}).get("finished"))


def _clone_home(run: Run, place: Place) -> Path:
    return place.workdir / "clones" / f"{run.arm}-seed{run.config.seed}"


def _record_clone(run: Run, home: Path, place: Place, *, diverged: bool = False) -> None:
    store.append(place.directory, [store.of_directory(run, place.directory.name, home, diverged=diverged)])


def _make_clones(
    runs: Mapping[Path, Run], homes: Homes, place: Place, say: Callable[[str], None], stop: StopSignals
) -> bool:
    """Make clones in the given directories, side by side if runs are processes; false if one was not made."""
    if not runs:
        return True
    tasks = []
    for home, run in runs.items():
        assert run.teacher is not None
        teacher = homes[run.row, run.teacher, run.config.seed] / "policy.npz"
        tasks.append(workers.Task(home.name, run.config, home, teacher))
    complete = True

    def ended(end: workers.End) -> None:
        nonlocal complete
        home = end.task.workdir
        run = runs[home]
        finished, diverged = _finished(home), end.code == workers.DIVERGED
        if finished or diverged:
            _record_clone(run, home, place, diverged=diverged)
        elif stop.received:
            return
        else:
            complete = False
        if finished:
            how = f"return {workdirs.read_rows(home, 'updates')[-1]['return_mean']:.1f} at its end"
        elif diverged or end.code == workers.REFUSED:
            how = end.error
        else:
            how = f"its worker {end.how}; the same command makes it again"
        say(f"{run.arm}, seed {run.config.seed}: {how}")

    if place.parallel == "processes":
        workers.work(tasks, place.workers, stop, ended)
    else:
        for task in tasks:
            _check(stop)
            ended(_clone(task, say, stop))
    _check(stop)
    return complete


def _clone(task: workers.Task, say: Callable[[str], None], stop: StopSignals) -> workers.End:
    """Make a clone in this process."""
    assert task.teacher is not None

    def follow(line: str) -> None:
        say(line)
        _check(stop)

    try:
        cloning.clone(task.config, policies.load(task.teacher), task.workdir, overwrite=True, say=follow)
    except RlxError as error:
        return workers.End(task, workers.code_of(error), str(error).rstrip("."))
    return workers.End(task, 0, "")


def _check(stop: StopSignals) -> None:
    if stop.received:
        raise _StoppedError


def _search(runs: Sequence[Run], place: Place, say: Callable[[str], None], stop: StopSignals) -> bool:
    """Train what the search for the largest sparsity asks for."""
    names = {store.identity(run.config) for run in runs}
    seeds = sorted({run.config.seed for run in runs})
    before: tuple[float, tuple[int, ...]] | None = None
    while True:
        lines = [line for line in store.read(place.directory) if store.of_line(line) in names]
        found = search.search(search.scores_of(lines), seeds)
        if found.missing is None:
            return True
        sparsity, lacking = found.missing
        if found.missing == before:
            say(f"the search needs seeds {', '.join(map(str, lacking))} at sparsity {sparsity:g}, which were not made")
            return False
        before = found.missing
        asked = [run for run in runs if run.config.actor_sparsity == sparsity and run.config.seed in lacking]
        if not _stages(asked, place, say, stop):
            return False
