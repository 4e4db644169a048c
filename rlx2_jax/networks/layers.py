"""Layers of networks, and how their weights begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Initializer = Callable[..., jax.Array]


def dense(width: int, initial: str, x: jax.Array) -> jax.Array:
    """A layer of a module, applied: weights and biases that begin as `MLP.initial` says."""
    kernel_init, bias_init = _initializers(initial, x.shape[-1])
    return nn.Dense(width, kernel_init=kernel_init, bias_init=bias_init)(x)


def _initializers(init: str, fan_in: int) -> tuple[Initializer, Initializer]:
    if init == "orthogonal":
        return _orthogonal, nn.initializers.zeros
    if init == "lecun":
        return nn.initializers.lecun_normal(), nn.initializers.zeros
    bound = fan_in**-0.5

    def uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return uniform, uniform


def _orthogonal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    # One matrix at a time, for the reason told in `diagnostics`.
    draw = jax.custom_batching.sequential_vmap(lambda key: nn.initializers.orthogonal()(key, tuple(shape), dtype))
    return draw(key)
