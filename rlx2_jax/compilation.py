"""How programs are compiled: the precision of their matrix products, and a cache that outlives the process."""

from __future__ import annotations

import os

import jax

PRECISIONS = ("float32", "tensorfloat32", "default")
"""Of matrix products; `default` is the accelerator's own, tensorfloat32 on recent GPUs and bfloat16 on TPUs."""


def use_cache(directory: str | None) -> None:
    """Keep compiled programs in a directory, so that the next run starts at once; empty for nowhere."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_precision(name: str) -> None:
    """Compute matrix products, those of the physics too, in one of `PRECISIONS`. A CPU has float32 alone."""
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", name)
