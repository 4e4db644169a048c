"""Brax tasks behind the protocol, imported without Brax's import noise."""

from __future__ import annotations

import functools
from typing import Any

import jax

from rlx2_jax.envs.base import State
from rlx2_jax.envs.quiet import quiet
from rlx2_jax.runtime import numerics

TASKS = ("ant", "halfcheetah", "hopper", "humanoid", "inverted_pendulum", "walker2d")
"""The tasks of the paper, and two more of the same family."""

BACKENDS = ("generalized", "mjx", "spring", "positional")
"""Brax's physics, the default first."""


class BraxEnvironment:
    """A Brax environment without Brax's wrappers, which lose the final observation and reuse initial states."""

    def __init__(self, name: str, backend: str):
        """Create the task; slow (about a second), so see `load`."""
        with quiet(), numerics.usual():
            from brax import envs

            self._env: Any = envs.get_environment(name, backend=backend)

    @functools.cached_property
    def observation_size(self) -> int:
        """O, from shapes alone: Brax's own property runs a whole reset."""
        return int(jax.eval_shape(self.reset, jax.random.PRNGKey(0)).observation.shape[-1])

    @property
    def action_size(self) -> int:
        """A."""
        return int(self._env.action_size)

    @numerics.by_usual_rules
    def reset(self, key: jax.Array) -> State:
        """A fresh initial state."""
        return _to_state(self._env.reset(key))

    @numerics.by_usual_rules
    def step(self, state: State, action: jax.Array) -> State:
        """Apply an action in [-1, 1]. The caller clips: Brax's control cost would see a larger one."""
        return _to_state(self._env.step(state.physics, action))


@functools.cache
def load(name: str, backend: str) -> BraxEnvironment:
    """The task, made once per process: it holds no state."""
    return BraxEnvironment(name, backend)


def _to_state(state: Any) -> State:
    return State(state, state.obs, state.reward, state.done > 0)
