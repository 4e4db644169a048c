"""One run over several devices: each computes its share of every batch, and what they find is averaged.

Everything else is the same on all of them: state, environments, replay and keys. Each draws the same indices and
noises, for the whole batch, and keeps its own slice, so that a run over devices is the run on one, to rounding.
Gradients are averaged before anything is done with them, so that parameters, and the masks chosen by them, are equal
bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlx2_jax.errors import ConfigError

T = TypeVar("T")

AXIS = "data"
"""Name of the axis of the mesh that a run lies over."""


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """How `count` devices compute each batch together: each an equal slice of it.

    For one device that is the whole batch, and nothing here does anything. The methods on arrays are for functions
    under `over_devices`.
    """

    count: int = 1

    def local_shard(self, x: jax.Array, axis: int) -> jax.Array:
        """This device's slice of an array that all of them have, along the axis of the batch, which they divide."""
        if self.count == 1:
            return x
        size = x.shape[axis] // self.count
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * size, size, axis)

    def normal(self, key: jax.Array, shape: tuple[int, ...], axis: int = 0) -> jax.Array:
        """Standard normal noise of a slice's shape: of what one device draws for the whole batch, this one's slice."""
        whole = list(shape)
        whole[axis] *= self.count
        return self.local_shard(jax.random.normal(key, whole), axis)

    def mean(self, tree: T) -> T:
        """Means over the devices, the same bits on each."""
        return tree if self.count == 1 else jax.lax.pmean(tree, AXIS)

    def mismatch(self, value: jax.Array) -> jax.Array | None:
        """Whether a scalar is not the same on all devices, as int32; None, which is no array at all, for one device."""
        if self.count == 1:
            return None
        return (jax.lax.pmin(value, AXIS) != jax.lax.pmax(value, AXIS)).astype(jnp.int32)

    def over_devices(self, function: Callable[..., T]) -> Callable[..., T]:
        """A function that every device computes, its arguments and results the same on each."""
        if self.count == 1:
            return function
        # Natively computed values are unknown to shard_map's own check of what is equal; `mismatch` checks that.
        return jax.shard_map(function, mesh=self._mesh(), in_specs=P(), out_specs=P(), check_vma=False)

    @property
    def sharding(self) -> NamedSharding | None:
        """Sharding of every array of a run: a copy on each device; None for one device, which is where arrays are."""
        return None if self.count == 1 else NamedSharding(self._mesh(), P())

    def check(self) -> None:
        """Refuse more devices than there are.

        Raises:
          ConfigError: with the mend.
        """
        if self.count > len(jax.local_devices()):
            raise ConfigError(
                f"data_parallel={self.count}: this machine shows {len(jax.local_devices())} "
                f"{jax.default_backend()} devices; use at most as many (to try it on a CPU, set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={self.count})."
            )

    def _mesh(self) -> Mesh:
        return Mesh(np.asarray(jax.local_devices()[: self.count]), (AXIS,))


ONE_DEVICE = DataParallel()
"""One device alone, which holds the whole batch."""
