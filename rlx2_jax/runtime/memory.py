"""Will it fit? Bytes counted from shapes, before anything is allocated."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import limits


def tree_bytes(tree: Any) -> int:
    """Bytes of a pytree of arrays or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def available_bytes(device: jax.Device | None = None) -> int | None:
    """Memory a device of this host can still give, or None where it does not tell."""
    device = device or jax.local_devices()[0]
    if device.platform == "cpu":
        return available_on_host()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def available_on_host() -> int | None:
    """Memory this process can still take, or None where the system does not tell."""
    known = [count for count in (_host_bytes(), limits.memory_left()) if count is not None]
    return min(known, default=None)


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


def check_fits(needed: int, what: str, mend: str, *, on_host: bool = False) -> None:
    """Refuse what the device, or the host, cannot hold.

    Raises:
      ConfigError: `needed` bytes are more than is available.
    """
    available = available_on_host() if on_host else available_bytes()
    if available is not None and needed > available:
        whose = "this machine" if on_host else jax.local_devices()[0].device_kind
        raise ConfigError(f"{what} need {format_bytes(needed)} but {whose} has {format_bytes(available)} left; {mend}.")


class Need(NamedTuple):
    """What a run will take, in bytes; in words, a line for people."""

    arguments: int
    """State, and what else is handed to its programs."""
    temporaries: int
    """Scratch space of the program that needs most of it while it computes."""
    process: int
    """What this process holds now, before it has a state: Python, JAX, and the programs compiled."""
    peak: int
    """The most that it held so far, which is while it compiled."""

    def __str__(self) -> str:
        computing = f"{format_bytes(self.arguments)} of state and {format_bytes(self.temporaries)} to compute with"
        if jax.default_backend() != "cpu":
            return f"the run takes {format_bytes(self.arguments + self.temporaries)} of the device: {computing}"
        total = self.process + self.arguments + self.temporaries
        return (
            f"the run takes {format_bytes(total)}: {computing}, {format_bytes(self.process)} for the process itself "
            f"({format_bytes(self.peak)} while it compiled)"
        )


def need(compiled: Iterable[Any]) -> Need:
    """What a run of compiled programs will take that has no state yet.

    Args:
      compiled: its programs, as `jax.jit(...).lower(...).compile()` gives them; one that does not tell counts nothing.
    """
    told = (program.memory_analysis() for program in compiled if hasattr(program, "memory_analysis"))
    found = [stats for stats in told if stats is not None]
    beside = [s.temp_size_in_bytes + max(0, s.output_size_in_bytes - s.alias_size_in_bytes) for s in found]
    arguments = max((stats.argument_size_in_bytes for stats in found), default=0)
    return Need(arguments, max(beside, default=0), *_process_bytes())


def _process_bytes() -> tuple[int, int]:
    """What this process holds, and the most that it held; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0, 0  # Windows.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        held = pages * os.sysconf("SC_PAGE_SIZE")
        return held, max(held, peak)  # Linux notes a peak only when something is given back.
    except OSError:
        return peak, peak  # Not Linux.


def format_bytes(count: float) -> str:
    """Text for people, such as 76.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
