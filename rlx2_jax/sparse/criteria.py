"""What connections are worth: functions `(weight, gradient, key) -> score` of one matrix or kernel.

Connections of the smallest drop score go, those of the largest grow score come; among equals the first in row-major
order. Scores have the shape of the weight; NaN is the worst there is. The weight is zero off the mask, the gradient is
dense, and the key is another one for every leaf and event. One of your own is such a function.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Criterion = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(weight, gradient, key) -> score`, of the shape of the weight."""


def magnitude(weight: jax.Array, gradient: jax.Array, key: jax.Array) -> jax.Array:
    """Size of the weight."""
    del gradient, key
    return jnp.abs(weight)


def gradient(weight: jax.Array, gradient: jax.Array, key: jax.Array) -> jax.Array:
    """Size of the gradient; that of no number counts as none."""
    del weight, key
    return jnp.where(jnp.isnan(gradient), 0.0, jnp.abs(gradient))


def uniform(weight: jax.Array, gradient: jax.Array, key: jax.Array) -> jax.Array:
    """Chance."""
    del gradient
    return jax.random.uniform(key, weight.shape)
