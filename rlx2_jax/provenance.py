"""Where a number comes from: the command, the commit and the machine."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax

from rlx2_jax import __version__

STACK = ("jax", "jaxlib", "flax", "optax", "brax", "mujoco", "orbax-checkpoint", "numpy")
"""Packages whose versions are named."""


def command() -> str:
    """How this process was started, as a person would type it."""
    return shlex.join(["python", *sys.argv])


@functools.cache
def commit() -> str | None:
    """Of the package's repository, marked if files differ from it; None if there is none."""
    home = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(home), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        modified = "-modified" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=10", "HEAD") + modified
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def device() -> str:
    """The accelerator's name, or the processor's and how many of its cores this process may use."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{jax.device_count()} x {first.device_kind}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores" if cores != 1 else f"{name}, 1 core"


def versions() -> dict[str, str]:
    """Of Python, this package and those it stands on."""
    found = {"python": sys.version.split()[0], "rlx2-jax": __version__}
    for name in STACK:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
