"""The directory a run owns.

config.json       all resolved values
metrics.jsonl     one object per evaluation
tensorboard/      the same as TensorBoard events; wandb/ and wandb.json or trackio.json beside it (see `loggers`)
checkpoints/      whole-run state and rows so far (see `checkpoints`), with checksums/ and rejected/ beside it
policy.npz        the policy at the last evaluation; policy_best.npz at the best one (see `policies`)
topology.npz      the masks over training (see `policies.history`)
masks.npz         the masks it began and ended with, once it is finished (see `tickets`)
summary.json      what came out
curve.png         what it looked like
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlx2_jax.config import Config, RunConfig, resolve
from rlx2_jax.errors import ConfigError, FileError, WorkdirError
from rlx2_jax.io import files, lock
from rlx2_jax.policies import history, tickets

FILES = (
    "metrics.jsonl",
    "policy.npz",
    "policy_best.npz",
    history.NAME,
    tickets.NAME,
    "summary.json",
    "curve.png",
    "wandb.json",
    "trackio.json",
    "config.json",
)
"""Files that a run leaves, its configuration last."""

FOLDERS = {
    "tensorboard": r"events\.out\.tfevents\..*",
    "wandb": r"(offline-)?run-.*|latest-run|debug.*\.log|settings",
    "checkpoints": r"[0-9]+(\.orbax-checkpoint-tmp.*)?",
    "checksums": r"[0-9]+\.json|\.[0-9]+\.json\.[0-9]+\.tmp",
    "rejected": r"[0-9]+([-.].*)?",
}
"""Names of what a run makes in each of its folders; what else is there is not its own, and stays."""

PLAN = "plan.json"
"""What a sweep leaves in its directory."""

TOLD = ("agent", "env", "method")
"""Fields that every configuration has."""

ELSEWHERE = "restore a copy, or name another --workdir"
"""What helps where a directory is not as a run left it."""

COMPUTE = "compute"
"""The field that says how networks are computed."""

HOW = frozenset({COMPUTE, "data_parallel", "checkpoint_every", "logger"})
"""Fields that say how a run is computed and shown, not what it is: it may be resumed with others."""

TICKET = "ticket"
"""The field that says where: a run may be resumed with the same masks in another place."""


def in_name(text: str) -> str:
    """A text as it may stand in a directory's name on every file system: a task, or what is named by its place."""
    return re.sub("[/:]", "-", text)


def identity(config: RunConfig) -> dict[str, Any]:
    """The values that make a configuration this run and no other."""
    return {name: value for name, value in config.to_dict().items() if name not in HOW}


def checkpoint_identity(config: RunConfig) -> dict[str, Any]:
    """The same for a checkpoint, which asks what a ticket holds, not where it lies.

    Raises:
      CheckpointError: a ticket that cannot be read.
    """
    values = identity(config)
    return values if config.ticket is None else values | {TICKET: tickets.digest(config.ticket)}


@contextlib.contextmanager
def held(workdir: Path, config: RunConfig, *, resume: bool | None, overwrite: bool) -> Iterator[None]:
    """A directory made fit for this run by `prepare`, with other processes kept out of it meanwhile.

    Raises:
      WorkdirError: as `prepare`, or another process holds it.
    """
    if resume and overwrite:
        raise WorkdirError("resume and overwrite: a run is continued or replaced; leave one out.")
    check_name(workdir)
    owned(workdir)  # What is somebody else's is not even locked.
    with lock.hold(workdir):
        prepare(workdir, config, resume=resume, overwrite=overwrite)
        yield


def check_name(workdir: Path) -> None:
    """Refuse a path that checkpoints cannot be written to: they take UTF-8, and Python read another encoding.

    Raises:
      WorkdirError: it has letters that this process cannot tell.
    """
    try:
        str(workdir.resolve()).encode()
    except UnicodeEncodeError:
        raise WorkdirError(
            f"workdir {workdir} has letters that Python cannot read as this locale; set PYTHONUTF8=1, or name another."
        ) from None


def prepare(workdir: Path, config: RunConfig, *, resume: bool | None, overwrite: bool) -> None:
    """Make the directory fit for this run, or refuse.

    Args:
      workdir: made if it does not exist.
      config: of the run.
      resume: go on with the run it holds, if it holds one; None where there is no going on.
      overwrite: remove the run it holds, whichever that is, and nothing that is not a run's.

    Raises:
      WorkdirError: not writable, holding a run that is not to be continued or replaced, or what is no run's.
    """
    values = owned(workdir)
    path = workdir / "config.json"
    try:
        files.make_writable(workdir)
    except OSError as error:
        raise WorkdirError(
            f"workdir {workdir} cannot be written ({error.strerror}); name another with --workdir."
        ) from None
    for name in FILES:
        files.remove_unfinished(workdir / name)
    if values is None or (overwrite and not resume):
        _clear(workdir)
        files.write_json(path, config.to_dict())
        return
    wanted = json.loads(json.dumps(identity(config)))
    # Whether a resumed run has the same ticket, its checkpoint tells.
    if other := differences(values, wanted):
        mend = "" if resume else ", or replace it with --overwrite"  # Who asks to go on does not want to lose it.
        raise WorkdirError(f"workdir {workdir} holds another run ({other}); name another --workdir{mend}.")
    if not resume:
        mend = "" if resume is None else "continue it with --resume, or "
        raise WorkdirError(f"workdir {workdir} holds this run already; {mend}replace it with --overwrite.")


def owned(workdir: Path) -> dict[str, Any] | None:
    """The configuration of the run that a directory holds, by which the run's other files are ours; None without one.

    Raises:
      WorkdirError: it holds something else, which a run would replace, or a run of which something is not in its place.
    """
    require_folder(workdir)
    values = files.read_json(workdir / "config.json", None, mend=ELSEWHERE)
    if values is None:
        if there := [name for name in (*FILES, *FOLDERS, PLAN) if os.path.lexists(workdir / name)]:
            what = "a sweep, no single run" if _is_plan(workdir / PLAN) else f"{there[0]}, which no run has left there"
            raise WorkdirError(f"workdir {workdir} holds {what}; name another --workdir.")
        return None
    if why := _foreign(values):
        raise WorkdirError(
            f"workdir {workdir} holds what is no run of this package ({why} in config.json); name another --workdir."
        )
    for name in FILES:
        if (workdir / name).is_dir():
            raise FileError(f"{workdir / name} is a folder, not a file; move it, or name another --workdir.")
    for name in FOLDERS:
        if os.path.lexists(workdir / name) and not (workdir / name).is_dir():
            raise FileError(f"{workdir / name} is no folder; move it, or name another --workdir.")
    return values


def require_folder(workdir: Path) -> None:
    """Refuse a path where something else than a directory is.

    Raises:
      WorkdirError: there is.
    """
    if os.path.lexists(workdir) and not workdir.is_dir():
        raise WorkdirError(f"workdir {workdir} is no folder; name another --workdir.")


def _foreign(values: dict[str, Any]) -> str:
    """Why values are no configuration, in a few words; empty if they are one."""
    known = {field.name for field in dataclasses.fields(Config)}
    if other := [f"no {name}" for name in TOLD if name not in values] + sorted(set(values) - known):
        return f"{other[0]!r:.40}" if other[0] in values else other[0]
    try:
        Config.from_dict(values)
    except ConfigError as error:
        return str(error).partition(":")[0]
    return ""


def _is_plan(path: Path) -> bool:
    try:
        return {"parallel", "runs", "batches"} <= set(files.read_json(path, {}))
    except FileError:
        return False


def _clear(workdir: Path) -> None:
    """Remove what a run made, but its configuration: a directory without one is nobody's."""
    with files.writing(workdir):
        for folder, made in FOLDERS.items():
            if not (workdir / folder).is_dir():
                continue
            for path in (workdir / folder).iterdir():
                if re.fullmatch(made, path.name):
                    _remove(path)
            if not (workdir / folder).is_symlink() and not any((workdir / folder).iterdir()):
                (workdir / folder).rmdir()
        for name in FILES:
            if name != "config.json":
                _remove(workdir / name)


def differences(held: Mapping[str, Any], wanted: Mapping[str, Any], first: Collection[str] = ()) -> str:
    """Name the fields in which one run is not another, a few of them, in words; empty where they are the same.

    What a person sets stands before what is derived from it, as in `Config`, and what `first` names before all.
    """
    order = [*first, *(field.name for field in dataclasses.fields(Config)), *held]
    names = [name for name in dict.fromkeys(order) if name not in HOW | {TICKET}]
    other = [name for name in names if held.get(name) != wanted.get(name)]
    return ", ".join(f"{name}={held.get(name)} not {wanted.get(name)}" for name in other[:4])


def resumed(workdir: Path, given: Mapping[str, Any]) -> Config:
    """The configuration to go on with in a directory: that of the run it holds, with what a person may change of it.

    Args:
      workdir: of the run.
      given: the settings that a person names; those that say how a run is computed may differ from its own.

    Raises:
      WorkdirError: it holds no run, or settings make another run than the one it holds.
      ConfigError: its configuration is of another version of this package.
    """
    held = Config.from_dict(read_config(workdir))
    wanted = dataclasses.replace(held, **given)
    with contextlib.suppress(ConfigError):
        wanted = resolve(wanted)
    if other := differences(held.to_dict(), wanted.to_dict(), [name for name in given if name in vars(held)]):
        raise WorkdirError(
            f"workdir {workdir} holds another run ({other}); leave these out to go on, or name another --workdir."
        )
    return wanted


def read_config(workdir: Path) -> dict[str, Any]:
    """The resolved values of the run a directory holds, with those that only another version knows.

    Raises:
      WorkdirError: it holds none.
    """
    path = workdir / "config.json"
    values = files.read_json(path, None, mend="name the directory of a run")
    known = {field.name for field in dataclasses.fields(Config)}
    why = f"{path} cannot be read" if values is None else _foreign({k: v for k, v in values.items() if k in known})
    if why:
        raise WorkdirError(f"{workdir} holds no run ({why}); name the directory of one.")
    return values


def read_rows(workdir: Path, steps: str = "env_steps") -> list[dict[str, Any]]:
    """The evaluations of the run a directory holds; none if there are none yet.

    Args:
      workdir: of the run.
      steps: what its steps are called.

    Raises:
      FileError: they are damaged.
    """
    path = workdir / "metrics.jsonl"
    rows = files.read_json_lines(path, "restore a copy, or make its run again")
    for number, row in enumerate(rows, 1):
        numbers = {name: value for name, value in row.items() if type(value) in (int, float)}
        wrong = [name for name in (steps, "return_mean") if name not in numbers]
        wrong += [name for name, value in row.items() if value is not None and name not in numbers]
        if wrong:
            raise FileError(
                f"{path} is damaged (no number {wrong[0]} in line {number}); restore a copy, or make its run again."
            )
    return rows


def require_still_there(workdir: Path) -> None:
    """See that nobody has moved or removed a run's directory: writing would make another one.

    Raises:
      FileError: somebody has.
    """
    with files.writing(workdir):
        (workdir / "config.json").stat()


def kept(workdir: Path | None, step: int) -> str:
    """What is left of a run that cannot go on, in words.

    Args:
      workdir: with its checkpoints.
      step: of the last one; negative if there is none.
    """
    if step < 0:
        return "no checkpoint had been made yet"
    if workdir is not None and not (workdir / "checkpoints" / str(step)).is_dir():
        return f"the checkpoint at step {step:,} is where that directory is now, if anywhere"
    return f"the checkpoint at step {step:,} is kept"


def rewind(
    workdir: Path, env_steps: int, eval_every: int, kept: Sequence[dict[str, Any]] | None
) -> tuple[list[dict[str, Any]], str | None]:
    """Put metrics.jsonl back to what it was at a step; a resumed run makes later evaluations again.

    Args:
      workdir: of the run.
      env_steps: the step.
      eval_every: steps from one evaluation to the next.
      kept: the evaluations up to the step, as its checkpoint has them; older checkpoints have none, and the file must
        be whole.

    Returns:
      The evaluations, and a sentence if the file had others.

    Raises:
      FileError: it cannot be written, or it is needed and damaged.
    """
    path = workdir / "metrics.jsonl"
    mend = "restore a copy of it, or begin another --workdir"
    try:
        found = [row for row in files.read_json_lines(path, mend) if not _is_after(row, env_steps)]
    except FileError:
        if kept is None:
            raise
        found = None
    if kept is None:
        if [row.get("env_steps") for row in found or []] != [*range(eval_every, env_steps + 1, eval_every)]:
            raise FileError(f"{path} has not one row for each evaluation up to step {env_steps:,}; {mend}.")
        kept = found or []
    files.write_json_lines(path, kept)
    if found == list(kept):
        return list(kept), None
    return list(kept), f"{path} was not as the run had written it; it is put back as it was at step {env_steps:,}"


def _is_after(row: Mapping[str, Any], env_steps: int) -> bool:
    return isinstance(row.get("env_steps"), int) and row["env_steps"] > env_steps


def refuse_clone(workdir: Path) -> None:
    """Refuse a directory whose rows are those of a clone.

    Raises:
      WorkdirError: they are.
    """
    with contextlib.suppress(FileError):
        rows = files.read_json_lines(workdir / "metrics.jsonl")
        if rows and "loss" in rows[0]:
            raise WorkdirError(
                f"{workdir} holds a clone, of which there is no page and no such picture; name the directory of a run."
            )


def last_scores(rows: Sequence[dict[str, Any]], count: int) -> list[float]:
    """Mean returns of the last evaluations."""
    return [row["return_mean"] for row in rows[-count:]]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
