"""Masks as pytrees beside the parameters: kernels get a boolean array, biases are always dense.

Kernels are `[in, out]`, or `[2, in, out]` for the twin critics, whose matrices are masked one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlx2_jax import networks
from rlx2_jax.sparsity import topology

Masks = Any
"""A pytree of booleans shaped like the parameters."""


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
            "kernel": per_matrix(lambda s, count=count: topology.top_links(s, count))(score),
            "bias": jnp.ones_like(bias, bool),
        }
    return result


def per_matrix(function: Any) -> Any:
    """Lift a function of matrices to leaves with leading axes (twin critics), mapping over those."""

    def lifted(*leaves: jax.Array) -> Any:
        mapped = function
        for _ in range(leaves[0].ndim - 2):
            mapped = jax.vmap(mapped)
        return mapped(*leaves)

    return lifted


def apply(tree: Any, masks: Masks) -> Any:
    """Zero everything off the mask; None stands for a mask of ones."""
    if masks is None:
        return tree
    return jax.tree.map(lambda x, m: jnp.where(m, x, 0), tree, masks)


def kernels(tree: Any) -> list[jax.Array]:
    """The kernel leaves of a parameter-shaped tree, input to output."""
    return [tree[name]["kernel"] for name in networks.layers(tree)]


def sparsity(masks: Masks) -> jax.Array:
    """Share of the weights (kernels, not biases) that is absent."""
    leaves = kernels(masks)
    links = jnp.stack([jnp.sum(leaf) for leaf in leaves]).sum()
    weights = sum(leaf.size for leaf in leaves)
    return (weights - links) / weights
