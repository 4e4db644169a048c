"""Environments: the protocol, families of tasks behind it, a person's own, and many of one at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlx2_jax.envs import brax, gym, gym_tasks, own, playground, probe
from rlx2_jax.envs.base import Environment, State
from rlx2_jax.envs.own import imported, place_of
from rlx2_jax.envs.vector import StepResult, VectorEnvironment, VectorState
from rlx2_jax.errors import ConfigError

JAX = "jax"
"""The backend of tasks that are JAX functions of their own, and have no choice of physics."""

MUJOCO = gym.ENGINES[0]
"""The backend that is MuJoCo's C library."""


class Family(NamedTuple):
    """Tasks of one origin."""

    title: str
    """Whose they are, in the genitive."""
    tasks: Sequence[str]
    """Their names."""
    backends: tuple[str, ...]
    """What may simulate them; `JAX` alone where there is no choice."""
    default: Callable[[], str]
    """The backend for this process's device."""
    load: Callable[[str, str], Environment]
    """(name, backend) -> the task, made once per process."""
    mend: str = ""
    """How to get what they need."""


FAMILIES = (
    Family("Brax's", brax.TASKS, brax.BACKENDS, lambda: brax.BACKENDS[0], brax.load),
    Family(
        "Gymnasium's", tuple(gym_tasks.TASKS), gym.ENGINES, gym.default_engine, gym.load,
        "pip install 'rlx2-jax[mujoco]'",
    ),
    Family(
        "MuJoCo Playground's", tuple(f"playground/{task}" for task in playground.TASKS), ("mjx",),
        lambda: "mjx", lambda name, _: playground.load(name.removeprefix("playground/")),
        "pip install 'rlx2-jax[playground]'",
    ),
    Family(
        "the probes", tuple(f"probe/{task}" for task in probe.TASKS), (JAX,), lambda: JAX,
        lambda name, _: probe.load(name.removeprefix("probe/")),
    ),
)  # fmt: skip
"""Where tasks come from."""

NAMES = tuple(name for family in FAMILIES for name in family.tasks)
"""Every task that comes with the package or with one that it can use."""

BACKENDS = tuple(dict.fromkeys(backend for family in FAMILIES for backend in family.backends))
"""Every backend of any family."""


def make(name: str, backend: str | None = None) -> Environment:
    """The task of the given name, made once per process.

    Args:
      name: one of `NAMES`, a registered one, or `package.module:function` of one's own.
      backend: what simulates it; None is the default of its family on this device.

    Raises:
      ConfigError: an unknown name, a backend that the task does not have, something that it needs is missing, or an
        environment of one's own that breaks the protocol.
    """
    family, chosen = _family(name), choose_backend(name, backend)
    return own.load(name) if family is None else family.load(name, chosen)


def choose_backend(name: str, backend: str | None = None) -> str:
    """The backend that a task is simulated by: the one asked for, where the task has a choice.

    Raises:
      ConfigError: an unknown name, or a backend that the task does not have.
    """
    family = _family(name)
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}; valid: {', '.join(BACKENDS)}.")
    if family is None or family.backends == (JAX,):
        return JAX
    if backend is None:
        return family.default()
    if backend not in family.backends:
        raise ConfigError(f"{name} has no backend {backend!r}; valid: {', '.join(family.backends)}.")
    return backend


def register(name: str, factory: own.Factory) -> None:
    """Make an environment known by a name, in this process; a name given before means the new factory.

    Args:
      name: for `Config.env` and `--env`, without a colon or a comma.
      factory: makes the environment. Worker processes must be able to import it, from a module that is not `__main__`.

    Raises:
      ConfigError: no such name, or a task of a family has it.
    """
    own.register(_free(name), factory)


def name_of(env: Any) -> str:
    """The name of an environment object, which is from now on known by it in this process.

    Raises:
      ConfigError: another object or a task has this name already, or it can be no name.
    """
    return own.name_of(env, _free)


def _free(name: str) -> str:
    """The same name, which no family's task has."""
    if (family := _built_in(name)) is not None:
        raise ConfigError(f"env name {name!r} is that of a task of {family.title}; give yours another.")
    return name


def _family(name: str) -> Family | None:
    """The family of a task; None for one's own."""
    family = _built_in(name)
    if family is None and not own.known(name):
        raise ConfigError(_unknown(name))
    return family


def _built_in(name: str) -> Family | None:
    return next((family for family in FAMILIES if name in family.tasks), None)


MOST_SHOWN = 7
"""Names of a family in a sentence."""


def _unknown(name: str) -> str:
    """One sentence on a name that is nobody's: what is like it, the families, and how to get them."""
    known = (*NAMES, *own.names())
    like = [full for full in known if full.endswith(f"/{name}")] or difflib.get_close_matches(name, known, cutoff=0.7)
    parts = []
    for title, tasks, mend in [*((f.title, f.tasks, f.mend) for f in FAMILIES), ("the registered", own.names(), "")]:
        shown = ", ".join(tasks[:MOST_SHOWN])
        more = len(tasks) - MOST_SHOWN
        told = f"{title} {shown}{f' and {more} more' if more > 0 else ''}{f' ({mend})' if mend else ''}"
        parts += [told] if tasks else []
    return (
        f"unknown env {name!r}{f' (did you mean {like[0]}?)' if like else ''}; there are {'; '.join(parts)}; and your "
        "own, by package.module:function or a name given to rlx2_jax.envs.register."
    )


__all__ = [
    "BACKENDS",
    "FAMILIES",
    "JAX",
    "NAMES",
    "Environment",
    "State",
    "StepResult",
    "VectorEnvironment",
    "VectorState",
    "choose_backend",
    "imported",
    "make",
    "name_of",
    "place_of",
    "register",
]
