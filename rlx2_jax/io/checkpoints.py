"""Checkpoints of a whole run: everything an exact resume needs, through Orbax, with checksums of our own.

    workdir/checkpoints/<env steps>/    what Orbax writes: the state, and a JSON item on the run and step it belongs to
    workdir/checksums/<env steps>.json  SHA-256 of its files, written last: without it a checkpoint does not count
    workdir/rejected/<env steps>/       what was set aside: damaged, incomplete, or of another run or step

Orbax restores flipped bytes silently, and casts dtypes silently; the checksums and the recorded structure catch both.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from rlx2_jax.errors import CheckpointError, FileError
from rlx2_jax.io import archives, files

KEEP = 2
"""Checkpoints kept: the last, and one to fall back on."""

ABOUT = "about/metadata"
"""The file of a checkpoint that says what it is."""

FULL = [os.strerror(number) for number in sorted(files.FULL)]
"""What the system says where more space would help."""

MENDS = {os.strerror(errno.ENOENT): "put its directory back"}
"""What else helps, by what the system says."""

UNFINISHED = "*.orbax-checkpoint-tmp*"
"""What Orbax calls a checkpoint that it has not finished."""


class _UnusableError(Exception):
    """What is wrong with a checkpoint, as the end of a sentence about it."""


class Checkpoints:
    """The checkpoints of one run. Close it, or use it as a context manager; one per workdir at a time."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        """Open the checkpoints of a run.

        Args:
          workdir: the run's directory.
          config: the run's resolved configuration as plain values; a checkpoint of another is refused.
        """
        with files.writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        self._directory = Path(os.path.realpath(workdir / "checkpoints"))
        self._checksums = workdir / "checksums"
        self._rejected = workdir / "rejected"
        self._config = json.loads(json.dumps(config))
        self._manager: ocp.CheckpointManager | None = None
        logging.getLogger("absl").setLevel(logging.ERROR)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._manager is not None:
            self._manager.close()

    def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
        """Write a checkpoint and wait until it is complete.

        Args:
          step: environment steps made.
          state: any pytree of arrays.
          record: plain values to go with it.

        Raises:
          CheckpointError: it could not be written.
        """
        about = {"step": step, "config": self._config, "structure": _structure(state), "record": dict(record)}
        self._check_folders()
        kept = self._counted()
        with _silence():
            try:
                saved = self._write(step, state, about)
            except Exception as error:
                if jax.process_count() > 1 and not isinstance(error, OSError | ValueError):
                    raise  # Another host is gone, as a rule.
                self._clear(step)
                raise CheckpointError(_unwritten(step, error, kept)) from None
        if not saved:
            raise CheckpointError(
                f"checkpoint at step {step} was not written: the workdir holds a later one; use a fresh workdir."
            )

    def _write(self, step: int, state: Any, about: Mapping[str, Any]) -> bool:
        self._checksums.mkdir(exist_ok=True)  # A directory that is gone stays so.
        saved = self._open().save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(_filled(state)), about=ocp.args.JsonSave(about)),
            force=True,
        )
        self._open().wait_until_finished()
        if saved and jax.process_index() == 0:
            files.write_json(self._checksums / f"{step}.json", _hashes(self._directory / str(step)))
            for path in self._checksums.glob("*.json"):
                if not (self._directory / path.stem).exists():
                    path.unlink()
        return saved

    def _clear(self, step: int) -> None:
        """Remove what a save that failed has left, once Orbax's threads write no more."""
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax"):
                threading.Thread.join(thread, timeout=10)  # Its own would raise the error again.
        self._remove_unfinished()
        if jax.process_index() == 0 and step not in self._counted():
            _remove(self._directory / str(step))

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for path in self._directory.glob(UNFINISHED):
                _remove(path)

    def steps(self) -> list[int]:
        """Steps of the checkpoints present, newest first, good or not.

        Raises:
          CheckpointError: something else stands in the place of a folder.
        """
        self._check_folders()
        return _numbers([path.name for path in self._directory.glob("*")])

    def _check_folders(self) -> None:
        for folder in (self._directory, self._checksums):
            if folder.exists() and not folder.is_dir():
                raise CheckpointError(f"{folder} is no folder; put the folder back, or name another workdir.")

    def _counted(self) -> list[int]:
        """Steps of the checkpoints that were completed, newest first."""
        stems = [path.stem for path in self._checksums.glob("*.json")]
        return [step for step in _numbers(stems) if (self._directory / str(step)).exists()]

    def forget_incomplete(self) -> None:
        """Set aside checkpoints that a process was killed in, so that a run with no other can start over."""
        for step in set(self.steps()) - set(self._counted()):
            self._set_aside(step)

    def restore(
        self,
        template: Any,
        warn: Callable[[str], None],
        barrier: Callable[[str], None] = lambda name: None,
        kinds: Mapping[str, Any] | None = None,
    ) -> tuple[int, Any, dict[str, Any]]:
        """Read the newest good checkpoint; newer ones are named through `warn` and set aside.

        Args:
          template: the state's structure, as from `jax.eval_shape`; leaves with a sharding are restored to it, others
            to the first device.
          warn: takes one sentence for each checkpoint passed over.
          barrier: waits for all hosts, where there are several.
          kinds: of values that a record must have.

        Returns:
          Its step, state and record.

        Raises:
          CheckpointError: there is none, or none that is good and of this run.
        """
        problems: list[tuple[int, str]] = []
        for step in self.steps():
            try:
                record = self._record(step, template, kinds or {})
            except _UnusableError as problem:
                problems.append((step, str(problem)))
                continue
            barrier("checkpoints compared")
            for bad_step, sentence in problems:
                aside = self._set_aside(bad_step)
                warn(
                    f"checkpoint at step {bad_step} {sentence}; using the one at step {step}, the other is now {aside}."
                )
            barrier("bad checkpoints set aside")
            return step, self._read(step, template), record
        if not problems:
            raise CheckpointError(f"no checkpoint in {self._directory}; start afresh in another workdir.")
        found = "; ".join(f"step {step} {sentence}" for step, sentence in problems)
        raise CheckpointError(f"no usable checkpoint in {self._directory}: {found}; start afresh in another workdir.")

    def _record(self, step: int, template: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a checkpoint that is good and of this run."""
        directory = self._directory / str(step)
        try:
            hashes = files.read_json(self._checksums / f"{step}.json", None)
        except FileError:
            raise _UnusableError("has unreadable checksums") from None
        if hashes is None:
            raise _UnusableError("is incomplete")
        for name, expected in sorted(hashes.items()):
            if (found := _hash(directory / name)) is None or found != expected:
                raise _UnusableError(f"is damaged ({name})")
        try:
            about = files.read_json(directory / ABOUT, {}) if ABOUT in hashes else {}
            archives.require(about, {"config": dict, "structure": list, "record": dict})
            archives.require(about["record"], kinds)
        except (FileError, ValueError):
            raise _UnusableError("has an unreadable description") from None
        config = about["config"]
        if config != self._config:
            names = sorted(k for k in {*config, *self._config} if config.get(k) != self._config.get(k))
            raise _UnusableError(f"belongs to another run (other {', '.join(names)})")
        if about["structure"] != _structure(template):
            raise _UnusableError("was written by another version of this package")
        if about.get("step", step) != step:  # Older ones do not say.
            raise _UnusableError(f"is the one of step {about['step']}")
        return about["record"]

    def _set_aside(self, step: int) -> Path:
        target = self._rejected / str(step)
        if jax.process_index() == 0:
            with files.writing(target):
                self._rejected.mkdir(exist_ok=True)
                _remove(target)
                shutil.move(self._directory / str(step), target)
        return target

    def _read(self, step: int, template: Any) -> Any:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device)
        places = jax.tree.map(placed, template)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_filled(places)))
        with _silence():
            try:
                found = self._open().restore(step, args=args).state
            except Exception as error:
                raise CheckpointError(
                    f"checkpoint at step {step} cannot be read ({_reason(error)}); restore a copy of "
                    f"{self._directory / str(step)}, or move it away to go on from an older one."
                ) from None
        empty = lambda asked: jnp.zeros(asked.shape, asked.dtype, device=asked.sharding)
        return jax.tree.map(lambda asked, read: empty(asked) if read is None else read, places, found)

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._remove_unfinished()
            policies = checkpoint_managers
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.preservation_policy.LatestN(KEEP),
                    enable_async_checkpointing=False,
                ),
            )
        return self._manager


def _structure(tree: Any) -> list[list[Any]]:
    """Path, shape and dtype of every leaf."""
    return [
        [jax.tree_util.keystr(path), list(leaf.shape), str(np.dtype(leaf.dtype))]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _filled(tree: Any) -> Any:
    """The same without its empty arrays, which Orbax refuses to save."""
    return jax.tree.map(lambda leaf: leaf if math.prod(leaf.shape) else None, tree)


def _numbers(names: Iterable[str]) -> list[int]:
    """Steps, newest first, among names of files: only what is spelled as a checkpoint's is one."""
    return sorted((int(name) for name in names if name.isdecimal() and str(int(name)) == name), reverse=True)


def _hashes(directory: Path) -> dict[str, str | None]:
    """Hash of every file but hidden ones: those are not Orbax's, but of the system beneath."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(directory).as_posix(): _hash(path) for path in paths}


def _hash(path: Path) -> str | None:
    """SHA-256 of a file, or None if it cannot be read."""
    try:
        with files.open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Orbax from logging tracebacks of errors that it raises, too."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _unwritten(step: int, error: Exception, kept: Sequence[int]) -> str:
    """A sentence on a checkpoint that could not be written, and what to go on from."""
    reason = _reason(error)
    mend = "free space there" if reason in FULL else MENDS.get(reason, "make its directory writable")
    told = f"checkpoint at step {step} could not be written ({reason}); {mend}"
    if kept:
        return f"{told}, then resume: the one at step {kept[0]} is kept."
    return f"{told}, or name another workdir: there is none yet."


def _reason(error: Exception) -> str:
    """What went wrong, in a few words: TensorStore tells it amid a page."""
    text = str(error)
    for full in FULL:
        if full in text:
            return full
    return getattr(error, "strerror", None) or text.strip().partition("\n")[0].rstrip(".")[:200] or type(error).__name__
