"""A method is a frozen object of parts, each a plain function; and the methods of the literature, made of them.

| method | density over time | drop | grow | source |
|---|---|---|---|---|
| `dense` | all | never | never | |
| `static` | fixed | never | never | |
| `set_` | fixed | small weights | at random | Mocanu et al., 2018 |
| `rigl` | fixed | small weights | large gradients | Evci et al., 2020 |
| `rlx2` | fixed | small weights | large gradients | Tan et al., 2023, its topology evolution |
| `gradual` | falls from dense, or from a start that is sparse | small weights | never | Zhu and Gupta, 2017 |
| `n_m` | fixed, n of m in a row | small weights | large gradients | Mishra et al., 2021; Lasby et al., 2024 |
| `constant_fan_in` | fixed, the same for every output | small weights | large gradients | Lasby et al., 2024 |

SET's own rule drops as large a share of positive weights as of negative ones; here, as in the comparison of Evci et
al., it drops by magnitude. Every function takes any field of `Method` by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx2_jax.sparse import criteria, densities, schedules
from rlx2_jax.sparse.criteria import Criterion
from rlx2_jax.sparse.densities import Density
from rlx2_jax.sparse.errors import SparseError
from rlx2_jax.sparse.schedules import Schedule
from rlx2_jax.sparse.structures import NofM, Structure, fan_in, unstructured
from rlx2_jax.sparse.trees import Where, matrices

_NEVER = schedules.constant(0.0)
_ALL = densities.uniform(0.0)

_MENDS = {
    "density": "erdos_renyi(0.9), where 0.9 is the sparsity",
    "start": "uniform(0.5)",
    "fraction": "constant(0.3)",
    "progress": "cubic(0, 1000)",
    "initial": "criteria.magnitude",
    "drop": "criteria.magnitude",
    "grow": "criteria.gradient",
}
"""What a person is told to give in place of what is no function."""


@dataclasses.dataclass(frozen=True)
class Method:
    """How a tree of parameters is sparse, and how its connections move."""

    density: Density
    """Density of each leaf, at the end if it changes over time."""
    initial: Criterion = criteria.uniform
    """Score by which the first connections are chosen: the largest. There is no gradient yet, it is zero."""
    drop: Criterion = criteria.magnitude
    """Score by which connections are dropped: the smallest go."""
    grow: Criterion = criteria.gradient
    """Score by which connections are grown: the largest come."""
    fraction: Schedule = _NEVER
    """Share of the connections that an event moves."""
    progress: Schedule | None = None
    """How far the density is on its way from `start`; None where it is the same at every step."""
    start: Density = _ALL
    """Density at the beginning, if it changes over time."""
    structure: Structure = unstructured
    """How the entries of a leaf fall into groups that each hold a number of connections."""
    where: Where = matrices
    """Which leaves are sparse."""
    stacked: int | Callable[[str, Any], int] = 0
    """Leading axes of sparse leaves that count independent matrices: a number, or a function of a leaf's path and the
    leaf. Twin critics `[2, in, out]` have one."""
    every: int = 0
    """Updates between events; 0 for none."""
    begin: int = 0
    """First event's step at the earliest, counted in updates; there is none at step 0."""
    until: int | None = None
    """No event at this step or later."""
    instead: bool = False
    """Whether an event takes the place of the optimiser's step, as in Evci et al., algorithm 1, or comes before it.
    If it does, other updates are slower: the branch keeps XLA from fusing them with what they are applied to."""
    reset_moments: bool = True
    """Whether the optimiser's moments are zero off the mask, so that what grows again has forgotten."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.begin < 0:
            raise SparseError(f"every={self.every}, begin={self.begin}: use 0 or more.")
        schedules.check_step(every=self.every, begin=self.begin, until=self.until)
        for name, mend in _MENDS.items():
            value = getattr(self, name)
            if not (callable(value) or (name == "progress" and value is None)):
                raise SparseError(f"{name}={value!r:.40}: give a function, such as sparse.{mend}.")

    def due(self, step: jax.Array) -> jax.Array:
        """Whether an event is due before the update that follows `step` others: a boolean."""
        if not self.every:
            return jnp.zeros(jnp.shape(step), bool)
        due = (step > 0) & (step >= self.begin) & ((step - self.begin) % self.every == 0)
        return due if self.until is None else due & (step < self.until)


def dense(**parts: Any) -> Method:
    """All connections, for good: what the others are compared with, in a state of the same form."""
    return Method(**{"density": _ALL} | parts)


def static(*, density: Density, **parts: Any) -> Method:
    """Random connections, for good."""
    return Method(density, **parts)


def set_(
    *, density: Density, every: int = 100, until: int | None = None, fraction: float = 0.3, **parts: Any
) -> Method:
    """Sparse evolutionary training: the same share moves at every event, to random places."""
    moving: dict[str, Any] = {"fraction": schedules.constant(fraction), "grow": criteria.uniform}
    return Method(density, every=every, until=until, **moving | parts)


def rigl(*, density: Density, until: int, every: int = 100, fraction: float = 0.3, **parts: Any) -> Method:
    """RigL: a share that falls by half a cosine moves to where the gradient is largest."""
    moving: dict[str, Any] = {"fraction": schedules.cosine(fraction, until)}
    return Method(density, every=every, until=until, **moving | parts)


def rlx2(*, density: Density, until: int, every: int = 10_000, fraction: float = 0.5, **parts: Any) -> Method:
    """RLx2's topology evolution: RigL's, with the largest initial weights for first connections."""
    return rigl(density=density, until=until, every=every, fraction=fraction, **{"initial": criteria.magnitude} | parts)


def gradual(*, density: Density, end: int, begin: int = 0, every: int = 100, **parts: Any) -> Method:
    """Gradual magnitude pruning: from `start`, dense by default, at `begin` to `density` at `end`, fast at first.

    Raises:
      SparseError: the last event would not fall on `end`.
    """
    if every < 1 or (end - begin) % every:
        raise SparseError(f"gradual: the {end - begin} steps from begin to end are no multiple of every={every}.")
    times: dict[str, Any] = {"begin": begin, "until": end + 1, "every": every, "progress": schedules.cubic(begin, end)}
    return Method(density, **times | parts)


def n_m(*, n: int = 2, m: int = 4, until: int, every: int = 100, **parts: Any) -> Method:
    """RigL among `n` of `m` consecutive inputs of each output."""
    return rigl(density=densities.uniform(1 - n / m), until=until, every=every, **{"structure": NofM(n, m)} | parts)


def constant_fan_in(*, density: Density, until: int, every: int = 100, **parts: Any) -> Method:
    """RigL with the same number of connections into each output."""
    return rigl(density=density, until=until, every=every, **{"structure": fan_in} | parts)
