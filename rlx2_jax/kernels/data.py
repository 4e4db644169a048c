"""Gathers and random bits, which weigh as much as the products of an update once those are packed.

All are stand-ins: the same values as what they replace (a window's partial return to rounding), from the native kernels
where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from rlx2_jax.runtime import native


def take_rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """`table[index]` along the first axis, without a gradient.

    Args:
      table: `[rows, ...]` of a four-byte type.
      index: `[...]`, int32, within the table; outside it the native kernels raise.

    Returns:
      `[*index.shape, *table.shape[1:]]`.
    """
    if not native.available():
        return table[index]
    flat = table.reshape(table.shape[0], math.prod(table.shape[1:]))
    shape = jax.ShapeDtypeStruct((index.size, flat.shape[1]), table.dtype)
    taken = jax.ffi.ffi_call(native.TAKE_ROWS, shape, vmap_method="broadcast_all")(flat, index.ravel())
    return taken.reshape(*index.shape, *table.shape[1:])


class Windows(NamedTuple):
    """What windows of a replay ring are reduced to; names and meaning as in `replay.buffer.Batch`."""

    observation: jax.Array
    """`[..., O]`, at the window's first step."""
    action: jax.Array
    """`[..., A]`, taken there."""
    partial_return: jax.Array
    """`[...]`, discounted rewards of the window."""
    bootstrap_discount: jax.Array
    """`[...]`, factor of the value that it bootstraps from; 0 after a terminal step."""
    next_observation: jax.Array
    """`[..., O]`, the observation that it bootstraps from."""
    last: jax.Array
    """Step of the window, from 0, after which it bootstraps; int32."""
    weight: jax.Array
    """`[...]`, 0 for a window that is not to be learned from."""


def take_windows(
    ring: Sequence[jax.Array],
    row: jax.Array,
    column: jax.Array,
    n_step: jax.Array,
    n_max: int,
    gamma: jax.Array,
) -> Windows:
    """Native only: `replay.buffer.window` in one pass over the ring, which it reads a third as often.

    Args:
      ring: observation `[R, E, O]`, action `[R, E, A]`, reward `[R, E]`, outcome `[R, E]`, final `[F, E, O]`.
      row: `[...]`, int32, not negative; taken modulo R.
      column: likewise, below E; with these out of range, or an outcome beyond F, the kernel raises.
      n_step: steps per window, scalar.
      n_max: at most.
      gamma: discount per step, scalar.
    """
    observation, action = ring[:2]
    count, shape = row.size, row.shape
    floats = lambda *trailing: jax.ShapeDtypeStruct((count, *trailing), jnp.float32)
    sizes = observation.shape[-1], action.shape[-1]
    last = jax.ShapeDtypeStruct((count,), jnp.int32)
    results = [floats(sizes[0]), floats(sizes[1]), floats(), floats(), floats(sizes[0]), last, floats()]
    call = jax.ffi.ffi_call(native.TAKE_WINDOWS, results, vmap_method="expand_dims")
    scalars = jnp.asarray(n_step, jnp.int32), jnp.asarray(gamma, jnp.float32)
    taken = call(*ring, row.ravel(), column.ravel(), *scalars, n_max=np.int64(n_max))
    return Windows(*(x.reshape(*shape, *x.shape[1:]) for x in taken))


def fast_key(key: jax.Array) -> jax.Array:
    """A Threefry key as one that makes the same random numbers and keys natively: faster, and quicker to compile.

    A key of another kind, or where there are no native kernels, is given back as it is.
    """
    if not native.available() or not jax.config.values["jax_threefry_partitionable"]:
        return key
    # Of plain words, the process's setting says what kind of key they are.
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    kind = str(jax.random.key_impl(key)) if typed else jax.config.values["jax_default_prng_impl"]
    if kind != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key) if typed else key, impl=_NATIVE_THREEFRY)


def key_like(key: jax.Array, other: jax.Array) -> jax.Array:
    """A key, of `fast_key` or not, in the form of another one: typed or plain words."""
    data = jax.random.key_data(key)
    if not jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(other))


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    if bit_width != 32:
        return _THREEFRY.random_bits(key, bit_width, shape)
    result = jax.ShapeDtypeStruct((math.prod(shape),), jnp.uint32)
    return jax.ffi.ffi_call(native.THREEFRY, result, vmap_method="broadcast_all")(key).reshape(shape)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _keys(key, jnp.arange(math.prod(shape), dtype=jnp.uint32)).reshape(*shape, 2)


def _fold_in(key: jax.Array, number: jax.Array | int) -> jax.Array:
    return _keys(key, jnp.asarray(number, jnp.uint32)[None])[0]


def _keys(key: jax.Array, numbers: jax.Array) -> jax.Array:
    result = jax.ShapeDtypeStruct((numbers.size, 2), jnp.uint32)
    return jax.ffi.ffi_call(native.THREEFRY_KEYS, result, vmap_method="broadcast_all")(key, numbers)


_THREEFRY: Any = jax.extend.random.threefry_prng_impl
_NATIVE_THREEFRY = jax.extend.random.define_prng_impl(
    key_shape=(2,),
    seed=_THREEFRY.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="rlx2_threefry",
    tag="rlx2",
)
