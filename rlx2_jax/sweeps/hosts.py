"""Many hosts as one: starting together, agreeing, and noticing that one is gone. With one host all of it is nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils


class Cluster(NamedTuple):
    """How this process finds the others; None where the cluster says so itself (TPU pods, SLURM, Open MPI)."""

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    initialization_timeout: int
    """Seconds."""
    heartbeat_timeout: int
    """Seconds."""


@contextlib.contextmanager
def joined(cluster: Cluster | None) -> Iterator[None]:
    """Be one of the hosts of a cluster; None for a host alone."""
    yield


def is_first() -> bool:
    """Whether this host writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all hosts."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_of(flag: bool) -> bool:
    """Whether it is true on any host; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def least(value: float | None) -> float | None:
    """The smallest value over the hosts, None for unknown everywhere; all must ask."""
    if jax.process_count() == 1:
        return value
    found = multihost_utils.process_allgather(np.asarray(np.inf if value is None else value))
    return float(found.min()) if np.isfinite(found.min()) else None
