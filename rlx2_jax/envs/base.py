"""The small protocol the trainer sees. One environment, pure functions; `vector` makes many of it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax


class State(NamedTuple):
    """One environment after a reset or a step."""

    physics: Any
    """Whatever the environment needs to go on: any pytree."""
    observation: jax.Array
    """`[O]`, float32."""
    reward: jax.Array
    """Scalar: for the step just made."""
    terminated: jax.Array
    """Scalar boolean: the environment itself ended the episode. Time limits are not its business."""


class Environment(Protocol):
    """A task. Actions lie in [-1, 1] and arrive clipped. Equal ones are one task, for which a program is made once."""

    def __hash__(self) -> int:
        """Hash of the object itself, as of any other."""

    @property
    def observation_size(self) -> int:
        """O."""

    @property
    def action_size(self) -> int:
        """A."""

    def reset(self, key: jax.Array) -> State:
        """A fresh initial state."""

    def step(self, state: State, action: jax.Array) -> State:
        """Apply an action `[A]`."""
