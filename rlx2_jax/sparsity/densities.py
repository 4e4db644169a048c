"""How many links each matrix gets. Host-side arithmetic, done once before anything compiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rlx2_jax.sparse.densities import checked, whole

Shape = tuple[int, int]


def link_counts(shapes: Sequence[Shape], densities: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers of links for the given densities."""
    return tuple(whole(density, shape) for shape, density in zip(shapes, densities, strict=True))


def tiny_width(sizes: Sequence[int], sparsity: float) -> int:
    """Hidden width of the dense network with about as many weights as a sparse one (the method `tiny`).

    Args:
      sizes: `(inputs, hidden..., outputs)` of the full network.
      sparsity: of the sparse network to be matched.

    Returns:
      The width of every hidden layer, at least 1, at most the full one.

    Raises:
      ValueError: sparsity outside [0, 1).
    """
    checked(sparsity)
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    budget = (1 - sparsity) * weights
    layers = len(sizes) - 2
    linear = sizes[0] + sizes[-1]
    # Solve (layers - 1) w^2 + linear w = budget.
    if layers == 1:
        width = budget / linear
    else:
        square = layers - 1
        width = (-linear + math.sqrt(linear**2 + 4 * square * budget)) / (2 * square)
    return max(1, min(round(width), *sizes[1:-1]))


def tiny_links(sizes: Sequence[int], width: int) -> tuple[int, ...]:
    """Links of each matrix when every hidden layer has `width` live units."""
    live = [sizes[0], *(min(width, h) for h in sizes[1:-1]), sizes[-1]]
    return tuple(a * b for a, b in itertools.pairwise(live))
