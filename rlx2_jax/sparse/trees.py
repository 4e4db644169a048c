"""Pytrees of parameters and of masks: which leaves are sparse, and what is off their masks.

Masks have the structure of the parameters: a boolean array for a sparse leaf, None for a dense one, or for a subtree of
them. What optax puts in place of parameters that are not a transformation's (`MaskedNode`) stays as it is.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx2_jax.sparse.errors import SparseError

Tree = Any
"""A pytree of parameters, or anything of its structure."""
Masks = Any
"""Booleans of the shapes of parameters; None for leaves that are dense."""
Where = Callable[[str, jax.ShapeDtypeStruct], bool]
"""Whether a leaf is sparse, by its path and the shape and type of one matrix, without the axes of a stack."""

# `B` is a matrix, of a low-rank adapter or of a state-space model.
_DENSE_NAMES = re.compile(r"(^|/)(b|(?i:bias|scale|offset|[^/]*embed[^/]*))$")


def matrices(path: str, leaf: jax.ShapeDtypeStruct) -> bool:
    """Matrices and convolution kernels: two axes or more, floating, and not named a bias, a scale or an embedding."""
    if len(leaf.shape) < 2 or 0 in leaf.shape:
        return False
    return jnp.issubdtype(leaf.dtype, jnp.floating) and not _DENSE_NAMES.search(path)


def by_path(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves by their paths, such as `Dense_0/kernel`, in their order; the `value` that NNX adds is left out.

    Raises:
      SparseError: two leaves have one path, as `{"a/w": ..., "a": {"w": ...}}` has.
    """
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    leaves: dict[str, Any] = {}
    for (keys, leaf), alone in zip(found, _alone([keys for keys, _ in found]), strict=True):
        wrapped = alone and keys[-1] == jax.tree_util.GetAttrKey("value")
        path = jax.tree_util.keystr(keys[:-1] if wrapped else keys, simple=True, separator="/")
        if path in leaves:
            raise SparseError(f"two leaves are called {path}: rename one.")
        leaves[path] = leaf
    return leaves


def _alone(found: Sequence[tuple[Any, ...]]) -> list[bool]:
    """Whether each leaf is all that its parent holds: a variable of NNX is, and no field of a record."""
    parents = collections.Counter(keys[:end] for keys in found for end in range(len(keys)))
    return [len(keys) > 1 and parents[keys[:-1]] == 1 for keys in found]


def apply(tree: Tree, masks: Masks) -> Tree:
    """Zero a tree of the parameters' shapes off the masks; leaves without a mask as they are."""
    return map_masks(lambda mask, x: x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype)), masks, tree)


def map_masks(function: Callable[..., Any], masks: Masks, *trees: Tree) -> Tree:
    """`function(mask, *leaves)` of each leaf, mask None for a dense one; the result has the structure of `trees`.

    Raises:
      SparseError: a tree has not the structure of the masks.
    """
    leaves = jax.tree.leaves(trees[0])
    structure: Any = jax.tree.structure(trees[0])
    try:
        rest = [_spread(masks, trees[0]), *(structure.flatten_up_to(tree) for tree in trees[1:])]
    except (ValueError, TypeError) as error:
        raise SparseError(
            "the state, the parameters and the gradients are not of one tree; call sparse.init with these parameters."
        ) from error
    return jax.tree.unflatten(structure, [function(mask, x, *xs) for x, mask, *xs in zip(leaves, *rest, strict=True)])


def _spread(masks: Masks, tree: Tree) -> list[Any]:
    """The mask of each leaf, where None stands for all that is below it.

    Raises:
      ValueError: the masks are of another tree.
    """
    found = jax.tree.leaves(masks, is_leaf=lambda x: x is None)
    structure: Any = jax.tree.structure(masks, is_leaf=lambda x: x is None)
    parts = structure.flatten_up_to(tree)
    if any(mask is not None and not jax.tree_util.all_leaves([part]) for mask, part in zip(found, parts, strict=True)):
        raise ValueError("a mask where there are several parameters")
    return [mask for mask, part in zip(found, parts, strict=True) for _ in jax.tree.leaves(part)]


def whole(masks: Masks, tree: Tree) -> Masks:
    """The masks with a None for each dense leaf of the tree, where one may stand for a subtree of them."""
    return map_masks(lambda mask, x: mask, masks, tree)


def over(axes: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Lift a function of one matrix, or of one network, to a stack: map it over so many leading axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function


def merge(first: Masks, second: Masks) -> Masks:
    """Masks of two transformations of one tree as one: where both have one, what is on both."""
    if first is None or second is None:
        return second if first is None else first
    if jax.tree_util.all_leaves([first]):
        return first & second
    # One level of the tree at a time: either may be None where the other has a whole subtree.
    return jax.tree.map(merge, first, second, is_leaf=lambda x: x is not first)


def own(masks: Masks) -> Masks:
    """The masks of one transformation, None for all that is not its own, be it a leaf or a whole subtree."""
    absent = lambda x: x is None or isinstance(x, optax.MaskedNode)
    return jax.tree.map(lambda mask: None if absent(mask) else mask, masks, is_leaf=absent)


def connections_of(masks: Masks) -> dict[str, jax.Array]:
    """Connections of each sparse leaf by path, int32."""
    # Dense leaves have a part in what paths are.
    found = by_path(masks, is_leaf=lambda x: x is None)
    return {path: jnp.sum(mask, dtype=jnp.int32) for path, mask in found.items() if mask is not None}


def density_of(masks: Masks) -> jax.Array:
    """Share of the sparse leaves' entries that are connections."""
    found = connections_of(masks)
    return sum(found.values(), jnp.int32(0)) / sum(mask.size for mask in jax.tree.leaves(masks))
