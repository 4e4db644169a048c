"""How many links each matrix gets. Host-side arithmetic, done once before anything compiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Shape = tuple[int, int]


def erdos_renyi(shapes: Sequence[Shape], sparsity: float) -> tuple[float, ...]:
    """Erdős-Rényi densities of a stack of matrices (paper section 4.1; Mocanu et al., 2018).

    A matrix with shape `(in, out)` gets density `eps (in + out) / (in out)`, with one `eps` for all, such that the
    whole stack has the asked sparsity. A matrix whose density would pass 1 is kept dense and `eps` is solved again
    for the rest. Doubling the list (twin critics) leaves the densities as they are.

    Args:
      shapes: `(in, out)` of each matrix.
      sparsity: share of all weights that is absent, in [0, 1).

    Returns:
      The density of each matrix, in (0, 1].

    Raises:
      ValueError: no such densities exist, or a matrix would be left without a link.
    """
    if not shapes or any(side < 1 for shape in shapes for side in shape):
        raise ValueError(f"shapes {list(shapes)} need at least one matrix, with sides of 1 or more.")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity} is impossible; use a number in [0, 1).")
    size = [i * o for i, o in shapes]
    reach = [i + o for i, o in shapes]
    dense: set[int] = set()
    while True:
        rest = [j for j in range(len(shapes)) if j not in dense]
        if not rest:
            break
        budget = (1 - sparsity) * sum(size) - sum(size[j] for j in dense)
        eps = budget / sum(reach[j] for j in rest)
        full = {j for j in rest if eps * reach[j] / size[j] >= 1}
        if not full:
            break
        dense |= full
    result = tuple(1.0 if j in dense else eps * reach[j] / size[j] for j in range(len(shapes)))
    if min(round(d * s) for d, s in zip(result, size, strict=True)) < 1:
        raise ValueError(f"sparsity {sparsity} leaves a matrix of {list(shapes)} without a link; use a lower one.")
    return result


def link_counts(shapes: Sequence[Shape], densities: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers of links for the given densities."""
    return tuple(max(1, round(d * i * o)) for (i, o), d in zip(shapes, densities, strict=True))


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
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity} is impossible; use a number in [0, 1).")
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
