"""Brax tasks behind the protocol, imported without Brax's import noise."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from rlx2_jax.envs import labels
from rlx2_jax.envs.base import State
from rlx2_jax.envs.quiet import quiet
from rlx2_jax.runtime import numerics

TASKS = ("ant", "halfcheetah", "hopper", "humanoid", "inverted_pendulum", "walker2d")
"""The tasks of the paper, and two more of the same family."""

_HIDDEN = {"ant": 2, "halfcheetah": 1, "hopper": 1, "humanoid": 2, "inverted_pendulum": 0, "walker2d": 1}
"""Leading coordinates that each observation leaves out."""

BACKENDS = ("generalized", "mjx", "spring", "positional")
"""Brax's physics, the default first."""


class BraxEnvironment(labels.OfActuators):
    """A Brax environment without Brax's wrappers, which lose the final observation and reuse initial states."""

    def __init__(self, name: str, backend: str):
        """Create the task; slow (about a second), so see `load`."""
        self._backend = backend
        self._name = name
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

    @property
    def mj_model(self) -> Any:
        """The model that Brax's system was made of: a body for the world, and one for each link."""
        return self._env.sys.mj_model

    @property
    def dt(self) -> float:
        """Seconds of a step."""
        return float(self._env.dt)

    def pose(self, physics: Any, data: Any) -> None:
        """Place the bodies as one state has them."""
        import mujoco

        simulated = physics.pipeline_state
        if self._backend == "mjx":  # Its frames lag a substep behind its coordinates.
            data.qpos[:] = simulated.qpos
            mujoco.mj_kinematics(self.mj_model, data)
        else:  # Joints of springs give way, so coordinates do not tell all.
            data.xpos[1:], data.xquat[1:] = np.asarray(simulated.x.pos), np.asarray(simulated.x.rot)

    @property
    def observation_names(self) -> list[str]:
        """Names of the model's coordinates but those that Brax leaves out; numbers for what else there is."""
        positions, velocities = labels.coordinates(self.mj_model)
        seen = [*positions[_HIDDEN[self._name] :], *velocities]
        return [*seen, *labels.numbered("observation", self.observation_size)[len(seen) :]]

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
