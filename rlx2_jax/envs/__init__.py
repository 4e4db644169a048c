"""Environments: the protocol, the tasks behind it, and many of them at once."""

from __future__ import annotations

from rlx2_jax.envs import brax, probe
from rlx2_jax.envs.base import Environment, State
from rlx2_jax.envs.vector import StepResult, VectorEnvironment, VectorState
from rlx2_jax.errors import ConfigError

NAMES = (*brax.TASKS, *(f"probe/{task}" for task in probe.TASKS))
"""Every task `make` knows."""


def make(name: str, backend: str = "generalized") -> Environment:
    """The task of the given name; `backend` chooses Brax's physics and does not concern probes.

    Raises:
      ConfigError: an unknown name.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown env {name!r}; valid: {', '.join(NAMES)}.")
    kind, _, task = name.rpartition("/")
    return probe.load(task) if kind == "probe" else brax.load(name, backend)


__all__ = [
    "NAMES",
    "Environment",
    "State",
    "StepResult",
    "VectorEnvironment",
    "VectorState",
    "make",
]
