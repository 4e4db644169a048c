"""Masks as pytrees beside the parameters: kernels get a boolean array, all other leaves are dense, with a mask of ones.

Kernels are the leaves named `kernel`, `[in, out]`, or `[2, in, out]` for the twin critics, whose matrices are masked
one by one. Where they are listed, it is in the natural order of their paths, `Dense_2` before `Dense_10`, which is from
input to output for a perceptron.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlx2_jax.networks import modules
from rlx2_jax.sparse import topology, trees

Masks = Any
"""A pytree of booleans shaped like the parameters."""


def kernels(tree: Any) -> list[jax.Array]:
    """The kernels of a tree shaped like parameters, in order."""
    return [leaf for _, leaf in ordered(tree)]


def paths(tree: Any) -> list[str]:
    """Paths of the kernels, such as `Dense_0/kernel`, in the same order."""
    return [path for path, _ in ordered(tree)]


def with_kernels(tree: Any, new: Sequence[Any]) -> Any:
    """The tree with other kernels, given in order."""
    replaced = trees.by_path(tree) | dict(zip(paths(tree), new, strict=True))
    return jax.tree.unflatten(jax.tree.structure(tree), [*replaced.values()])


def of_kernels(tree: Any, new: Sequence[Any]) -> Masks:
    """Masks for a tree like these parameters: the given ones for its kernels, ones elsewhere."""
    return with_kernels(jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), tree), new)


def is_kernel(path: str) -> bool:
    """Whether a leaf's path is that of a kernel."""
    return path.rpartition("/")[2] == "kernel"


def ordered(tree: Any) -> list[tuple[str, Any]]:
    """The kernels with their paths, in order."""
    mine = [(path, leaf) for path, leaf in trees.by_path(tree).items() if is_kernel(path)]
    natural = lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
    return sorted(mine, key=lambda item: natural(item[0]))


def initial_masks(
    key: jax.Array,
    params: modules.Params,
    links: Sequence[jax.Array],
    width: jax.Array | None,
    *,
    random: bool,
) -> Masks:
    """The first masks: in each matrix the links of largest initial weight, or random ones.

    Args:
      key: for random masks.
      params: initial parameters, kernels `[..., in, out]`.
      links: number of links of each matrix, in order, traced.
      width: live hidden units of a perceptron (see `modules.kernel_support`), traced; None for all of any network.
      random: draw the links uniformly (the paper's text) instead of by magnitude (its release).
    """
    weights = kernels(params)
    chosen = []
    for i, (kernel, count, layer_key) in enumerate(
        zip(weights, links, jax.random.split(key, len(weights)), strict=True)
    ):
        score = jax.random.uniform(layer_key, kernel.shape) if random else jnp.abs(kernel)
        if width is not None:
            support = modules.kernel_support(kernel.shape, width, first=i == 0, last=i == len(weights) - 1)
            score = jnp.where(support, score, -jnp.inf)
        chosen.append(per_matrix(lambda s, count=count: topology.top_connections(s, count))(score))
    return of_kernels(params, chosen)


def per_matrix(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lift a function of matrices to leaves with leading axes (twin critics), mapping over those."""

    def lifted(*leaves: jax.Array) -> Any:
        return trees.over(leaves[0].ndim - 2, function)(*leaves)

    return lifted


def apply(tree: Any, masks: Masks) -> Any:
    """Zero everything off the masks."""
    return jax.tree.map(lambda x, m: jnp.where(m, x, 0), tree, masks)


def count(masks: Masks) -> jax.Array:
    """Links of a network."""
    return jnp.stack([jnp.sum(leaf) for leaf in kernels(masks)]).sum()


def lost(before: Masks, after: Masks) -> jax.Array:
    """Links of one that the other has not, int32."""
    pairs = zip(kernels(before), kernels(after), strict=True)
    return jnp.stack([jnp.sum(old & ~new) for old, new in pairs]).sum()


def checksum(masks: Masks) -> jax.Array:
    """uint32: a sum over the links that one link elsewhere changes, save one time in four billion."""
    flat = jnp.concatenate([kernel.ravel() for kernel in kernels(masks)])
    # A mixed position, not the position itself: moves of two links would cancel in a sum of those.
    position = jnp.arange(1, flat.size + 1, dtype=jnp.uint32) * jnp.uint32(0x9E3779B1)
    position = (position ^ (position >> 15)) * jnp.uint32(0x85EBCA77)
    return jnp.sum(jnp.where(flat, position ^ (position >> 13), 0), dtype=jnp.uint32)


def sparsity(masks: Masks) -> jax.Array:
    """Share of the weights (kernels, not biases) that is absent."""
    weights = sum(leaf.size for leaf in kernels(masks))
    return (weights - count(masks)) / weights
