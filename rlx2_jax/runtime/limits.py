"""What this process may use of its machine: its cores, and the memory and processor time of its control groups.

In a container (Docker, Kubernetes, SLURM) the machine's own numbers say nothing: whoever takes more memory than the
control group may have is killed, and whoever runs more threads than its quota pays for is put to sleep.
"""

from __future__ import annotations

import math
import os
import platform
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def cores() -> tuple[int, ...]:
    """Numbers of the cores this process may use: as many as its quota pays for of those it may run on."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return chosen(tuple(allowed), quota(), platform.node())


def chosen(allowed: tuple[int, ...], most: int | None, name: str) -> tuple[int, ...]:
    """At most so many of the allowed cores; containers of other names on one machine get others."""
    if most is None or most >= len(allowed):
        return allowed
    first = zlib.crc32(name.encode()) % len(allowed)
    return tuple(sorted((allowed[first:] + allowed[:first])[:most]))


def quota(proc: Path = PROC) -> int | None:
    """Cores that the control groups' quotas pay for, rounded up; None where there is no quota."""
    found = []
    for group in _groups("cpu", proc):
        # cpu.max of version 2: "200000 100000", or "max 100000"; of version 1: two files, -1 for none.
        words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            found.append(max(1, math.ceil(int(words[0]) / int(words[1]))))
    return min(found, default=None)


def memory_left(proc: Path = PROC) -> int | None:
    """Bytes that the control groups will still give this process; None where they set no limit.

    Pages of files count as free: the kernel drops them first.
    """
    found = []
    for group in _groups("memory", proc):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if limit and limit[0].isdecimal() and used and used[0].isdecimal():
            found.append(max(0, int(limit[0]) - max(0, int(used[0]) - _reclaimable(group))))
    return min(found, default=None)


def _reclaimable(group: Path) -> int:
    """Bytes that the kernel takes back before it kills; version 1 has a group's sums over its children as `total_`."""
    words = _words(group / "memory.stat")
    stat = {name: int(value) for name, value in zip(words[::2], words[1::2], strict=False) if value.isdecimal()}
    value = lambda name: stat.get(f"total_{name}", stat.get(name, 0))
    return sum(value(name) for name in ("active_file", "inactive_file", "slab_reclaimable"))


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """Directories of the control groups that limit this process, from its own up to the highest one in sight."""
    paths = {}
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for name in controllers.split(","):
            paths[name] = path  # "" is version 2.
    for line in _lines(proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" ", 2), "", "", ""][:3]
        name = "" if kind == "cgroup2" else controller
        if kind not in ("cgroup", "cgroup2") or name not in paths or (name and name not in options.split(",")):
            continue
        root, top = (_unescaped(word) for word in [*before.split(" "), *5 * "/"][3:5])
        # Seen from within a container, the mount may begin at the container's own group, whatever its path outside.
        inner = os.path.relpath(paths[name], root) if root != "/" else paths[name].lstrip("/")
        group = Path(top, inner)
        if ".." in group.parts or not group.is_dir():
            group = Path(top)
        yield group
        yield from (parent for parent in group.parents if parent.is_relative_to(top))


def _unescaped(word: str) -> str:
    """A path of mountinfo, in which spaces and the like stand as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
