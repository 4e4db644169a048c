"""Running a study: what is missing is trained and recorded, in an order in which every run finds what it starts from.

    conduct = stage after stage: runs that need nothing; runs that begin with masks or a teacher which those left; ...
        sweep what no study has recorded; record each run when it is at its end
        clones, one after another

A study that searches has no stages: it trains what the search asks for next, until that needs nothing.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlx2_jax import files, policies
from rlx2_jax.studies import frontier, records
from rlx2_jax.studies.catalogue import Run, Study
from rlx2_jax.sweeps import plan as plans
from rlx2_jax.sweeps import sweep, table
from rlx2_jax.training import cloning

Homes = dict[tuple[str, str, int], Path]
"""Directories of runs by row, arm and seed."""


class Place(NamedTuple):
    """Where a study keeps what."""

    directory: Path
    """Of its records, beside those of the other studies, and named like the study."""
    workdir: Path
    """Of its runs' own files."""
    parallel: str
    """As for `sweeps.sweep`."""
    workers: int | None = None
    """As for `sweeps.sweep`."""


def conduct(study: Study, runs: Sequence[Run], place: Place) -> bool:
    """Train and record what is missing; whether all came to their end.

    Args:
      study: which the runs belong to.
      runs: of `catalogue.runs`.
      place: where.
    """
    return _search(runs, place) if study.search else _stages(runs, place, train=True)


def gather(runs: Sequence[Run], place: Place) -> None:
    """Record what the workdir holds of the given runs, as far as they are at their end; trains nothing."""
    _stages(runs, place, train=False)


def missing(runs: Sequence[Run], place: Place) -> list[Run]:
    """The runs that would be trained, as far as this can be told before any is."""
    known, names = records.known(place.directory.parent), records.names(place.directory)
    return [run for run in runs if not _held(run, names) and (run.needs or records.identity(run.config) not in known)]


def _stages(runs: Sequence[Run], place: Place, *, train: bool) -> bool:
    homes: Homes = {}
    names = records.names(place.directory)
    # What begins with another run's files and is recorded needs those no more.
    sources = {key for run in runs if not _held(run, names) for key in run.sources}
    waiting, depth = list(runs), 0
    while waiting:
        stage = [run for run in waiting if not (set(run.needs) & {other.arm for other in waiting})]
        waiting = [run for run in waiting if run not in stage]
        ready = [_with_sources(run, homes) for run in stage if all(key in homes for key in run.sources)]
        swept = [run for run in ready if run.teacher is None]
        where = place.workdir if depth == 0 else place.workdir / f"stage-{depth}"
        needed = [run for run in swept if run.key in sources]
        if swept and not _sweep(swept, needed, place._replace(workdir=where), train=train):
            return False
        homes |= _homes(swept, where)
        for run in ready:
            if run.teacher is not None:
                wanted = train and (run.key in sources or not _held(run, names))
                homes |= _clone(run, homes, place, train=wanted)
        depth += 1
    return True


def _held(run: Run, names: set[tuple[str, str, str]]) -> bool:
    return records.name(run.row, run.arm, run.config.to_dict()) in names


def _with_sources(run: Run, homes: Homes) -> Run:
    """A run that begins with the masks another one left, with the place of those."""
    if run.ticket is None:
        return run
    home = homes[run.row, run.ticket, run.config.seed]
    return run._replace(config=dataclasses.replace(run.config, ticket=str(home)))


def _sweep(runs: Sequence[Run], needed: Sequence[Run], place: Place, *, train: bool) -> bool:
    """Make and record the runs that no study has recorded, and those whose files others need."""
    wanted = {records.identity(run.config): run for run in runs}
    held = plans.read(place.workdir)

    def keep(plan: plans.Plan, lines: Sequence[table.Line]) -> None:
        found = []
        for line in lines:
            run = wanted.get(records.identity(plan.run(line["run"]).config))
            where = place.workdir / "runs" / line["run"]
            # A summary is the last that a run writes.
            if run is not None and (line["finished"] or line["diverged"]) and (where / "summary.json").exists():
                found.append(records.of_directory(run, place.directory.name, where, diverged=line["diverged"]))
        records.append(place.directory, found)

    if not train:
        if held is not None:
            keep(held, files.read_json(place.workdir / "sweep.json", []))
        return True
    known = records.known(place.directory.parent)
    of_workdir = {records.identity(run.config) for run in (held.runs if held else ())}
    here = of_workdir | {records.identity(run.config) for run in needed}
    records.append(
        place.directory,
        [records.relabelled(known[key], place.directory.name, run) for key, run in wanted.items() if key in known],
    )
    configs = [run.config for key, run in wanted.items() if key in here or key not in known]
    if not configs:
        return True
    return sweep(configs, place.workdir, parallel=place.parallel, worker_count=place.workers, on_table=keep).finished


def _homes(runs: Sequence[Run], workdir: Path) -> Homes:
    """Where the finished runs of a sweep are."""
    held = plans.read(workdir)
    if held is None:
        return {}
    names = {records.identity(run.config): run.name for run in held.runs}
    found = {run.key: workdir / "runs" / names.get(records.identity(run.config), "") for run in runs}
    return {key: home for key, home in found.items() if files.read_json(home / "summary.json", {}).get("finished")}


def _clone(run: Run, homes: Homes, place: Place, *, train: bool) -> Homes:
    """Make and record a clone, unless it is there; where it is."""
    assert run.teacher is not None
    home = place.workdir / "clones" / f"{run.row.replace('/', '-')}-{run.arm}-seed{run.config.seed}"
    there = files.read_json(home / "summary.json", {}).get("finished", False)
    if train and not there:
        teacher = policies.load(homes[run.row, run.teacher, run.config.seed] / "policy.npz")
        cloning.clone(run.config, teacher, home, overwrite=True, say=lambda line: print(line, file=sys.stderr))
    elif not there:
        return {}
    records.append(place.directory, [records.of_directory(run, place.directory.name, home, diverged=False)])
    return {run.key: home}


def _search(runs: Sequence[Run], place: Place) -> bool:
    """Train what the search for the largest sparsity asks for, row by row."""
    for row in dict.fromkeys(run.row for run in runs):
        mine = [run for run in runs if run.row == row]
        names = {records.identity(run.config) for run in mine}
        seeds = list(dict.fromkeys(run.config.seed for run in mine))
        while True:
            scores: dict[float, dict[int, float]] = {}
            for line in records.read(place.directory):
                if line["row"] == row and records.of_line(line) in names:
                    scores.setdefault(line["actor_sparsity"], {})[line["seed"]] = line["score"]
            found = frontier.search(scores, seeds)
            if found.missing is None:
                break
            sparsity, lacking = found.missing
            # With the seeds before them, because a sweep may be extended, not replaced.
            most = seeds.index(lacking[-1])
            asked = [r for r in mine if r.config.actor_sparsity == sparsity and seeds.index(r.config.seed) <= most]
            where = place.workdir / row.replace("/", "-") / asked[0].arm
            if not _sweep(asked, [], place._replace(workdir=where), train=True):
                return False
    return True
