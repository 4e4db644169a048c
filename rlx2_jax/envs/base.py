"""The small protocols: what the trainer sees, and what it takes to look at a task.

One environment, pure functions; `vector` makes many of it.
"""

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
    """A task. Actions lie in [-1, 1] and arrive clipped. Equal ones are one task, for which a program is made once.

    Three members are optional, and are kept with the policies of a run (see `labels`):

    * `observation_names`, `[O]` words;
    * `action_names`, `[A]` words;
    * `action_limits`, `[A]` pairs of numbers, what -1 and 1 of an action mean in the task's own unit.
    """

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


class Visible(Environment, Protocol):
    """A task that can be looked at, for it has bodies. Optional: training asks for none of this."""

    @property
    def mj_model(self) -> Any:
        """An `mujoco.MjModel`: bodies, their shapes, and names of actuators."""

    @property
    def dt(self) -> float:
        """Seconds that a step takes."""

    def pose(self, physics: Any, data: Any) -> None:
        """Place the bodies as one state has them.

        Args:
          physics: of the state, its leaves NumPy arrays.
          data: an `mujoco.MjData` of the model. Set its `qpos` and call `mujoco.mj_kinematics`, or set `xpos` and
            `xquat`.
        """
