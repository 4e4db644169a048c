"""A tree's first masks, and an event: the moves of connections in all of its sparse leaves. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax.sparse import criteria, densities, topology, trees
from rlx2_jax.sparse.criteria import Criterion
from rlx2_jax.sparse.densities import Density, Shape
from rlx2_jax.sparse.errors import SparseError
from rlx2_jax.sparse.methods import Method
from rlx2_jax.sparse.trees import Masks, Tree


class Leaf(NamedTuple):
    """A sparse leaf."""

    path: str
    """Its keys, joined by slashes."""
    stack: int
    """Leading axes, which count independent matrices."""
    shape: Shape
    """Shape of one of these matrices."""


class Event(NamedTuple):
    """What an event makes of a tree."""

    params: Tree
    """Zero off the new masks."""
    masks: Masks
    """The new masks."""
    dropped: jax.Array
    """Connections that went, of the whole tree; int32."""
    grown: jax.Array
    """Connections that came."""


def initial_masks(method: Method, params: Tree, key: jax.Array) -> Masks:
    """The masks a tree begins with: in each sparse leaf the connections of largest `method.initial`.

    Raises:
      SparseError: the tree has no sparse leaf, or one cannot hold its number of connections.
    """
    found = sparse_leaves(method, params)
    counts = _counts(method.density, found)
    for leaf in found:
        if leaf is not None:
            method.structure.check(leaf.path, leaf.shape, counts[leaf.path])
    counts = counts_at(method, found, 0)

    def of_leaf(leaf: Leaf, weight: jax.Array, key: jax.Array) -> jax.Array:
        def one(weight: jax.Array, key: jax.Array) -> jax.Array:
            score = _score(method.initial, weight, jnp.zeros_like(weight), key, method)
            target = method.structure.spread(counts[leaf.path], *score.values.shape)
            chosen = jax.vmap(topology.top_connections)(score.plain(0.0), target)
            return method.structure.join(chosen, leaf.shape)

        return trees.over(leaf.stack, one)(weight, _keys(key, weight.shape[: leaf.stack]))

    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [None if leaf is None else of_leaf(leaf, w, k) for leaf, w, k in zip(found, leaves, keys, strict=True)],
    )


def rewire(
    method: Method,
    params: Tree,
    masks: Masks,
    gradients: Tree,
    *,
    key: jax.Array,
    step: jax.Array | float = 0,
    fraction: jax.Array | float | None = None,
) -> Event:
    """One event, usable alone: the gradients may be of any batch, and the event at any time.

    Args:
      method: of its parts, what scores connections, how many there are, and how they fall into groups.
      params: zero off the masks.
      masks: with as many connections as they will have, unless the method's density changes over time.
      gradients: dense.
      key: for what is random in scores.
      step: updates made so far, traced; what `method.fraction` and `method.progress` go by.
      fraction: share of the connections to move, traced; None for `method.fraction(step)`.

    Returns:
      The new parameters and masks. What grows starts at zero; what goes and comes again in one event keeps its value.
    """
    step, masks = jnp.asarray(step), trees.whole(masks, params)
    moved = method.fraction(step) if fraction is None else fraction
    found = sparse_leaves(method, params)
    counts = {} if method.progress is None else counts_at(method, found, step)
    keys = jax.random.split(key, len(found))
    rest = iter(zip(found, keys, strict=True))

    def of_leaf(mask: Any, weight: jax.Array, gradient: jax.Array) -> Any:
        leaf, leaf_key = next(rest)
        if leaf is None or mask is None:
            return None
        one = _mover(method, leaf, moved, counts.get(leaf.path))
        return trees.over(leaf.stack, one)(weight, mask, gradient, _keys(leaf_key, weight.shape[: leaf.stack]))

    new = trees.map_masks(of_leaf, masks, params, gradients)
    lost = lambda a, b: sum(
        (jnp.sum(x & ~y, dtype=jnp.int32) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)),
        jnp.int32(0),
    )
    kept = trees.map_masks(lambda mask, x, old: x if mask is None else jnp.where(mask & old, x, 0), new, params, masks)
    return Event(kept, new, lost(masks, new), lost(new, masks))


def _mover(method: Method, leaf: Leaf, moved: jax.Array | float, count: jax.Array | None) -> Callable[..., jax.Array]:
    """The event of one matrix."""
    structure = method.structure

    def move(weight: jax.Array, mask: jax.Array, gradient: jax.Array, key: jax.Array) -> jax.Array:
        drop_key, grow_key = jax.random.split(key)
        drop = _score(method.drop, weight, gradient, drop_key, method)
        grow = _score(method.grow, weight, gradient, grow_key, method)
        target = None if count is None else structure.spread(count, *drop.values.shape)
        return structure.join(topology.exchange(structure.split(mask), drop, grow, moved, target), leaf.shape)

    return move


def _score(
    criterion: Criterion, weight: jax.Array, gradient: jax.Array, key: jax.Array, method: Method
) -> topology.Score:
    # What these two look at is known, so that their sizes need not be written down first.
    known = weight if criterion is criteria.magnitude else gradient if criterion is criteria.gradient else None
    values = criterion(weight, gradient, key) if known is None else known
    if values.shape != weight.shape:
        raise SparseError(f"a criterion gave scores {values.shape} of a weight {weight.shape}; give one to each entry.")
    return topology.Score(method.structure.split(values), absolute=known is not None)


def sparse_leaves(method: Method, params: Tree) -> list[Leaf | None]:
    """Describe each leaf of a tree that is sparse; None for the others.

    Raises:
      SparseError: none is, one is no matrix, or two have one path.
    """
    found: list[Leaf | None] = []
    for path, leaf in trees.by_path(params).items():
        stack = method.stacked(path, leaf) if callable(method.stacked) else method.stacked
        one = jax.ShapeDtypeStruct(jnp.shape(leaf)[stack:], jnp.result_type(leaf))
        is_sparse = jnp.ndim(leaf) >= stack and method.where(path, one)
        if is_sparse and (len(one.shape) < 2 or 0 in one.shape):
            raise SparseError(f"{path} has the shape {one.shape}: leave it out by `where`, which is for matrices.")
        found.append(Leaf(path, stack, one.shape) if is_sparse else None)
    if not any(found):
        names = ", ".join(trees.by_path(params)) or "nothing"
        raise SparseError(f"no leaf is sparse among {names}: name matrices or kernels by `where`.")
    return found


def counts_at(method: Method, found: Sequence[Leaf | None], step: jax.Array | float) -> dict[str, jax.Array]:
    """Connections of one matrix of each sparse leaf after `step` updates, by path; int32."""
    end = {path: jnp.asarray(count, jnp.int32) for path, count in _counts(method.density, found).items()}
    if method.progress is None:
        return end
    # Numbers on the way lie between start and end, whatever a schedule gives.
    left = jnp.clip(1 - method.progress(jnp.asarray(step)), 0, 1)
    start = _counts(method.start, found)
    return {path: count + jnp.round((start[path] - count) * left).astype(jnp.int32) for path, count in end.items()}


def connections_at(method: Method, found: Sequence[Leaf], step: int | float) -> dict[str, int]:
    """Connections of one matrix of each sparse leaf after `step` updates, as the structure holds them; on the host."""

    def held(leaf: Leaf, count: jax.Array) -> int:
        groups = jax.eval_shape(method.structure.split, jax.ShapeDtypeStruct(leaf.shape, jnp.float32)).shape
        return int(jnp.sum(method.structure.spread(count, *groups)))

    with jax.ensure_compile_time_eval():
        counts = counts_at(method, found, step)
        return {leaf.path: held(leaf, counts[leaf.path]) for leaf in found}


def _counts(density: Density, found: Sequence[Leaf | None]) -> dict[str, Any]:
    shapes = {leaf.path: leaf.shape for leaf in found if leaf is not None}
    asked = density(shapes)
    counts = {}
    if missing := ", ".join(path for path in shapes if path not in asked):
        raise SparseError(f"the density says nothing of {missing}: give a number for each sparse leaf.")
    for path, shape in shapes.items():
        value = densities.plain(asked[path])
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            counts[path] = value
        elif not isinstance(value, float):
            raise SparseError(f"{path}: a density must be one known number; trace numbers of connections instead.")
        elif not 0 < value <= 1:
            raise SparseError(f"{path}: a density of {value} is impossible; use a number in (0, 1].")
        else:
            counts[path] = densities.whole(value, shape)
        if isinstance(counts[path], int) and not 1 <= counts[path] <= math.prod(shape):
            raise SparseError(f"{path} cannot hold {counts[path]} connections; use 1 to {math.prod(shape)}.")
    return counts


def _keys(key: jax.Array, shape: Shape) -> jax.Array:
    return jax.random.split(key, shape) if shape else key
