"""Links: a packed matrix's index arrays, and the exact conversions between masked and packed.

A masked matrix `[in, out]` holds zeros where links are absent; a packed one holds its links' values alone, `[links]`,
beside the `Links` that say where they stand. They are stored by output, inputs increasing within one, which makes the
packed form of a mask unique:

    values  [ v0  v1 | v2 | v3  v4  v5 ]         row_start [0, 2, 3, 6]
    inputs  [  0   7 |  2 |  1   2   9 ]

The number of links is a shape, fixed for the life of a program; which links they are is data. The functions here take
one matrix; map them over leading axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp


class Links(flax.struct.PyTreeNode):
    """Where the links of one matrix `[in, out]` stand; twin critics have a leading axis on every field. All int32."""

    row_start: jax.Array
    """`[out + 1]`: first link of each output, and one past the last."""
    inputs: jax.Array
    """`[links]`, by output."""
    column_start: jax.Array
    """`[in + 1]`: first link of each input, when links are taken by input."""
    outputs: jax.Array
    """`[links]`, by input."""
    order: jax.Array
    """`[links]`, by input: where the link stands among those by output."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(in, out)` of one matrix."""
        return self.column_start.shape[-1] - 1, self.row_start.shape[-1] - 1

    @property
    def count(self) -> int:
        """Links of one matrix."""
        return int(self.inputs.shape[-1])


def from_mask(mask: jax.Array, count: int) -> Links:
    """The links of a boolean matrix `[in, out]` that has exactly `count` of them."""
    _, inputs = jnp.nonzero(mask.T, size=count)
    by_input, outputs = jnp.nonzero(mask, size=count)
    position = (jnp.cumsum(mask.T.ravel()) - 1).reshape(mask.T.shape)
    as_index = lambda x: x.astype(jnp.int32)
    return Links(
        row_start=_starts(mask.sum(0)),
        inputs=as_index(inputs),
        column_start=_starts(mask.sum(1)),
        outputs=as_index(outputs),
        order=as_index(position[outputs, by_input]),
    )


def to_mask(links: Links) -> jax.Array:
    """The boolean matrix `[in, out]` of the links; inverse of `from_mask`."""
    return jnp.zeros(links.shape, bool).at[links.inputs, outputs_by_output(links)].set(True)


def pack(matrix: jax.Array, links: Links) -> jax.Array:
    """The entries of a matrix `[in, out]` on the links: `[links]`, by output."""
    return matrix[links.inputs, outputs_by_output(links)]


def unpack(values: jax.Array, links: Links) -> jax.Array:
    """The matrix `[in, out]` with the given values on the links and zeros elsewhere; inverse of `pack`."""
    return jnp.zeros(links.shape, values.dtype).at[links.inputs, outputs_by_output(links)].set(values)


def split(vector: jax.Array, links: Sequence[Links]) -> list[tuple[jax.Array, jax.Array]]:
    """Values `[links]` and bias `[out]` of each layer, from the vector that holds them in turn."""
    sizes = [size for link in links for size in (link.count, link.shape[1])]
    parts = jnp.split(vector, list(itertools.accumulate(sizes))[:-1])
    return list(zip(parts[::2], parts[1::2], strict=True))


def outputs_by_output(links: Links) -> jax.Array:
    """`[links]`: the output of each link, in the order of the values."""
    link = jnp.arange(links.count)
    return jnp.searchsorted(links.row_start[1:], link, side="right").astype(jnp.int32)


def _starts(counts: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
