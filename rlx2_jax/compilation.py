"""Compiled programs that outlive the process."""

from __future__ import annotations

import os

import jax


def use_cache(directory: str | None) -> None:
    """Keep compiled programs in a directory, so that the next run starts at once; empty for nowhere."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
