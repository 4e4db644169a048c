"""Many hosts as one: starting together, agreeing, and noticing that one is gone. With one host all of it is nothing.

A host that is gone breaks the next exchange of the others on a CPU or GPU network at once; where an exchange hangs
instead, JAX's heartbeats end the process. Either way it ends by itself, with a message and a non-zero exit code, and
the same command on all hosts continues the sweep from its last checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from rlx2_jax.errors import ConfigError, RlxError

GRACE = 60
"""Seconds by which JAX waits longer for the other processes than we do: it would end with a stack trace."""

PATIENCE = 3600
"""Seconds to wait at a barrier. A host that is gone is noticed long before, by its silence."""

FAILED = 2
"""Exit code."""

LOST = ("gloo", "nccl", "connection", "coordination", "unavailable", "deadline", "another task died")
"""Words of the errors that mean: a host is gone."""


class Cluster(NamedTuple):
    """How this process finds the others; None where the cluster says so itself (TPU pods, SLURM, Open MPI)."""

    coordinator_address: str | None
    """`host:port` of process 0."""
    num_processes: int | None
    """Processes in all."""
    process_id: int | None
    """Which one this is, from 0."""
    initialization_timeout: int
    """Seconds to wait for the other processes at the start."""
    heartbeat_timeout: int
    """Seconds after which a silent process counts as dead."""


@contextlib.contextmanager
def joined(cluster: Cluster | None) -> Iterator[None]:
    """Be one of the hosts of a cluster, before anything else is asked of JAX; None for a host alone.

    What goes wrong inside ends this process at once, with one sentence: to leave in good order, all would have to.

    Raises:
      ConfigError: a cluster that cannot be joined.
    """
    if cluster is None:
        yield
        return
    _join(cluster)
    try:
        _check_even()
        yield
    except RlxError as error:
        _leave(str(error))
    except KeyboardInterrupt:
        _leave("interrupted")
    except Exception as error:
        if not any(word in str(error).lower() for word in LOST):
            traceback.print_exc()
            _leave("this host failed; see above")
        reason = str(error).strip().splitlines()[0]
        _leave(f"another host is gone ({reason}); the same command on all hosts continues the sweep")
    jax.distributed.shutdown()


def _join(cluster: Cluster) -> None:
    address, count, number, patience, heartbeat = cluster
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"coordinator_address={address}: write host:port.")
        if number == 0:
            _check_free(int(port))
    if count is not None and number is not None and not 0 <= number < count:
        raise ConfigError(f"process_id={number} is not one of {count} processes; number them from 0.")
    if count == 1:
        raise ConfigError("num_processes=1 is a single host; leave out --multihost.")
    missing = f"not all processes met at {address or 'the coordinator'} within {patience} seconds"
    timer = threading.Timer(patience, _leave, [f"{missing}; start the same command on every host, and see its address"])
    timer.daemon = True
    timer.start()
    try:
        # Our own signals save and end.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            address,
            count,
            number,
            initialization_timeout=patience + GRACE,
            heartbeat_timeout_seconds=heartbeat,
            # Told everything, a process has all devices of its host; SLURM's own way would give it one.
            cluster_detection_method=None if None in (address, count, number) else "deactivate",
        )
        # Processes with fewer devices than others, or none, are found here.
        jax.device_count()
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"no cluster to join ({reason}); name --coordinator_address, --num_processes and --process_id."
        ) from None
    finally:
        timer.cancel()


def _check_even() -> None:
    """See that every host has as many devices: exchanges between hosts, and batches, are laid out so."""
    found = collections.Counter(device.process_index for device in jax.devices())
    if len(set(found.values())) > 1:
        counts = ", ".join(str(found[host]) for host in sorted(found))
        raise ConfigError(
            f"the hosts have {counts} devices; give each as many, for instance with CUDA_VISIBLE_DEVICES."
        )


def _check_free(port: int) -> None:
    with _probe() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used ({error.strerror}); name another coordinator_address."
            ) from None


def _probe() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET6)
    except OSError:
        return socket.socket(socket.AF_INET)  # A machine without IPv6.


def _leave(sentence: str) -> NoReturn:
    print(f"error: {sentence.rstrip('.')}.", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(FAILED)


def is_first() -> bool:
    """Whether this host writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all hosts, which may come minutes apart: one has its programs cached, another compiles them.

    Through the coordinator: an exchange between the devices of CPUs gives up after 30 seconds.
    """
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=PATIENCE * 1000)


def any_of(flag: bool) -> bool:
    """Whether it is true on any host; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def least(value: float | None) -> float | None:
    """The smallest value over the hosts, None for unknown everywhere; all must ask."""
    if jax.process_count() == 1:
        return value
    found = multihost_utils.process_allgather(np.float32(np.inf if value is None else value))
    return float(found.min()) if np.isfinite(found.min()) else None
