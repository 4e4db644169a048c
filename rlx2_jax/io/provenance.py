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
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import jax

from rlx2_jax import __version__
from rlx2_jax.runtime.limits import cores

STACK = ("jax", "jaxlib", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "gymnasium", "orbax-checkpoint", "numpy")
"""Packages whose versions are named."""

PLACES = ("workdir", "results", "compilation_cache", "output", "ticket", "sweep.ticket", "coordinator_address")
"""Flags that name places on one machine, which are nobody else's business."""


def command() -> str:
    """How this process was started, as a person would type it, but for where on this machine its files are."""
    program, *arguments = sys.argv or [""]
    if Path(program).parent.name == "experiments":
        program = f"experiments/{Path(program).name}"
    return shlex.join(["python", *([program] if program else []), *without(PLACES, arguments)])


def without(names: Collection[str], arguments: Iterable[str]) -> list[str]:
    """Arguments of a command but for the flags of these names, each of which has a value."""
    kept, skip = [], False
    for argument in arguments:
        name, given, _ = argument.lstrip("-").partition("=")
        named = argument.startswith("-") and name in names
        if not (named or skip):
            kept.append(argument)
        skip = named and not given
    return kept


@functools.cache
def commit() -> str | None:
    """Commit of the package's repository, marked if the code differs from it; None if there is none."""
    home = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(home), *arguments], capture_output=True, check=True, timeout=10)
        return os.fsdecode(done.stdout).strip()

    try:
        # Another repository may hold an environment in which the package is installed.
        if Path(git("rev-parse", "--show-toplevel")) != home.resolve():
            return None
        # Results are written while runs go on.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments/results")
        return git("rev-parse", "--short=10", "HEAD") + ("-modified" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def device() -> str:
    """The accelerator's name and precision, or the processor's and how many of its cores this process may use."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        precision = jax.config.values["jax_default_matmul_precision"] or "default"
        return f"{jax.device_count()} x {first.device_kind}, {precision} products"
    name = processor() or platform.processor() or platform.machine()
    count = len(cores())
    return f"{name}, {count} cores" if count != 1 else f"{name}, 1 core"


def processor() -> str:
    """The model of this machine's processor; empty where the system does not tell it."""
    try:
        return model_name(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return ""


def model_name(cpuinfo: str) -> str:
    """The first processor's name in what Linux tells of them, with its numbers where a virtual machine cuts it short.

    Generations whose speeds differ twofold are all "AMD EPYC" there.
    """
    first = cpuinfo.split("\n\n")[0]
    facts = dict([*map(str.strip, line.split(":", 1))] for line in first.splitlines() if ":" in line)
    name = facts.get("model name", "")
    if not name or any(map(str.isdigit, name)):
        return name
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, this package and those it stands on."""
    found = {"python": sys.version.split()[0], "rlx2-jax": __version__}
    for name in STACK:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def about() -> dict[str, Any]:
    """All of it, fit for JSON."""
    return {"command": command(), "commit": commit(), "device": device(), "versions": versions()}
