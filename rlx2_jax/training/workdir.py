"""The directory a run owns.

config.json       all resolved values
metrics.jsonl     one object per evaluation
tensorboard/      the same as TensorBoard events
checkpoints/      whole-run state and rows so far (see `checkpoints`), with checksums/ and rejected/ beside it
policy.npz        the policy at the last evaluation; policy_best.npz at the best one (see `policies`)
masks.npz         the masks it began and ended with, once it is finished (see `tickets`)
summary.json      what came out
curve.png         what it looked like
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlx2_jax import files, lock, tickets
from rlx2_jax.config import Config, resolve
from rlx2_jax.errors import ConfigError, FileError, WorkdirError

CONTENTS = (
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "checksums",
    "rejected",
    "policy.npz",
    "policy_best.npz",
    tickets.NAME,
    "summary.json",
    "curve.png",
    "config.json",
)
"""In the order in which they are removed: what has no config.json is no run."""


COMPUTE = "compute"
"""The field that says how networks are computed."""

HOW = frozenset({COMPUTE, "data_parallel", "checkpoint_every"})
"""Fields that say how, not what: a run may be resumed with others."""

TICKET = "ticket"
"""The field that says where: a run may be resumed with the same masks in another place."""


def identity(config: Config) -> dict[str, Any]:
    """The values that make a resolved configuration this run and no other."""
    return {name: value for name, value in config.to_dict().items() if name not in HOW}


def checkpoint_identity(config: Config) -> dict[str, Any]:
    """The same for a checkpoint, which asks what a ticket holds, not where it lies.

    Raises:
      CheckpointError: a ticket that cannot be read.
    """
    values = identity(config)
    return values if config.ticket is None else values | {TICKET: tickets.digest(config.ticket)}


@contextlib.contextmanager
def held(workdir: Path, config: Config, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """A directory made fit for this run by `prepare`, with other processes kept out of it meanwhile.

    Raises:
      WorkdirError: as `prepare`, or another process holds it.
    """
    if resume and overwrite:
        raise WorkdirError("resume and overwrite: a run is continued or replaced; leave one out.")
    check_name(workdir)
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


def prepare(workdir: Path, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Make the directory fit for this run, or refuse.

    Args:
      workdir: made if it does not exist.
      config: resolved.
      resume: go on with the run it holds, if it holds one.
      overwrite: remove the run it holds, whichever that is.

    Raises:
      WorkdirError: not writable, or holding a run that is not to be continued or replaced.
    """
    path = workdir / "config.json"
    try:
        files.make_writable(workdir)
    except OSError as error:
        raise WorkdirError(
            f"workdir {workdir} cannot be written ({error.strerror}); name another with --workdir."
        ) from None
    for name in CONTENTS:
        files.remove_unfinished(workdir / name)
    if overwrite and not resume:
        for name in CONTENTS:
            _remove(workdir / name)
    if path.exists():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise WorkdirError(f"{path} is damaged; name another --workdir{_or_replace(resume)}.") from None
        wanted = json.loads(json.dumps(identity(config)))
        # Whether a resumed run has the same ticket, its checkpoint tells.
        if other := differences(held, wanted):
            raise WorkdirError(
                f"workdir {workdir} holds another run ({other}); name another --workdir{_or_replace(resume)}."
            )
        if not resume:
            raise WorkdirError(
                f"workdir {workdir} holds this run already; continue it with --resume, or replace it with --overwrite."
            )
    else:
        files.write_json(path, config.to_dict())


def differences(held: Mapping[str, Any], wanted: Mapping[str, Any], first: Collection[str] = ()) -> str:
    """In which fields one run is not another, a few of them, in words; empty where they are the same.

    What a person sets stands before what is derived from it, as in `Config`, and what `first` names before all.
    """
    order = [*first, *(field.name for field in dataclasses.fields(Config)), *held]
    names = [name for name in dict.fromkeys(order) if name not in HOW | {TICKET}]
    other = [name for name in names if held.get(name) != wanted.get(name)]
    return ", ".join(f"{name}={held.get(name)} not {wanted.get(name)}" for name in other[:4])


def _or_replace(resume: bool) -> str:
    """Who asks to go on with a run does not want to lose it."""
    return "" if resume else ", or replace it with --overwrite"


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
    """The resolved values of the run a directory holds.

    Raises:
      WorkdirError: it holds none.
    """
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise WorkdirError(f"{workdir} holds no run ({path} cannot be read); name the directory of one.") from None


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


def last_scores(rows: Sequence[dict[str, Any]], count: int) -> list[float]:
    """Mean returns of the last evaluations."""
    return [row["return_mean"] for row in rows[-count:]]


def _remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it; of a link to a folder only what is in that."""
    for each in path.iterdir() if path.is_symlink() and path.is_dir() else [path]:
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)
