"""Environments: the protocol, the tasks behind it, and many of them at once."""

from __future__ import annotations

from rlx2_jax.envs import brax, gym, gym_tasks, playground, probe
from rlx2_jax.envs.base import Environment, State
from rlx2_jax.envs.vector import StepResult, VectorEnvironment, VectorState
from rlx2_jax.errors import ConfigError

_FOLDERS = {"playground": playground, "probe": probe}

NAMES = (
    *brax.TASKS,
    *gym_tasks.TASKS,
    *(f"{folder}/{task}" for folder, kind in _FOLDERS.items() for task in kind.TASKS),
)
"""Every task `make` knows."""


def make(name: str, backend: str | None = None) -> Environment:
    """The task of the given name.

    Args:
      name: one of `NAMES`.
      backend: what simulates it: Brax's physics (default: generalized), or for a task of gymnasium `gym.ENGINES`
        (default: as the device asks). It does not concern others.

    Raises:
      ConfigError: an unknown name, a backend that the task does not have, or something that it needs is missing.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown env {name!r}; valid: {', '.join(NAMES)}.")
    if name in gym_tasks.TASKS:
        return gym.load(name, backend)
    folder, _, task = name.rpartition("/")
    return _FOLDERS[folder].load(task) if folder else brax.load(name, backend or "generalized")


__all__ = [
    "NAMES",
    "Environment",
    "State",
    "StepResult",
    "VectorEnvironment",
    "VectorState",
    "make",
]
