"""How the entries of a leaf fall into groups that each hold a number of connections.

A structure turns one matrix or kernel `[..., in, out]` into `[groups, size]` and back, and spreads a leaf's number of
connections over its groups. One of your own is a frozen object with these methods.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rlx2_jax.sparse.densities import Shape
from rlx2_jax.sparse.errors import SparseError


class Structure(Protocol):
    """What a structure is."""

    def split(self, leaf: jax.Array) -> jax.Array:
        """`[..., in, out]` as `[groups, size]`."""

    def join(self, groups: jax.Array, shape: Shape) -> jax.Array:
        """Inverse of `split`."""

    def spread(self, count: jax.Array, groups: int, size: int) -> jax.Array:
        """`[groups]`: connections of each, where the leaf has `count` of them, traced; no fewer in all for more."""

    def check(self, path: str, shape: Shape, count: Any) -> None:
        """Raise `SparseError` if a leaf cannot hold `count` connections this way; a traced count is not looked at."""


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Connections anywhere in the leaf, which is one group."""

    def split(self, leaf: jax.Array) -> jax.Array:
        """`[1, size]`."""
        return leaf.reshape(1, -1)

    def join(self, groups: jax.Array, shape: Shape) -> jax.Array:
        """Inverse of `split`."""
        return groups.reshape(shape)

    def spread(self, count: jax.Array, groups: int, size: int) -> jax.Array:
        """All in the one group."""
        del groups, size
        return jnp.reshape(count, 1)

    def check(self, path: str, shape: Shape, count: Any) -> None:
        """Anything goes."""


@dataclasses.dataclass(frozen=True)
class NofM:
    """At most `n` of `m` consecutive entries along the input axis, exactly `n` once sparse (Mishra et al., 2021)."""

    n: int
    """Entries that are present."""
    m: int
    """Entries in a group."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise SparseError(f"{self.n} of {self.m} cannot be; use 1 <= n <= m.")

    def split(self, leaf: jax.Array) -> jax.Array:
        """`[size / m, m]`."""
        return jnp.swapaxes(leaf, -1, -2).reshape(-1, self.m)

    def join(self, groups: jax.Array, shape: Shape) -> jax.Array:
        """Inverse of `split`."""
        return jnp.swapaxes(groups.reshape(*shape[:-2], shape[-1], shape[-2]), -1, -2)

    def spread(self, count: jax.Array, groups: int, size: int) -> jax.Array:
        """The same number for all, from `n` to `m`."""
        each = jnp.round(count / groups).astype(jnp.int32)
        return jnp.full(groups, jnp.clip(each, self.n, size))

    def check(self, path: str, shape: Shape, count: Any) -> None:
        """Inputs must come in groups, and the leaf's density must be that of its groups."""
        if shape[-2] % self.m:
            raise SparseError(
                f"{path} has {shape[-2]} inputs, no multiple of {self.m}: leave it out by `where`, or use another m."
            )
        whole = math.prod(shape) // self.m * self.n
        if not isinstance(count, jax.Array) and count != whole:
            sparsity = 1 - self.n / self.m
            raise SparseError(
                f"{path}: {self.n} of {self.m} is a sparsity of {sparsity:g}, {whole} connections; ask for it."
            )


@dataclasses.dataclass(frozen=True)
class FanIn:
    """The same number of connections into each output unit (Lasby et al., 2024)."""

    def split(self, leaf: jax.Array) -> jax.Array:
        """`[out, size / out]`."""
        return jnp.moveaxis(leaf, -1, 0).reshape(leaf.shape[-1], -1)

    def join(self, groups: jax.Array, shape: Shape) -> jax.Array:
        """Inverse of `split`."""
        return jnp.moveaxis(groups.reshape(shape[-1], *shape[:-1]), 0, -1)

    def spread(self, count: jax.Array, groups: int, size: int) -> jax.Array:
        """The same number for all, at least 1: the nearest to the leaf's density."""
        each = jnp.round(count / groups).astype(jnp.int32)
        return jnp.full(groups, jnp.clip(each, 1, size))

    def check(self, path: str, shape: Shape, count: Any) -> None:
        """Every unit needs a connection."""
        if not isinstance(count, jax.Array) and 2 * count < shape[-1]:
            raise SparseError(
                f"{path}: {count} connections give {shape[-1]} units less than half a one each; use a lower sparsity."
            )


unstructured = Unstructured()
"""Any entries of a leaf."""
fan_in = FanIn()
"""As many connections into each unit of a leaf."""
n_of_m = NofM
"""At most `n` of `m` consecutive inputs: `n_of_m(2, 4)`."""
