"""A packed matrix's index arrays, and the exact conversions between masked and packed.

A masked matrix `[in, out]` holds zeros where links are absent; a packed one holds its links' values alone beside the
`SparseIndices` that say where they stand. They are stored by output, inputs increasing within one. The arrays have a
capacity, which is at least the number of links; places past the last link are spare. Of a matrix `[12, 3]` with 6 links
and a capacity of 8:

    values  [ v0  v1 | v2 | v3  v4  v5 |  0   0 ]         row_start [0, 2, 3, 6]
    inputs  [  0   7 |  2 |  1   2   9 | 12  12 ]

A spare place says the input past the last, where nothing is: conversions neither read nor write there, and its value is
zero. So the packed form of a mask is unique, and kernels, which go from start to start, do no work for it.

The capacity is a shape, fixed for the life of a program. How many links there are, and which, is data. The functions
here take one matrix; map them over leading axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from rlx2_jax.runtime import native


class SparseIndices(flax.struct.PyTreeNode):
    """Where the links of one matrix `[in, out]` stand; twin critics have a leading axis on every field. All int32."""

    row_start: jax.Array
    """`[out + 1]`: first link of each output, and one past the last."""
    inputs: jax.Array
    """`[capacity]`, by output; `in` at spare places."""
    column_start: jax.Array
    """`[in + 1]`: first link of each input, when links are taken by input."""
    outputs: jax.Array
    """`[capacity]`, by input; `out` at spare places."""
    order: jax.Array
    """`[capacity]`, by input: where the link stands among those by output; spare places stand where they are."""
    spare: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether places may be spare; if not, there are as many links as places."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(in, out)` of one matrix."""
        return self.column_start.shape[-1] - 1, self.row_start.shape[-1] - 1

    @property
    def capacity(self) -> int:
        """Places for links of one matrix, spare ones too."""
        return int(self.inputs.shape[-1])


def from_mask(mask: jax.Array, capacity: int, *, spare: bool = False) -> SparseIndices:
    """The links of a boolean matrix `[in, out]` that has `capacity` of them, or with `spare` at most so many."""
    if native.available():
        rows, columns = mask.shape
        sizes = (columns + 1, capacity, rows + 1, capacity, capacity)
        shapes = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in sizes]
        call = jax.ffi.ffi_call(native.INDEX_LINKS, shapes, vmap_method="expand_dims")
        row_start, inputs, column_start, outputs, order = call(mask, spare=spare)
        return SparseIndices(row_start, inputs, column_start, outputs, order, spare)
    return _from_mask(mask, capacity, spare=spare)


def _from_mask(mask: jax.Array, capacity: int, *, spare: bool) -> SparseIndices:
    before_in_column, per_output = _count_before(mask)
    before_in_row, per_input = _count_before(mask.T)
    row_start, column_start = _starts(per_output), _starts(per_input)
    by_output = row_start[:-1] + before_in_column
    by_input = jnp.where(mask, column_start[:-1, None] + before_in_row.T, capacity)
    index_of = lambda axis: jax.lax.broadcasted_iota(jnp.int32, mask.shape, axis)
    # Absent entries are sent past the end, where nothing is written.
    place = lambda where, values, nowhere: (
        jnp.broadcast_to(jnp.asarray(nowhere, jnp.int32), capacity).at[where].set(values, mode="drop")
    )
    return SparseIndices(
        row_start=row_start,
        inputs=place(jnp.where(mask, by_output, capacity), index_of(0), mask.shape[0]),
        column_start=column_start,
        outputs=place(by_input, index_of(1), mask.shape[1]),
        order=place(by_input, by_output, jnp.arange(capacity)),
        spare=spare,
    )


def to_mask(links: SparseIndices) -> jax.Array:
    """The boolean matrix `[in, out]` of the links; inverse of `from_mask`."""
    return jnp.zeros(links.shape, bool).at[links.inputs, outputs_by_output(links)].set(True, mode="drop")


def pack(matrix: jax.Array, links: SparseIndices) -> jax.Array:
    """The entries of a matrix `[in, out]` on the links, zero at spare places: `[capacity]`, by output."""
    where = links.inputs, outputs_by_output(links)
    return matrix.at[where].get(mode="fill", fill_value=0) if links.spare else matrix[where]


def unpack(values: jax.Array, links: SparseIndices) -> jax.Array:
    """The matrix `[in, out]` with the given values on the links and zeros elsewhere; inverse of `pack`."""
    return jnp.zeros(links.shape, values.dtype).at[links.inputs, outputs_by_output(links)].set(values, mode="drop")


class LayerValues(NamedTuple):
    """What a vector of parameters holds of one layer, in this order."""

    values: jax.Array
    """`[capacity]`, by output."""
    bias: jax.Array
    """`[out]`."""
    scale: jax.Array | None = None
    """`[out]`, of a layer that is normalised; None of others."""
    offset: jax.Array | None = None
    """`[out]`, of a layer that is normalised; None of others."""


def layout(links: Sequence[SparseIndices], *, normalised: bool = False) -> list[tuple[int, ...]]:
    """Sizes of the parts that a vector of parameters holds of each layer in turn.

    They are values and bias, and of the hidden layers, all but the last, of a normalised network scale and offset.
    """
    hidden = len(links) - 1 if normalised else 0
    return [(link.capacity, *(3 if i < hidden else 1) * (link.shape[1],)) for i, link in enumerate(links)]


def split(vector: jax.Array, links: Sequence[SparseIndices], *, normalised: bool = False) -> list[LayerValues]:
    """The parts of each layer, from the vector that holds them in turn."""
    sizes = layout(links, normalised=normalised)
    parts = iter(jnp.split(vector, list(itertools.accumulate(itertools.chain(*sizes)))[:-1]))
    return [LayerValues(*itertools.islice(parts, len(layer))) for layer in sizes]


def outputs_by_output(links: SparseIndices) -> jax.Array:
    """`[capacity]`: the output of each link, in the order of the values; `out` at spare places."""
    return jnp.zeros_like(links.outputs).at[links.order].set(links.outputs)


def _count_before(flags: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many of the rows before each one have a flag set, `[rows, ...]`, and how many do in all, `[...]`; int32.

    A loop over rows, because XLA makes a tree of many kernels of a cumulative sum.
    """

    def add(seen: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return seen + row, seen

    total, before = jax.lax.scan(add, jnp.zeros(flags.shape[1:], jnp.int32), flags.astype(jnp.int32))
    return before, total


def _starts(counts: jax.Array) -> jax.Array:
    before, total = _count_before(counts)
    return jnp.append(before, total)
