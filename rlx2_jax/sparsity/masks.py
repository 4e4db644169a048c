"""Masks as pytrees beside the parameters: kernels get a boolean array, biases are always dense.

Kernels are `[in, out]`, or `[2, in, out]` for the twin critics, whose matrices are masked one by one. A packed network
has a tuple of `Links` for a mask, and its parameters are one vector of all layers' values and biases; `pack` and
`unpack` convert, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlx2_jax import networks
from rlx2_jax.sparse import topology, trees
from rlx2_jax.sparsity import links as packing
from rlx2_jax.sparsity.links import Links

Masks = Any
"""A pytree of booleans shaped like the parameters, or, for a packed network, a tuple of `Links`."""


def initial_masks(
    key: jax.Array,
    params: networks.Params,
    links: Sequence[jax.Array],
    width: jax.Array,
    *,
    random: bool,
) -> Masks:
    """The first masks: in each matrix the links of largest initial weight, or random ones.

    Args:
      key: for random masks.
      params: initial parameters, kernels `[..., in, out]`.
      links: number of links of each matrix, input to output, traced.
      width: live hidden units (see `networks.kernel_support`), traced.
      random: draw the links uniformly (the paper's text) instead of by magnitude (its release).
    """
    layers = networks.layers(params)
    result = {}
    for i, (name, count, layer_key) in enumerate(zip(layers, links, jax.random.split(key, len(layers)), strict=True)):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        support = networks.kernel_support(kernel.shape, width, first=i == 0, last=i == len(layers) - 1)
        score = jax.random.uniform(layer_key, kernel.shape) if random else jnp.abs(kernel)
        score = jnp.where(support, score, -jnp.inf)
        result[name] = {
            "kernel": per_matrix(lambda s, count=count: topology.top_connections(s, count))(score),
            "bias": jnp.ones_like(bias, bool),
        }
    return result


def per_matrix(function: Any) -> Any:
    """Lift a function of matrices to leaves with leading axes (twin critics), mapping over those."""

    def lifted(*leaves: jax.Array) -> Any:
        return trees.over(leaves[0].ndim - 2, function)(*leaves)

    return lifted


def is_packed(masks: Masks) -> bool:
    """Whether a network with these masks is packed: a property of the structure, known when tracing."""
    return isinstance(masks, tuple)


def pack_masks(masks: Masks, counts: Sequence[int]) -> tuple[Links, ...]:
    """Boolean masks as `Links`, given how many links each matrix has, input to output."""
    return tuple(
        per_matrix(lambda mask, count=count: packing.from_mask(mask, count))(mask)
        for mask, count in zip(kernels(masks), counts, strict=True)
    )


def unpack_masks(links: tuple[Links, ...]) -> Masks:
    """Inverse of `pack_masks`."""
    return {
        f"Dense_{i}": {
            "kernel": _per_network(packing.to_mask, link)(link),
            "bias": jnp.ones(link.row_start[..., 1:].shape, bool),
        }
        for i, link in enumerate(links)
    }


def pack(tree: Any, links: tuple[Links, ...]) -> jax.Array:
    """Parameters, or a tree like them, as one vector: of each layer in turn, the values on its links and the biases.

    What is off the links is lost.
    """

    def pack_one(tree: Any, links: tuple[Links, ...]) -> jax.Array:
        layers = [tree[name] for name in networks.layers(tree)]
        parts: list[jax.Array] = []
        for layer, link in zip(layers, links, strict=True):
            parts += [packing.pack(layer["kernel"], link), layer["bias"]]
        return jnp.concatenate(parts)

    return _per_network(pack_one, links[0])(tree, links)


def unpack(vector: jax.Array, links: tuple[Links, ...]) -> Any:
    """Inverse of `pack`: zeros off the links."""

    def unpack_one(vector: jax.Array, links: tuple[Links, ...]) -> Any:
        return {
            f"Dense_{i}": {"kernel": packing.unpack(layer.values, link), "bias": layer.bias}
            for i, (link, layer) in enumerate(zip(links, packing.split(vector, links), strict=True))
        }

    return _per_network(unpack_one, links[0])(vector, links)


def _per_network(function: Callable[..., Any], links: Links) -> Callable[..., Any]:
    """Lift a function of one network to twins, if the given links have a leading axis."""
    return trees.over(links.inputs.ndim - 1, function)


def apply(tree: Any, masks: Masks) -> Any:
    """Zero everything off the mask; None stands for a mask of ones, and a packed tree has nothing off it."""
    if masks is None or is_packed(masks):
        return tree
    return jax.tree.map(lambda x, m: jnp.where(m, x, 0), tree, masks)


def kernels(tree: Any) -> list[jax.Array]:
    """The kernel leaves of a parameter-shaped tree, input to output."""
    return [tree[name]["kernel"] for name in networks.layers(tree)]


def booleans(masks: Masks) -> Masks:
    """Masks as a pytree of booleans, those of a packed network too."""
    return unpack_masks(masks) if is_packed(masks) else masks


def count(masks: Masks) -> jax.Array:
    """Links of a network."""
    return jnp.stack([jnp.sum(leaf) for leaf in kernels(booleans(masks))]).sum()


def checksum(masks: Masks) -> jax.Array:
    """uint32: a sum over the links of boolean masks that one link elsewhere changes, save one time in four billion."""
    flat = jnp.concatenate([kernel.ravel() for kernel in kernels(masks)])
    # A mixed position, not the position itself: moves of two links would cancel in a sum of those.
    position = jnp.arange(1, flat.size + 1, dtype=jnp.uint32) * jnp.uint32(0x9E3779B1)
    position = (position ^ (position >> 15)) * jnp.uint32(0x85EBCA77)
    return jnp.sum(jnp.where(flat, position ^ (position >> 13), 0), dtype=jnp.uint32)


def sparsity(masks: Masks) -> jax.Array:
    """Share of the weights (kernels, not biases) that is absent."""
    weights = sum(leaf.size for leaf in kernels(booleans(masks)))
    return (weights - count(masks)) / weights
