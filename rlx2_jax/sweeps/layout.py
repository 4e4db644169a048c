"""Runs laid over devices: the functions of a program for a batch of runs, and the way of data to and from it.

A batch is `vmap` on each device, under `shard_map` over a mesh with the one axis `runs`; `pmap` is another spelling of
the same. State, keys and hyperparameters have a row per run. Progress and schedule have none: all runs of a batch are
equally far, so every `lax.cond` on them stays a branch, and what is not due costs nothing.

Under `pmap` arrays on devices are `[devices, rows / devices, ...]`, under `shard_map` `[rows, ...]`; on the host and in
checkpoints they are always `[rows, ...]`, so that a sweep goes on over other devices.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlx2_jax.config import Schedule
from rlx2_jax.training import programs
from rlx2_jax.training.compiled import Compiled, compile_functions

AXIS = "runs"

ROWS = 0
"""Mapped over the leading axis."""

_FIELDS: dict[str, Any] = dict.fromkeys(programs.TrainState.__dataclass_fields__, ROWS)

STATE = programs.TrainState(**_FIELDS).replace(progress=None)
"""What of a state has a row per run: all but the progress."""

Shape = tuple[int, ...]
"""Of an array."""

Axes = Any
"""A prefix of a pytree: `ROWS`, or None for what all runs share."""


class Layout:
    """Rows of runs over devices."""

    def __init__(self, devices: Sequence[jax.Device], parallel: str = "shard_map"):
        """Lay out over devices of all hosts, by `shard_map` or `pmap`."""
        self.mesh = Mesh(np.asarray(devices), (AXIS,))
        self.parallel = parallel

    @property
    def size(self) -> int:
        """Devices."""
        return self.mesh.size

    def map(self, function: Callable[..., Any], in_axes: Sequence[Axes], out_axes: Axes, *, donate: bool) -> Any:
        """A function of one run as a jitted function of rows of runs.

        Args:
          function: of one run.
          in_axes: of each argument.
          out_axes: of the result.
          donate: whether the first argument's memory is used for the result.
        """
        return _mapped(function, self.mesh, self.parallel, tuple(in_axes), out_axes, donate)

    def shapes(self, tree: Any, rows: int, axes: Axes = ROWS) -> Any:
        """Shapes on devices of a tree of one run's shapes."""

        def shape(axis: int | None, leaf: Any) -> jax.ShapeDtypeStruct:
            if axis is None:
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, P()))
            lead = (rows,) if self.parallel == "shard_map" else (self.size, rows // self.size)
            sharding = NamedSharding(self.mesh, P(AXIS))
            return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=sharding)

        return _map(shape, axes, tree)

    def put(self, tree: Any, axes: Axes = ROWS) -> Any:
        """Host arrays `[rows, ...]`, or without rows where `axes` is None, the same on every host, onto devices."""

        def put(axis: int | None, leaf: Any) -> jax.Array:
            array = np.asarray(leaf)
            if axis is not None and self.parallel == "pmap":
                array = array.reshape(self.size, -1, *array.shape[1:])
            sharding = NamedSharding(self.mesh, P() if axis is None else P(AXIS))
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return _map(put, axes, tree)

    def flat(self, state: programs.TrainState) -> programs.TrainState:
        """A state on devices as `[rows, ...]`; its memory is used for the result."""
        return state if self.parallel == "shard_map" else self._flatten(state)

    def flat_shapes(self, template: Any) -> Any:
        """Shapes on devices of a state, as of `flat`."""
        if self.parallel == "shard_map":
            return template

        def shape(axis: int | None, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            lead = leaf.shape if axis is None else (leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
            return jax.ShapeDtypeStruct(lead, leaf.dtype, sharding=leaf.sharding)

        return _map(shape, STATE, template)

    def folded(self, state: programs.TrainState) -> programs.TrainState:
        """A state of `[rows, ...]` as devices have it, the opposite of `flat`."""
        return state if self.parallel == "shard_map" else self._fold(state)

    def gather(self, tree: Any) -> Any:
        """Rows on devices as host arrays `[rows, ...]` on every host; all hosts must call it."""
        if jax.process_count() > 1:
            return multihost_utils.process_allgather(tree, tiled=True)
        return jax.tree.map(self._flat, jax.device_get(tree))

    def local(self, tree: Any) -> Any:
        """The rows of this host's devices as host arrays, in the order of `local_rows`."""

        def rows(leaf: jax.Array) -> np.ndarray:
            shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            return self._flat(np.concatenate([np.asarray(shard.data) for shard in shards]))

        return jax.tree.map(rows, tree)

    def local_rows(self, rows: int) -> list[int]:
        """Which of so many rows lie on this host's devices, ascending."""
        each = rows // self.size
        mine = [i for i, device in enumerate(self.mesh.devices) if device.process_index == jax.process_index()]
        return [i * each + k for i in mine for k in range(each)]

    @functools.cached_property
    def _flatten(self) -> Any:
        return self._reshaping(lambda shape: (-1, *shape[2:]))

    @functools.cached_property
    def _fold(self) -> Any:
        return self._reshaping(lambda shape: (self.size, -1, *shape[1:]))

    def _reshaping(self, to: Callable[[Shape], Shape]) -> Any:
        """A jitted function of a state: on each device its rows stay where they are in memory."""
        reshaped = lambda axis, leaf: leaf if axis is None else leaf.reshape(to(leaf.shape))
        placed = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), _specs(STATE))
        return jax.jit(lambda state: _map(reshaped, STATE, state), donate_argnums=0, out_shardings=placed)

    def _flat(self, array: np.ndarray) -> np.ndarray:
        return array if self.parallel == "shard_map" else array.reshape(-1, *array.shape[2:])


MAPPED_KEPT = 64
"""Functions of rows of runs that a process keeps, about five a program: equal ones are traced and compiled once."""


@functools.lru_cache(MAPPED_KEPT)
def _mapped(
    function: Callable[..., Any], mesh: Mesh, parallel: str, in_axes: tuple[Axes, ...], out_axes: Axes, donate: bool
) -> Any:
    """See `Layout.map`."""
    many = jax.vmap(function, in_axes=in_axes, out_axes=out_axes)
    donated = (0,) if donate else ()
    if parallel == "pmap":
        devices = list(mesh.devices)
        return jax.pmap(many, AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donated, devices=devices)
    # Nothing is exchanged between devices, so there is nothing for shard_map to check.
    specs = _specs(in_axes)
    over = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=_specs(out_axes), check_vma=False)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(over, in_shardings=shardings, donate_argnums=donated)


def compile_batch(
    layout: Layout,
    program: programs.Program,
    schedule: Schedule,
    rows: int,
    say: Callable[[str], None] = lambda line: None,
) -> Compiled:
    """Compile a program's functions for batches of so many rows, a multiple of the number of devices."""
    began = time.perf_counter()
    key = jax.random.PRNGKey(0)
    template = layout.shapes(jax.eval_shape(program.init, key, program.hparams), rows, STATE)
    keys, hparams = (layout.shapes(jax.eval_shape(lambda x=x: x), rows) for x in (key, program.hparams))
    times = layout.shapes(jax.eval_shape(lambda: schedule), rows, None)
    step = (STATE, ROWS, None)
    functions = {
        "chunk": layout.map(program.chunk, step, STATE, donate=True),
        "report": layout.map(program.report, step, (STATE, ROWS), donate=True),
        "renew": layout.map(program.renew, (STATE,), STATE, donate=True),
        "init": layout.map(program.init, (ROWS, ROWS), STATE, donate=False),
        "finite": layout.map(programs.finite, (STATE,), ROWS, donate=False),
    }
    # Hosts compile in the same order.
    threads = 1 if jax.process_count() > 1 else None
    quick = program.config.compute == "packed"
    return compile_functions(
        functions, template, keys, hparams, times, began=began, say=say, quick=quick, threads=threads
    )


def _specs(axes: Axes) -> Any:
    return jax.tree.map(lambda axis: P() if axis is None else P(AXIS), axes, is_leaf=lambda axis: axis is None)


def _map(function: Callable[[int | None, Any], Any], axes: Axes, tree: Any) -> Any:
    """`function(axis, leaf)` over a tree and a prefix of it."""
    return jax.tree.map(
        lambda axis, part: jax.tree.map(lambda leaf: function(axis, leaf), part),
        axes,
        tree,
        is_leaf=lambda axis: axis is None,
    )
