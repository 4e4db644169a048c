"""The rules of arithmetic that programs are traced by: float32 and int32, mixed and broadcast as NumPy does, raw keys.

A person may have set others for the rest of the process (`JAX_ENABLE_X64`, `JAX_NUMPY_DTYPE_PROMOTION=strict`,
`JAX_NUMPY_RANK_PROMOTION=raise`, `JAX_ENABLE_CUSTOM_PRNG`). Neither Brax nor a compiled kernel knows those, and a
run's bytes must not depend on them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import threadpoolctl

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def usual() -> Iterator[None]:
    """JAX's own rules, in this thread, while entered."""
    with (
        jax.enable_x64(False),
        jax.enable_custom_prng(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def by_usual_rules(function: Callable[P, T]) -> Callable[P, T]:
    """A function that is traced by JAX's own rules, whoever traces it."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with usual():
            return function(*args, **kwargs)

    return wrapped


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS and LAPACK on one thread while entered; also a decorator.

    A report's singular values are small work, and OpenBLAS's threads spin until the last of them is done: with another
    process on one of two cores that took fifty times as long. The values are the same.
    """
    import scipy.linalg  # noqa: F401  # Whose LAPACK jaxlib calls: a library that is not loaded cannot be limited.

    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


class _AsItIs(NamedTuple):
    """Stands for a lowered function where nothing is to be compiled."""

    function: Callable[..., Any]

    def compile(self, compiler_options: Any = None) -> Callable[..., Any]:
        del compiler_options
        return self.function


def lower(jitted: Any, *arguments: Any) -> Any:
    """A jitted function made ready to be compiled; with `JAX_DISABLE_JIT` it never is, so that one can look into it."""
    return _AsItIs(jitted) if jax.config.values["jax_disable_jit"] else jitted.lower(*arguments)
