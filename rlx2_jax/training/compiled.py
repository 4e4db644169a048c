"""The functions of a program that a host loop calls, compiled side by side: of one run, or of rows of runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlx2_jax.runtime import compilation


class Compiled(NamedTuple):
    """Functions of one run, or of a batch: then keys, hyperparameters, states and what is made of them have rows."""

    init: Callable[..., Any]
    """(key, hparams) -> state."""
    renew: Callable[..., Any]
    """state -> state."""
    chunk: Callable[..., Any]
    """(state, hparams, schedule) -> state."""
    report: Callable[..., Any]
    """(state, hparams, schedule) -> (state, report): scalars."""
    finite: Callable[..., Any]
    """state -> boolean."""
    template: Any
    """Shapes of the state on the devices, with their shardings."""
    seconds: float
    """Wall time of making all of it."""
    parts: dict[str, compilation.Seconds]
    """What each function took of it."""


def compile_functions(
    functions: Mapping[str, Any],
    template: Any,
    key: Any,
    hparams: Any,
    schedule: Any,
    *,
    began: float,
    say: Callable[[str], None],
    quick: bool,
    threads: int | None = None,
) -> Compiled:
    """Compile each function once.

    Args:
      functions: of `jax.jit`, by name; those that take longest first.
      template: shapes of the state.
      key: what `init` takes, or its shape.
      hparams: the same, like the following.
      schedule: of a run, or of a batch.
      began: when the work on them began, by `time.perf_counter`.
      say: see `compilation.compile_parts`.
      quick: whether to compile in less time, see `compilation.quick_options`.
      threads: see there.
    """
    step = (template, hparams, schedule)
    arguments = {"chunk": step, "report": step, "renew": (template,), "init": (key, hparams), "finite": (template,)}
    parts = {name: compilation.Part(function, arguments[name]) for name, function in functions.items()}
    options = compilation.quick_options() if quick else None
    compiled, seconds = compilation.compile_parts(parts, say, threads, options)
    return Compiled(**compiled, template=template, seconds=time.perf_counter() - began, parts=seconds)
