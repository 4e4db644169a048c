"""Will it fit? Bytes counted from shapes, before anything is allocated."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import jax

from rlx2_jax import limits
from rlx2_jax.errors import ConfigError


def tree_bytes(tree: Any) -> int:
    """Bytes of a pytree of arrays or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def available_bytes(device: jax.Device | None = None) -> int | None:
    """Memory the device can still give, or None where it does not tell."""
    device = device or jax.devices()[0]
    if device.platform == "cpu":
        known = [count for count in (_host_bytes(), limits.memory_left()) if count is not None]
        return min(known, default=None)
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def _host_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # Not Linux.
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_fits(needed: int, what: str, mend: str) -> None:
    """Refuse what the device cannot hold.

    Raises:
      ConfigError: `needed` bytes are more than is available.
    """
    available = available_bytes()
    if available is not None and needed > available:
        raise ConfigError(
            f"{what} need {format_bytes(needed)} but {jax.devices()[0].device_kind} has "
            f"{format_bytes(available)} left; {mend}."
        )


def format_bytes(count: float) -> str:
    """For people: 76.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
