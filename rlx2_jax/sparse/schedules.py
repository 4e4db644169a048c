"""What depends on time: functions of a step, the number of updates made so far, as optax's schedules are.

A fraction says which share of a leaf's connections an event moves. A progress says how far a leaf is on its way from
the density it starts with (0) to the one it ends with (1); below 0 it is 0, and above 1 it is 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlx2_jax.sparse import topology
from rlx2_jax.sparse.errors import SparseError

LAST = 2**31 - 1
"""The last step that counters hold."""

Schedule = Callable[[jax.Array], jax.Array]
"""`step -> value`, scalar to scalar."""


def constant(value: float) -> Schedule:
    """The same at every step."""
    return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def cosine(initial: float, until: int) -> Schedule:
    """From `initial` down to 0 at `until`, by half a cosine, and 0 afterwards (Evci et al., 2020, section 3)."""
    if not 0 <= initial <= 1 or until < 1:
        raise SparseError(f"cosine({initial}, until={until}): use a share in [0, 1], and 1 step or more.")
    check_step(until=until)
    return lambda step: topology.drop_fraction_at(jnp.float32(initial), jnp.asarray(step), jnp.int32(until))


def cubic(begin: float, end: float) -> Schedule:
    """From 0 at `begin` to 1 at `end`, fast at first: `1 - (1 - t)^3` (Zhu and Gupta, 2017, equation 1)."""
    if not 0 <= begin < end:
        raise SparseError(f"cubic({begin}, {end}): begin at step 0 or later, and end after that.")
    check_step(end=end)

    def progress(step: jax.Array) -> jax.Array:
        left = 1 - (jnp.asarray(step) - begin).astype(jnp.float32) / (end - begin)
        return 1 - jnp.clip(left, 0, 1) ** 3

    return progress


def check_step(**steps: float | None) -> None:
    """Refuse steps, by the name of their argument, that no counter reaches."""
    for name, step in steps.items():
        if step is not None and step > LAST:
            raise SparseError(f"{name}={step}: use at most {LAST}.")
