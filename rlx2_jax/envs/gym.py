"""Gymnasium's MuJoCo tasks behind the protocol: a task, and an engine that simulates it."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax.envs import gym_tasks, labels, mjx, mujoco
from rlx2_jax.envs.base import State
from rlx2_jax.envs.gym_tasks import Fields
from rlx2_jax.runtime import numerics

ENGINES = ("mujoco", "mjx")
"""The C library, for CPUs; MuJoCo in JAX, for other devices."""


class Engine(Protocol):
    """What simulates a task: one simulation, pure functions."""

    def reset(self, noise: jax.Array) -> tuple[Any, Fields]:
        """Physics and fields at the model's initial coordinates and velocities with noise `[nq + nv]` added."""

    def step(self, physics: Any, ctrl: jax.Array, done: jax.Array) -> tuple[Any, Fields]:
        """Physics and fields after a step with controls `[nu]`; where `done` is true, they are not looked at."""

    def qpos(self, physics: Any) -> np.ndarray:
        """Coordinates `[nq]` of a simulation, on the host."""


class GymEnvironment(labels.OfActuators):
    """A task of gymnasium. Once it has terminated it stays as it is and pays nothing; the C library is not asked then.

    A step in which the simulation became unstable gives NaN as observation and reward.
    """

    def __init__(self, name: str, engine: str):
        """Create the task; see `load`."""
        self.task = gym_tasks.load(name)
        self.engine: Engine = {"mujoco": mujoco, "mjx": mjx}[engine].Engine(name, self.task)

    @functools.cached_property
    def observation_size(self) -> int:
        """O."""
        return int(jax.eval_shape(self.reset, jax.random.PRNGKey(0)).observation.shape[-1])

    @property
    def action_size(self) -> int:
        """A."""
        return int(self.task.model.nu)

    @property
    def mj_model(self) -> Any:
        """Gymnasium's model."""
        return self.task.model

    @property
    def dt(self) -> float:
        """Seconds of a step."""
        return self.task.dt

    def pose(self, physics: Any, data: Any) -> None:
        """Place the bodies as one state has them."""
        import mujoco

        data.qpos[:] = self.engine.qpos(physics)
        mujoco.mj_kinematics(self.mj_model, data)

    @property
    def observation_names(self) -> list[str]:
        """Names of the model's coordinates, and of what else the task sees."""
        return self.task.observation_names()

    @numerics.by_usual_rules
    def reset(self, key: jax.Array) -> State:
        """A fresh initial state."""
        physics, fields = self.engine.reset(self.task.noise(key))
        return State(physics, self.task.observation(fields), jnp.zeros(()), jnp.asarray(False))

    @numerics.by_usual_rules
    def step(self, state: State, action: jax.Array) -> State:
        """Apply an action in [-1, 1], which stands for the task's own range."""
        low, high = jnp.asarray(self.task.model.actuator_ctrlrange, jnp.float32).T
        ctrl = (low + high) / 2 + action * ((high - low) / 2)
        physics, fields = self.engine.step(state.physics, ctrl, state.terminated)
        stable = jnp.isfinite(fields.displacement)
        following = State(
            physics=physics,
            observation=jnp.where(stable, self.task.observation(fields), jnp.nan),
            reward=jnp.where(stable, self.task.reward(fields, ctrl), jnp.nan),
            terminated=self.task.terminated(fields),
        )
        over = state._replace(reward=jnp.zeros(()))
        return jax.tree.map(lambda old, new: jnp.where(state.terminated, old, new), over, following)


def default_engine() -> str:
    """The engine for this process's device."""
    return "mujoco" if jax.default_backend() == "cpu" else "mjx"


@functools.cache
def load(name: str, engine: str) -> GymEnvironment:
    """The task, made once per process: it holds no state.

    Args:
      name: one of `gym_tasks.TASKS`.
      engine: one of `ENGINES`.

    Raises:
      ConfigError: what the task or its engine needs is missing.
    """
    return GymEnvironment(name, engine)
