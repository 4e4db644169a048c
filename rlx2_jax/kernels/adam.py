"""Adam's step on a packed network: one pass over its vectors instead of a dozen small operations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlx2_jax.runtime import native, numerics

B1, B2, EPSILON = 0.9, 0.999, 1e-8
"""Decays of the moments, and what keeps the division finite (paper appendix C.1)."""

ADAM = optax.scale_by_adam(b1=B1, b2=B2, eps=EPSILON)
"""Adam's direction; step sizes are traced hyperparameters, applied outside."""


@numerics.by_usual_rules
def adam_step(
    params: jax.Array, gradient: jax.Array, state: optax.ScaleByAdamState, step_size: jax.Array
) -> tuple[jax.Array, optax.ScaleByAdamState]:
    """`params - step_size * ADAM(gradient)`, to rounding; there is no gradient through it.

    Args:
      params: of any shape, float32.
      gradient: of the same.
      state: of `ADAM`, its moments of the same shape.
      step_size: scalar.

    Returns:
      The new parameters and state.
    """
    if not native.available():
        direction, state = ADAM.update(gradient, state)
        return params - step_size * direction, state
    flat, scalar = jax.ShapeDtypeStruct((params.size,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    call = jax.ffi.ffi_call(native.ADAM, [flat, flat, flat, scalar], vmap_method="expand_dims")
    # 1 - b2 of float32 would be off by a hundred of its last places.
    named = {"b1": B1, "b2": B2, "rest1": 1 - B1, "rest2": 1 - B2, "epsilon": EPSILON}
    constants = {name: np.float32(value) for name, value in named.items()}
    operands = (x.ravel() for x in (params, gradient, state.mu, state.nu))
    *moved, count = call(*operands, state.count, jnp.asarray(step_size, jnp.float32), **constants)
    params, mu, nu = (x.reshape(params.shape) for x in moved)
    return params, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)
