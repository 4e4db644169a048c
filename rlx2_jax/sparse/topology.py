"""Topology evolution: which connections a matrix keeps, drops and grows (RLx2, section 4.1, algorithm 1).

All functions act on one matrix, keep shapes, and take traced numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax.runtime import native


def top_connections(score: jax.Array, count: jax.Array, among: jax.Array | None = None) -> jax.Array:
    """Mask of the `count` largest entries of `score`; among equals the first in row-major order win.

    Args:
      score: any shape; NaN ranks below everything.
      count: traced integer.
      among: mask of the entries that may be chosen; None for all.

    Returns:
      Boolean array of the same shape with exactly `count` ones, or with all that may be chosen if they are fewer.
    """
    if native.available():
        flat = jax.ShapeDtypeStruct((score.size,), bool)
        call = jax.ffi.ffi_call(native.TOP_LINKS, flat, vmap_method="expand_dims")
        # A mask has no gradient, and a native call no rule for one; so below.
        operands = [jax.lax.stop_gradient(score).astype(jnp.float32).ravel(), jnp.asarray(count, jnp.int32)]
        return call(*operands, *([] if among is None else [among.ravel()])).reshape(score.shape)
    return _top_connections(score, count, among)


def _top_connections(score: jax.Array, count: jax.Array, among: jax.Array | None = None) -> jax.Array:
    key = _sortable(score.ravel())
    # One more than the lowest of those that may be chosen, which is 0 for NaN; the highest is infinity's.
    key = key + 1 if among is None else jnp.where(among.ravel(), key + 1, 0)
    threshold = jnp.maximum(_threshold(key, count, 32), 1)
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

    `k = floor(fraction * connections)` active connections of smallest `|weight|` are dropped, then the `k` of largest
    `|grow_score|` outside those kept are grown. A grown connection starts at zero; one that is dropped and grown in the
    same event keeps its value. The number of connections never changes.

    Args:
      weight: `[in, out]`; only values on the mask count.
      mask: `[in, out]`, boolean.
      grow_score: `[in, out]`: the dense gradient for RigL and RLx2, random numbers for SET.
      fraction: share of the connections to move, in [0, 1], traced.

    Returns:
      The new weight, zero off the new mask, and the new mask.
    """
    # Not by `exchange`: its native call takes weights as they lie, XLA then lays them out another way in all of an
    # agent's program, and recorded runs would round otherwise.
    active = jnp.sum(mask)
    moved = jnp.floor(fraction * active.astype(jnp.float32)).astype(jnp.int32)
    # Absent connections rank below every active one, also below those whose weight is exactly zero.
    kept = top_connections(jnp.where(mask, jnp.abs(weight), -jnp.inf), active - moved)
    # Kept ones rank below every candidate, also below those without a usable score.
    score = jnp.where(jnp.isnan(grow_score), 0.0, jnp.abs(grow_score))
    grown = top_connections(jnp.where(kept, -jnp.inf, score), moved)
    new_mask = kept | grown
    return jnp.where(new_mask & mask, weight, 0), new_mask


class Score(NamedTuple):
    """Scores of a leaf's entries, `[groups, size]`."""

    values: jax.Array
    """The scores, or what their sizes are taken of."""
    absolute: bool = False
    """Whether it is their sizes that count. It spares a pass over the leaf."""

    def plain(self, nan: float) -> jax.Array:
        """The scores themselves, with something for what is no number."""
        values = jnp.abs(self.values) if self.absolute else self.values
        return jnp.where(jnp.isnan(values), nan, values) if self.absolute else values


def exchange(
    mask: jax.Array,
    drop: Score,
    grow: Score,
    fraction: jax.Array | float,
    target: jax.Array | None = None,
) -> jax.Array:
    """The mask after an event: the lowest of its connections go, the highest others come, group by group.

    Connections that are too many for their group go first. Of those left, `floor(fraction * connections)` go, wherever
    in the leaf they are lowest; then each group grows to its number.

    Args:
      mask: `[groups, size]`.
      drop: the smallest of active connections are dropped, NaN before all.
      grow: the largest outside those kept are grown; NaN after all, or as zero where sizes count.
      fraction: share of the connections to move, in [0, 1], traced.
      target: `[groups]`: connections that each group has afterwards; None for as many as it has.
    """
    fraction = jnp.where(fraction > 0, jnp.minimum(fraction, 1), 0)  # Of NaN, none.
    if mask.shape[0] == 1 and native.available():
        flat = jax.ShapeDtypeStruct((mask.size,), bool)
        call = jax.ffi.ffi_call(native.EXCHANGE_LINKS, flat, vmap_method="expand_dims")
        scores = [score.values.astype(jnp.float32).ravel() for score in (drop, grow)]
        number = -1 if target is None else jnp.maximum(target[0], 0)
        numbers = jnp.asarray(fraction, jnp.float32), jnp.asarray(number, jnp.int32)
        sizes = {"drop_sizes": drop.absolute, "grow_sizes": grow.absolute}
        return call(mask.ravel(), *jax.lax.stop_gradient((*scores, *numbers)), **sizes).reshape(mask.shape)
    return _exchange(mask, drop.plain(-1.0), grow.plain(0.0), fraction, target)


def _exchange(
    mask: jax.Array, drop: jax.Array, grow: jax.Array, fraction: jax.Array | float, target: jax.Array | None
) -> jax.Array:
    active = jnp.sum(mask, axis=1, dtype=jnp.int32)
    target = active if target is None else target
    left = jnp.minimum(active, target)
    total = jnp.sum(left, dtype=jnp.int32)
    kept_number = total - jnp.floor(fraction * total.astype(jnp.float32)).astype(jnp.int32)
    per_group = jax.vmap(top_connections)
    staying = mask if mask.shape[0] == 1 else per_group(drop, left, mask)
    kept = top_connections(drop, kept_number, among=staying)
    return kept | per_group(grow, target - jnp.sum(kept, axis=1, dtype=jnp.int32), ~kept)


def drop_fraction_at(initial: jax.Array, call: jax.Array, end: jax.Array) -> jax.Array:
    """Share of connections an event moves: `zeta_0 / 2 (1 + cos(pi t / T_end))`, and none from `T_end` on.

    Args:
      initial: zeta_0.
      call: optimiser calls made so far, t.
      end: T_end in optimiser calls.
    """
    phase = call.astype(jnp.float32) / jnp.maximum(end, 1).astype(jnp.float32)
    return jnp.where(call < end, initial / 2 * (1 + jnp.cos(jnp.pi * phase)), 0.0)
