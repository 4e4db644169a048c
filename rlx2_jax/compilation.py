"""How programs are compiled: the precision of their matrix products, and a cache that outlives the process."""

from __future__ import annotations

import os
from pathlib import Path

import jax

PRECISIONS = ("float32", "tensorfloat32", "default")
"""Of matrix products; `default` is the accelerator's own, tensorfloat32 on recent GPUs and bfloat16 on TPUs."""


def use_cache(directory: str | None) -> None:
    """Keep compiled programs in a directory, so that the next run starts at once; empty for nowhere.

    Raises:
      RuntimeError: it lies in `~`, and there is no home directory.
    """
    if directory:
        jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def user_cache() -> Path | None:
    """Where this user keeps what can be made again; None for one who has no home."""
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def use_precision(name: str) -> None:
    """Compute matrix products, those of the physics too, in one of `PRECISIONS`. A CPU has float32 alone."""
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", name)


NO_DEVICE = (RuntimeError, AssertionError)
"""What JAX raises where it has no device; the latter for a platform that is not installed."""


def why_no_device() -> str | None:
    """One sentence if JAX has no device here, as where `JAX_PLATFORMS` names what this machine lacks."""
    try:
        jax.devices()
        return None
    except NO_DEVICE as error:
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        asked = jax.config.values["jax_platforms"]
        return (
            f"JAX_PLATFORMS={asked}: JAX finds no such device here{f' ({reason})' if reason else ''}; leave it out, or "
            "install what it needs."
        )
