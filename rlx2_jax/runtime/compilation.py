"""How programs are compiled: side by side, kept in a cache that outlives the process, their products precise."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlx2_jax.runtime import numerics

PRECISIONS = ("float32", "tensorfloat32", "default")
"""Precisions of products; `default` is the accelerator's own, tensorfloat32 on recent GPUs and bfloat16 on TPUs."""

LOOK_SECONDS = 1.0
"""Between two words on programs that are being compiled."""

NO_DEVICE = (RuntimeError, AssertionError)
"""Errors that JAX raises where it has no device; the latter for a platform that is not installed."""

_HIT = "/jax/compilation_cache/cache_hits"


def use_cache(directory: str | None) -> None:
    """Keep compiled programs in a directory, so that the next run starts at once; empty for nowhere.

    Raises:
      RuntimeError: it lies in `~`, and there is no home directory.
    """
    jax.config.update("jax_enable_compilation_cache", bool(directory))
    if directory:
        jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_cache_by_default() -> None:
    """Keep them where this user keeps such things, unless something was said on that before, to us or to JAX."""
    set_up, root = jax.config.values, user_cache()
    if root is not None and set_up["jax_compilation_cache_dir"] is None and set_up["jax_enable_compilation_cache"]:
        use_cache(str(root / "rlx2_jax"))


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


def quick_options() -> dict[str, bool]:
    """Options of XLA that halve the time to compile where most of a program's time is not in XLA's own loops.

    With packed compute, updates take as long as before; physics of JAX takes 1.06 times as long. Masked networks would
    take longer. A version of XLA that was not tried may not know the option.
    """
    known = jax.default_backend() == "cpu" and jax.__version_info__[:2] == (0, 10)
    return {"xla_cpu_use_fusion_emitters": False} if known else {}


class Part(NamedTuple):
    """A program to be compiled."""

    function: Any
    """Function made by `jax.jit`."""
    arguments: tuple[Any, ...]
    """Their shapes."""


class Seconds(NamedTuple):
    """What a program's compilation took."""

    traced: float
    """Seconds from Python to XLA's terms."""
    compiled: float
    """Seconds from there to machine code, or to read it from the cache; several programs compile at a time."""
    cached: bool
    """Whether it came from the cache."""


def compile_parts(
    parts: Mapping[str, Part],
    say: Callable[[str], None] = lambda line: None,
    threads: int | None = None,
    options: Mapping[str, bool] | None = None,
) -> tuple[dict[str, Callable[..., Any]], dict[str, Seconds]]:
    """Compile programs side by side, each as soon as it is traced.

    Args:
      parts: by name, those that take longest first.
      say: told about once a second what is being compiled.
      threads: programs at once; one where several hosts must compile in the same order.
      options: of XLA, for all of them.

    Returns:
      The compiled functions and what each took, by name.
    """
    began = time.perf_counter()
    futures: dict[str, Future[tuple[Any, float, bool]]] = {}
    traced = {}
    with _cache_hits() as hits, ThreadPoolExecutor(threads) as pool:
        for name, part in parts.items():
            start = time.perf_counter()
            lowered = numerics.lower(part.function, *part.arguments)
            traced[name] = time.perf_counter() - start
            futures[name] = pool.submit(_compile, lowered, hits, dict(options or {}))
            say(_progress(futures, len(parts), began))
        waiting = set(futures.values())
        while waiting:
            waiting = wait(waiting, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED).not_done
            say(_progress(futures, len(parts), began))
    found = {name: future.result() for name, future in futures.items()}
    seconds = {name: Seconds(traced[name], took, cached) for name, (_, took, cached) in found.items()}
    return {name: compiled for name, (compiled, _, _) in found.items()}, seconds


def describe(seconds: Mapping[str, Seconds], total: float) -> str:
    """One line on what compilation took."""
    each = ", ".join(f"{name} {'cached' if s.cached else f'{s.compiled:.0f} s'}" for name, s in seconds.items())
    return f"compiled in {total:.0f} s, {sum(s.traced for s in seconds.values()):.0f} of them tracing ({each})"


def _compile(lowered: Any, hits: set[int], options: dict[str, bool]) -> tuple[Any, float, bool]:
    began = time.perf_counter()
    hits.discard(threading.get_ident())
    compiled = lowered.compile(compiler_options=options)
    return compiled, time.perf_counter() - began, threading.get_ident() in hits


def _progress(futures: Mapping[str, Future[Any]], count: int, began: float) -> str:
    waiting = [name for name, future in futures.items() if not future.done()]
    done = len(futures) - len(waiting)
    return f"compiling {' and '.join(waiting) or '-'}, {done} of {count} done, {time.perf_counter() - began:.0f} s"


@contextlib.contextmanager
def _cache_hits() -> Iterator[set[int]]:
    """Threads whose last program came from the cache; JAX tells of a hit in the thread that compiles."""
    hits: set[int] = set()

    def listen(event: str, **_: Any) -> None:
        if event == _HIT:
            hits.add(threading.get_ident())

    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)


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
