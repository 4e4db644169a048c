"""MuJoCo Playground's DeepMind control suite behind the protocol: JAX on mjx, without Playground's wrappers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rlx2_jax.envs.base import State
from rlx2_jax.envs.quiet import quiet
from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import numerics

TASKS = (
    "AcrobotSwingup",
    "AcrobotSwingupSparse",
    "BallInCup",
    "CartpoleBalance",
    "CartpoleBalanceSparse",
    "CartpoleSwingup",
    "CartpoleSwingupSparse",
    "CheetahRun",
    "FingerSpin",
    "FingerTurnEasy",
    "FingerTurnHard",
    "FishSwim",
    "HopperHop",
    "HopperStand",
    "HumanoidRun",
    "HumanoidStand",
    "HumanoidWalk",
    "PendulumSwingup",
    "PointMass",
    "ReacherEasy",
    "ReacherHard",
    "SwimmerSwimmer6",
    "WalkerRun",
    "WalkerStand",
    "WalkerWalk",
)
"""Names after `playground/`."""

MISSING = "needs MuJoCo Playground, which is not installed: pip install 'rlx2-jax[playground]'."
"""What is the matter with a task, and the mend."""


class PlaygroundEnvironment:
    """A task of the suite, of which none ends by itself; its actions are controls, in [-1, 1] as they are.

    A step in which the simulation became unstable, which Playground calls done, gives NaN as reward.
    """

    def __init__(self, task: str):
        """Create the task; see `load`."""
        try:
            with quiet(), numerics.usual():
                from mujoco_playground import dm_control_suite as suite

                # Playground's default, Warp, is for the GPUs of one maker.
                self._env: Any = suite.load(task, config_overrides={"impl": "jax"})
        except ImportError as problem:
            raise ConfigError(f"playground/{task} {MISSING}") from problem

    @functools.cached_property
    def observation_size(self) -> int:
        """O."""
        return int(self._described.obs.shape[-1])

    @property
    def action_size(self) -> int:
        """A."""
        return int(self._env.action_size)

    @property
    def mj_model(self) -> Any:
        """The suite's model."""
        return self._env.mj_model

    @property
    def dt(self) -> float:
        """Seconds of a step."""
        return float(self._env.dt)

    def pose(self, physics: list[Any], data: Any) -> None:
        """Place the bodies, and targets, as one state has them."""
        import mujoco

        simulated = self._unpacked(physics).data
        data.qpos[:] = simulated.qpos
        data.mocap_pos[:], data.mocap_quat[:] = simulated.mocap_pos, simulated.mocap_quat
        mujoco.mj_kinematics(self.mj_model, data)

    @numerics.by_usual_rules
    def reset(self, key: jax.Array) -> State:
        """A fresh initial state."""
        return self._packed(self._env.reset(key))

    @numerics.by_usual_rules
    def step(self, state: State, action: jax.Array) -> State:
        """Apply an action in [-1, 1]."""
        return self._packed(self._env.step(self._unpacked(state.physics), action))

    # A state's `physics` are the leaves of Playground's that hold anything: arrays of no elements cannot be saved. They
    # are without its metrics, a dictionary that each step writes into, and of no weak types, or a step would give
    # others than a reset.

    @functools.cached_property
    def _described(self) -> Any:
        """Playground's state, abstract and without metrics."""
        with numerics.usual():
            return jax.eval_shape(self._env.reset, jax.random.PRNGKey(0)).replace(metrics={})

    def _packed(self, state: Any) -> State:
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state.replace(metrics={}))
        stable = jnp.isfinite(state.obs).all() & jnp.isfinite(state.reward)
        return State(
            physics=[x for x in jax.tree.leaves(state) if x.size],
            observation=state.obs,
            reward=jnp.where(stable, state.reward, jnp.nan),
            terminated=(state.done > 0) & stable,
        )

    def _unpacked(self, physics: list[jax.Array]) -> Any:
        shapes, structure = jax.tree.flatten(self._described)
        held = iter(physics)
        return jax.tree.unflatten(structure, [next(held) if x.size else jnp.zeros(x.shape, x.dtype) for x in shapes])


@functools.cache
def load(task: str) -> PlaygroundEnvironment:
    """The task, made once per process: it holds no state.

    Args:
      task: one of `TASKS`.

    Raises:
      ConfigError: MuJoCo Playground is missing.
    """
    return PlaygroundEnvironment(task)
