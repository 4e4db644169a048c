"""Topology evolution: which links a matrix keeps, drops and grows (paper section 4.1, algorithm 1).

All functions act on one matrix, keep shapes and the number of links, and take traced numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx2_jax import native


def top_links(score: jax.Array, count: jax.Array) -> jax.Array:
    """Mask of the `count` largest entries of `score`; among equals the first in row-major order win.

    Args:
      score: any shape; NaN ranks below everything.
      count: traced integer.

    Returns:
      Boolean array of the same shape with exactly `min(count, score.size)` ones.
    """
    if native.available():
        flat = jax.ShapeDtypeStruct((score.size,), bool)
        call = jax.ffi.ffi_call(native.TOP_LINKS, flat, vmap_method="expand_dims")
        return call(score.astype(jnp.float32).ravel(), jnp.asarray(count, jnp.int32)).reshape(score.shape)
    return _top_links(score, count)


def _top_links(score: jax.Array, count: jax.Array) -> jax.Array:
    key = _sortable(score.ravel())
    threshold = _threshold(key, count, 32)
    above, equal = key > threshold, key == threshold
    # Among equals the first: the same search over positions counted from the end, of which no two are alike.
    size = key.size
    position = jnp.where(equal, jnp.arange(size, 0, -1, dtype=jnp.uint32), 0)
    first = position >= _threshold(position, count - jnp.sum(above), size.bit_length())
    return (above | (equal & first)).reshape(score.shape)


def _threshold(key: jax.Array, count: jax.Array, bits: int) -> jax.Array:
    """The `count`-th largest key, found bit by bit: far cheaper to compile and to run than a sort."""

    def refine(i: jax.Array, threshold: jax.Array) -> jax.Array:
        candidate = threshold | (jnp.uint32(1) << jnp.asarray(bits - 1 - i, jnp.uint32))
        return jnp.where(jnp.sum(key >= candidate) >= count, candidate, threshold)

    return jax.lax.fori_loop(0, bits, refine, jnp.uint32(0))


def _sortable(score: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the given floats; NaN lowest, and both zeros alike."""
    score = jnp.where(score == 0, 0.0, score).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(score, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(jnp.isnan(score), 0, jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31)))


def drop_and_grow(
    weight: jax.Array, mask: jax.Array, grow_score: jax.Array, fraction: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """One topology event on one matrix (Evci et al., 2020, as used in the paper).

    `k = floor(fraction * links)` active links of smallest `|weight|` are dropped, then the `k` links of largest
    `|grow_score|` outside those kept are grown. A grown link starts at zero; one that is dropped and grown in the same
    event keeps its value. The number of links never changes.

    Args:
      weight: `[in, out]`; only values on the mask count.
      mask: `[in, out]`, boolean.
      grow_score: `[in, out]`: the dense gradient for RigL and RLx2, random numbers for SET.
      fraction: share of the links to move, in [0, 1], traced.

    Returns:
      The new weight, zero off the new mask, and the new mask.
    """
    active = jnp.sum(mask)
    moved = jnp.floor(fraction * active.astype(jnp.float32)).astype(jnp.int32)
    # Absent links rank below every active one, also below those whose weight is exactly zero.
    kept = top_links(jnp.where(mask, jnp.abs(weight), -jnp.inf), active - moved)
    # Kept links rank below every candidate, also below those without a usable score.
    score = jnp.where(jnp.isnan(grow_score), 0.0, jnp.abs(grow_score))
    grown = top_links(jnp.where(kept, -jnp.inf, score), moved)
    new_mask = kept | grown
    return jnp.where(new_mask & mask, weight, 0), new_mask


def drop_fraction_at(initial: jax.Array, call: jax.Array, end: jax.Array) -> jax.Array:
    """Share of links moved by an event: `zeta_0 / 2 (1 + cos(pi t / T_end))`, and none from `T_end` on.

    Args:
      initial: zeta_0.
      call: optimiser calls made so far, t.
      end: T_end in optimiser calls.
    """
    phase = call.astype(jnp.float32) / jnp.maximum(end, 1).astype(jnp.float32)
    return jnp.where(call < end, initial / 2 * (1 + jnp.cos(jnp.pi * phase)), 0.0)
