"""How many connections each leaf has: host arithmetic, done once before anything compiles.

A density is a function of the shapes of the sparse leaves by path. It gives, for each path, either a density (a float
in (0, 1]) or a number of connections (an int, or an array, which may be traced). Shapes are those of one matrix or
convolution kernel, `[..., in, out]`, without the axes of a stack; each counts once, however high its stack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rlx2_jax.sparse.errors import SparseError

Shape = tuple[int, ...]
"""Shape of one matrix or kernel."""
Shapes = Mapping[str, Shape]
"""Shape of one matrix or kernel by path."""
Density = Callable[[Shapes], Mapping[str, Any]]
"""Density or number of connections by path."""


def uniform(sparsity: float) -> Density:
    """The same density for all leaves."""
    density = 1 - checked(sparsity)
    return lambda shapes: dict.fromkeys(shapes, density)


def erdos_renyi(sparsity: float) -> Density:
    """Erdős-Rényi: a leaf's density is proportional to `(in + out) / (in out)` (Mocanu et al., 2018)."""
    return _shared(sparsity, kernel=False)


def erdos_renyi_kernel(sparsity: float) -> Density:
    """Erdős-Rényi with the sides of kernels: a density proportional to the sum of the shape over its product.

    For matrices it is the same as `erdos_renyi` (Evci et al., 2020, section 3).
    """
    return _shared(sparsity, kernel=True)


def by_path(sparsities: Mapping[str, float], default: float | None = None) -> Density:
    """A sparsity of its own for each leaf: that of the first regular expression found in its path, or the default.

    Raises:
      SparseError: a leaf that no expression is found in where there is no default, or an expression found in none.
    """
    for sparsity in [*sparsities.values(), *([] if default is None else [default])]:
        checked(sparsity)

    def density(shapes: Shapes) -> dict[str, float]:
        if unused := [pattern for pattern in sparsities if not any(re.search(pattern, path) for path in shapes)]:
            raise SparseError(f"by_path: {unused[0]!r} is found in no path; the paths are {', '.join(shapes)}.")
        found = {
            path: next((s for pattern, s in sparsities.items() if re.search(pattern, path)), default) for path in shapes
        }
        if missing := [path for path, sparsity in found.items() if sparsity is None]:
            raise SparseError(f"by_path: no expression is found in {missing[0]!r}; name it, or give a default.")
        return {path: 1 - sparsity for path, sparsity in found.items() if sparsity is not None}

    return density


def connections(counts: Mapping[str, Any]) -> Density:
    """Numbers of connections by path: ints, or arrays, which may be traced, so that one program serves many.

    Raises:
      SparseError: the paths are not those of the sparse leaves.
    """

    def density(shapes: Shapes) -> Mapping[str, Any]:
        if set(counts) != set(shapes):
            raise SparseError(f"connections: name the sparse leaves, which are {', '.join(shapes)}.")
        return counts

    return density


def erdos_renyi_densities(shapes: Sequence[Shape], sparsity: float, *, kernel: bool = False) -> tuple[float, ...]:
    """Erdős-Rényi densities of a stack of matrices and kernels (RLx2, section 4.1; Mocanu et al., 2018).

    A matrix with shape `(in, out)` gets density `eps (in + out) / (in out)`, with one `eps` for all, such that the
    whole stack has the asked sparsity. A matrix whose density would pass 1 is kept dense and `eps` is solved again
    for the rest. Doubling the list (twin critics) leaves the densities as they are.

    Args:
      shapes: `(..., in, out)` of each.
      sparsity: share of all weights that is absent, in [0, 1).
      kernel: with the sides of a kernel, `eps sum(shape) / prod(shape)` (Evci et al., 2020, section 3).

    Returns:
      The density of each, in (0, 1].

    Raises:
      SparseError: no such densities exist, or a matrix would be left without a connection.
    """
    if not shapes or any(side < 1 for shape in shapes for side in shape):
        raise SparseError(f"shapes {list(shapes)} need at least one matrix, with sides of 1 or more.")
    checked(sparsity)
    size = [math.prod(shape) for shape in shapes]
    # What a density of eps comes to in connections.
    reach = [_reach(shape, kernel) for shape in shapes]
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
        raise SparseError(f"sparsity {sparsity} leaves a matrix of {list(shapes)} without a link; use a lower one.")
    return result


def _reach(shape: Shape, kernel: bool) -> int:
    if kernel or len(shape) <= 2:
        return sum(shape)
    return (shape[-2] + shape[-1]) * math.prod(shape[:-2])


def _shared(sparsity: float, *, kernel: bool) -> Density:
    checked(sparsity)

    def density(shapes: Shapes) -> dict[str, float]:
        found = erdos_renyi_densities(list(shapes.values()), sparsity, kernel=kernel)
        return dict(zip(shapes, found, strict=True))

    return density


def whole(density: float, shape: Shape) -> int:
    """Connections of a leaf of that density: the nearest whole number, at least 1."""
    return max(1, round(density * math.prod(shape)))


def plain(value: Any) -> Any:
    """A density or a number of connections as Python's, where it is a known scalar of NumPy or JAX; else itself."""
    return value if np.ndim(value) or isinstance(value, jax.core.Tracer) else np.asarray(value).item()


def checked(sparsity: float) -> float:
    """The sparsity itself.

    Raises:
      SparseError: it is outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise SparseError(f"sparsity {sparsity} is impossible; use a number in [0, 1).")
    return sparsity
