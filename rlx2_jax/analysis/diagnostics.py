"""Diagnostics of a run: how its sparse networks are wired, which units work, and how far its values are off.

Pure functions of masks, parameters and activations, cheap enough to be part of every report. Networks are masked ones
here. "Hidden units" are the live ones (see `networks.kernel_support`), and a share of them is one of all hidden layers
together, of both critics: they count alike, wherever they stand. A hidden layer is what stands between a matrix and the
next one that takes as many inputs as it has outputs; beside residual connections, a unit that is dead there may still
be passed on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from rlx2_jax import networks
from rlx2_jax.networks import masking
from rlx2_jax.networks.masking import Masks

T = TypeVar("T")

Values = dict[str, jax.Array]
"""Scalars by name."""

SAMPLES = 256
"""Replayed observations that units are judged by."""

DORMANT = 0.025
"""tau of Sokar et al., 2023: a unit below this share of its layer's mean activity is dormant."""

RANK_SLACK = 0.01
"""delta of Kumar et al., 2021: share of the singular values' sum that an effective rank may miss."""

PARTS = 8
"""Parts of an event's batch between which the variance of its gradient is measured."""


def wiring(kernels: Sequence[jax.Array], width: jax.Array) -> Values:
    """Where the links of a network stand.

    The mean fan-in is fixed by the sparsity; how unequal units are is not.

    Args:
      kernels: booleans of its matrices, of one network or of twins, in the order of their calls.
      width: live units per hidden layer.

    Returns:
      `fan_in_min` and `fan_in_max`, links into a hidden unit, over all of them; `fan_in_cv`, the standard deviation of
      the fan-in over a layer's units, divided by its mean, averaged over layers (and twins); `dead`, the share of
      hidden units with no link in or none out, which can pass nothing on. Of matrices that do not fit the next one, as
      where layers read more than the one before, this is not seen; where none fits, it is of links in alone.
    """
    fitting = [(before, after) for before, after in itertools.pairwise(kernels) if before.shape[-1] == after.shape[-2]]
    links = [(before.sum(-2), after.sum(-1)) for before, after in fitting]
    smallest, largest, spread, dead = [], [], [], []
    for into, out in links or [(kernel.sum(-2), kernel.sum(-2)) for kernel in kernels[:-1]]:
        live = _live(into, width)
        mean = jnp.mean(into, axis=-1, where=live)
        smallest.append(jnp.min(into, where=live, initial=jnp.iinfo(into.dtype).max))
        largest.append(jnp.max(into, where=live, initial=0))
        spread.append(jnp.mean(jnp.std(into, axis=-1, where=live) / mean))
        dead.append((into == 0) | (out == 0))
    return {
        "fan_in_min": jnp.stack(smallest).min(),
        "fan_in_max": jnp.stack(largest).max(),
        "fan_in_cv": jnp.stack(spread).mean(),
        "dead": _share(dead, width),
    }


def compress(mask: Masks) -> tuple[jax.Array, ...]:
    """The matrices of a mask, one bit per weight: bytes of each, in the order of `masking.kernels`."""
    return tuple(jnp.packbits(kernel.ravel()) for kernel in masking.kernels(mask))


def overlap(mask: Masks, first: Sequence[jax.Array]) -> jax.Array:
    """Share of a network's links that an earlier mask, given as by `compress`, had as well: 1 where nothing moved."""
    now = compress(mask)
    count = lambda parts: jnp.stack([jax.lax.population_count(part).sum() for part in parts]).sum()
    return count([a & b for a, b in zip(now, first, strict=True)]) / count(now)


def dormant(hidden: Sequence[jax.Array], width: jax.Array) -> jax.Array:
    """Share of hidden units that are dormant (Sokar et al., 2023): next to silent beside the others of their layer.

    Unit i of a layer of H is, when its score is at most tau:

        score_i = E|h_i| / (1/H sum_k E|h_k|)

    Args:
      hidden: activations `[..., B, units]` of each layer.
      width: live units per hidden layer.
    """
    silent = []
    for layer in hidden:
        activity = jnp.mean(jnp.abs(layer), axis=-2)
        mean = jnp.mean(activity, axis=-1, where=_live(activity, width), keepdims=True)
        silent.append(activity <= DORMANT * mean)
    return _share(silent, width)


def effective_rank(features: jax.Array) -> jax.Array:
    """Effective rank of features (Kumar et al., 2021): directions needed for all but delta of their spectrum.

        srank = min {k: sum_{i <= k} sigma_i >= (1 - delta) sum_i sigma_i},   sigma_1 >= sigma_2 >= ...

    Not through the eigenvalues of the Gram matrix: in single precision their roots are off by up to 3e-4 sigma_1 each,
    in sum more than delta.

    Args:
      features: `[..., B, units]`.

    Returns:
      `[...]`, int32; 0 if all features are zero.
    """
    sigma = jnp.vectorize(_singular_values, signature="(b,u)->(k)")(features)
    reached = jnp.cumsum(sigma, axis=-1)
    total = reached[..., -1:]
    needed = jnp.sum(reached < (1 - RANK_SLACK) * total, axis=-1) + 1
    return jnp.where(total[..., 0] > 0, needed, 0).astype(jnp.int32)


@jax.custom_batching.sequential_vmap
def _singular_values(matrix: jax.Array) -> jax.Array:
    # One matrix at a time: on a CPU, JAX hands the matrices of a batch to its pool of threads and waits for them in one
    # of these, so that several devices at it at once can wait for ever.
    return jnp.linalg.svd(matrix, compute_uv=False)


def signal_to_noise(gradient: Callable[[T], networks.Params], parts: T, mask: Masks) -> jax.Array:
    """Signal-to-noise ratio of a gradient at a network's absent links, the candidates of a topology event.

    Entry by entry, with mean m and sample variance s^2 of the gradients on P equal parts of the batch,

        SNR = (P - 3) / (P - 1) P m^2 / s^2 - 1

    averaged over the absent links. P m^2 / s^2 is t^2, the squared t-statistic; the correction makes the ratio unbiased
    for normal noise: its mean is mu^2 / (sigma^2 / P), the squared gradient over the variance of the whole batch's
    estimate of it, and 0 where there is noise only. An entry whose gradient is zero in all parts counts 0.

    Args:
      gradient: of one part, dense.
      parts: tree with a leading axis of P.
      mask: of the network, booleans.

    Returns:
      A scalar; NaN if no link is absent, or P is below 4.
    """
    count = jax.tree.leaves(parts)[0].shape[0]
    if count < 4:
        return jnp.asarray(jnp.nan)

    def add(carry: tuple[list[jax.Array], list[jax.Array], jax.Array], part: T) -> tuple[tuple, None]:
        # Welford's recurrence: one gradient at a time, and exact where there is no noise.
        mean, squares, seen = carry
        new = masking.kernels(gradient(part))
        seen = seen + 1
        off = [g - m for g, m in zip(new, mean, strict=True)]
        mean = [m + d / seen for m, d in zip(mean, off, strict=True)]
        squares = [q + d * (g - m) for q, d, g, m in zip(squares, off, new, mean, strict=True)]
        return (mean, squares, seen), None

    kernels = masking.kernels(mask)
    zeros = [jnp.zeros(kernel.shape) for kernel in kernels]
    (mean, squares, _), _ = jax.lax.scan(add, (zeros, zeros, jnp.zeros(())), parts)
    total, absent = jnp.zeros(()), jnp.zeros((), jnp.int32)
    for kernel, m, q in zip(kernels, mean, squares, strict=True):
        # Noise below rounding is rounding.
        variance = jnp.maximum(q / (count - 1), (jnp.finfo(m.dtype).eps * m) ** 2)
        ratio = (count - 3) / (count - 1) * count * m**2 / jnp.where(variance > 0, variance, 1) - 1
        total += jnp.sum(ratio, where=~kernel & (variance > 0))
        absent += jnp.sum(~kernel)
    return total / absent


def split(batch: T) -> T:
    """Regroup arrays `[B, ...]` into `[P, B // P, ...]`, P being `PARTS` or at most B; a remainder is left out.

    Every P-th sample makes a part: devices that each hold a slice of a batch then hold slices of the same parts.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    parts = min(PARTS, size)
    each = size // parts
    return jax.tree.map(lambda x: x[: parts * each].reshape(each, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _live(units: jax.Array, width: jax.Array) -> jax.Array:
    return jnp.arange(units.shape[-1]) < width


def _share(layers: Sequence[jax.Array], width: jax.Array) -> jax.Array:
    """Share of the live units of all layers, `[..., units]` each, for which something holds."""
    live = [jnp.broadcast_to(_live(layer, width), layer.shape) for layer in layers]
    count = lambda parts: jnp.stack([part.sum() for part in parts]).sum()
    return count([a & b for a, b in zip(layers, live, strict=True)]) / count(live)
