"""Environments: the protocol, the tasks behind it, and many of them at once."""

from __future__ import annotations

from rlx2_jax.envs import brax, gym, gym_tasks, probe
from rlx2_jax.envs.base import Environment, State
from rlx2_jax.envs.vector import StepResult, VectorEnvironment, VectorState
from rlx2_jax.errors import ConfigError

NAMES = (*brax.TASKS, *gym_tasks.TASKS, *(f"probe/{task}" for task in probe.TASKS))
"""Every task `make` knows."""


def make(name: str, backend: str | None = None) -> Environment:
    """The task of the given name.

    Args:
      name: one of `NAMES`.
      backend: what simulates it: Brax's physics (default: generalized), or for a task of gymnasium `gym.ENGINES`
        (default: as the device asks). It does not concern probes.

    Raises:
      ConfigError: an unknown name, a backend that the task does not have, or something that it needs is missing.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown env {name!r}; valid: {', '.join(NAMES)}.")
    if name in gym_tasks.TASKS:
        return gym.load(name, backend)
    kind, _, task = name.rpartition("/")
    return probe.load(task) if kind == "probe" else brax.load(name, backend or "generalized")


__all__ = [
    "NAMES",
    "Environment",
    "State",
    "StepResult",
    "VectorEnvironment",
    "VectorState",
    "make",
]
