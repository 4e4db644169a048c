"""Checkpoints of a whole run: everything an exact resume needs, through Orbax, with checksums of our own.

    workdir/checkpoints/<env steps>/    what Orbax writes: the state, and a JSON item on the run it belongs to
    workdir/checksums/<env steps>.json  SHA-256 of its files, written last: without it a checkpoint does not count

Orbax restores flipped bytes silently, and casts dtypes silently; the checksums and the recorded structure catch both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from rlx2_jax import files
from rlx2_jax.errors import CheckpointError

KEEP = 2
"""Checkpoints kept: the last, and one to fall back on."""


class Checkpoints:
    """The checkpoints of one run. Close it, or use it as a context manager; one per workdir at a time."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]):
        """Open the checkpoints of a run.

        Args:
          workdir: the run's directory.
          config: the run's resolved configuration as plain values; a checkpoint of another is refused.
        """
        self._directory = (workdir / "checkpoints").resolve()
        self._checksums = workdir / "checksums"
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
        about = {"config": self._config, "structure": _structure(state), "record": dict(record)}
        try:
            self._checksums.mkdir(parents=True, exist_ok=True)
            saved = self._open().save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)),
                force=True,
            )
            self._open().wait_until_finished()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint at step {step} could not be written ({error}); free space there, or name another workdir."
            ) from error
        if not saved:
            raise CheckpointError(
                f"checkpoint at step {step} was not written: the workdir holds a later one; use a fresh workdir."
            )
        if jax.process_index() == 0:
            files.write_json(self._checksums / f"{step}.json", _hashes(self._directory / str(step)))
            for path in self._checksums.glob("*.json"):
                if not (self._directory / path.stem).exists():
                    path.unlink()

    def steps(self) -> list[int]:
        """Steps of the checkpoints present, newest first, good or not."""
        if not self._directory.is_dir():
            return []
        return sorted((int(p.name) for p in self._directory.iterdir() if p.name.isdigit()), reverse=True)

    def forget_incomplete(self) -> None:
        """Remove checkpoints that a process was killed in, so that a run with no other can start over."""
        for step in self.steps():
            if not (self._checksums / f"{step}.json").exists():
                shutil.rmtree(self._directory / str(step))

    def restore(
        self, template: Any, warn: Callable[[str], None], barrier: Callable[[str], None] = lambda name: None
    ) -> tuple[int, Any, dict[str, Any]]:
        """Read the newest good checkpoint; newer ones are named through `warn` and set aside.

        Args:
          template: the state's structure, as from `jax.eval_shape`; leaves with a sharding are restored to it, others
            to the first device.
          warn: takes one sentence for each checkpoint passed over.
          barrier: waits for all hosts, where there are several.

        Returns:
          Its step, state and record.

        Raises:
          CheckpointError: there is none, or none that is good and of this run.
        """
        problems: list[tuple[int, str]] = []
        for step in self.steps():
            problem = self._problem(step, template)
            if problem is None:
                barrier("checkpoints compared")
                for bad_step, sentence in problems:
                    aside = self._set_aside(bad_step)
                    warn(
                        f"checkpoint at step {bad_step} {sentence}; using the one at step {step}, "
                        f"the other is now {aside}."
                    )
                barrier("bad checkpoints set aside")
                return step, *self._read(step, template)
            problems.append((step, problem))
        if not problems:
            raise CheckpointError(f"no checkpoint in {self._directory}; start afresh in another workdir.")
        found = "; ".join(f"step {step} {sentence}" for step, sentence in problems)
        raise CheckpointError(f"no usable checkpoint in {self._directory}: {found}; start afresh in another workdir.")

    def _problem(self, step: int, template: Any) -> str | None:
        directory = self._directory / str(step)
        try:
            expected = json.loads((self._checksums / f"{step}.json").read_text())
        except FileNotFoundError:
            return "is incomplete"
        except (OSError, ValueError):
            return "has unreadable checksums"
        found = _hashes(directory)
        if found != expected:
            damaged = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
            return f"is damaged ({damaged[0]})"
        about = json.loads((directory / "about" / "metadata").read_text())
        if about["config"] != self._config:
            names = sorted(
                k for k in {*about["config"], *self._config} if about["config"].get(k) != self._config.get(k)
            )
            return f"belongs to another run (other {', '.join(names)})"
        if about["structure"] != _structure(template):
            return "was written by another version of this package"
        return None

    def _set_aside(self, step: int) -> Path:
        rejected = self._directory.with_name("rejected")
        target = rejected / str(step)
        if jax.process_index() == 0:
            rejected.mkdir(exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            (self._directory / str(step)).rename(target)
        return target

    def _read(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device)
        target = jax.tree.map(placed, template)
        restored = self._open().restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(target), about=ocp.args.JsonRestore()),
        )
        return restored.state, restored.about["record"]

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
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


def _hashes(directory: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            hashes[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
