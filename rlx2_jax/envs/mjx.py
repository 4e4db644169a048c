"""MuJoCo XLA under a task: the same physics in JAX, in single precision, for GPUs and TPUs.

Where nothing touches it equals the C library's to rounding. Contacts amplify rounding, and mjx turns the friction cones
of steep capsules, such as an ant's shins, another way; so episodes part after a few steps of contact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax.envs.gym_tasks import Fields, Task
from rlx2_jax.envs.quiet import quiet
from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import numerics


class Physics(NamedTuple):
    """What a simulation goes on from; all else is computed anew in each step."""

    qpos: jax.Array
    qvel: jax.Array
    warmstart: jax.Array
    """`[nv]`: the solver's first guess."""
    position: jax.Array
    """Scalar: see `Task.position`."""


class Engine:
    """Resets and steps of one task."""

    def __init__(self, name: str, task: Task):
        """Put the task's model on the device.

        Raises:
          ConfigError: mujoco-mjx is missing, or has no such model's features.
        """
        try:
            with quiet(), numerics.usual():
                import mujoco
                from mujoco import mjx

                self._model: Any = mjx.put_model(task.model, impl="jax")
        except ImportError as problem:
            raise ConfigError("backend=mjx needs MuJoCo XLA: pip install mujoco-mjx.") from problem
        except NotImplementedError as problem:
            raise ConfigError(f"mjx cannot simulate {name} ({problem}): choose backend=mujoco.") from problem
        self._mjx: Any = mjx
        self._largest = float(mujoco.mjMAXVAL)
        self._task = task

    def reset(self, noise: jax.Array) -> tuple[Physics, Fields]:
        """A simulation at the model's initial state with noise `[nq + nv]` added."""
        start = self._start()
        nq = self._task.model.nq
        data = start.replace(qpos=start.qpos + noise[:nq], qvel=start.qvel + noise[nq:])
        # mjx brings quaternions to length 1 here, MuJoCo in the first step.
        return self._seen(self._mjx.forward(self._model, data).replace(qpos=data.qpos), None)

    def step(self, physics: Physics, ctrl: jax.Array, done: jax.Array) -> tuple[Physics, Fields]:
        """`frame_skip` substeps with controls `[nu]`; all simulations of a device step, done or not."""
        data = self._start().replace(qpos=physics.qpos, qvel=physics.qvel, qacc_warmstart=physics.warmstart, ctrl=ctrl)
        data = jax.lax.fori_loop(0, self._task.frame_skip, lambda _, d: self._mjx.step(self._model, d), data)
        if "cfrc_ext" in self._task.reads:
            data = self._mjx.rne_postconstraint(self._model, data)
        return self._seen(data, physics.position)

    def qpos(self, physics: Physics) -> np.ndarray:
        """Coordinates `[nq]` of a simulation, on the host."""
        return np.asarray(physics.qpos)

    def _start(self) -> Any:
        return self._mjx.make_data(self._model)

    def _seen(self, data: Any, before: jax.Array | None) -> tuple[Physics, Fields]:
        name, weights = self._task.position()
        position = jnp.asarray(weights, jnp.float32) @ getattr(data, name).ravel()
        # What MuJoCo would warn of.
        stable = jnp.asarray(True)
        for values in (data.qpos, data.qvel, data.qacc):
            stable &= (jnp.abs(values) <= self._largest).all()
        displacement = jnp.zeros(()) if before is None else position - before
        fields = Fields(
            jnp.where(stable, displacement, jnp.nan),
            data.qpos,
            data.qvel,
            # mjx keeps some of the fields with its implementation.
            **{name: getattr(data if name in _PUBLIC else data._impl, name) for name in self._task.reads},
        )
        return Physics(data.qpos, data.qvel, data.qacc_warmstart, position), fields


_PUBLIC = ("cvel", "qfrc_actuator")
