"""Gymnasium's MuJoCo tasks: what each observes, pays, ends by and begins with, as pure functions of physical fields.

Constants, models and numbers of substeps are those of the installed gymnasium, read when a task is made. What its
classes have only in their code is written here: which coordinates are seen, limits of 10 on velocities, the pendulum's
angle. Versions differ as gymnasium's do; `Ant-v3`, which it has no more, is `Ant-v4` under 84 contact forces that are
always zero, as they were with MuJoCo 2.0.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax.envs import labels
from rlx2_jax.envs.quiet import quiet
from rlx2_jax.errors import ConfigError

_SPATIAL = tuple(f"{axis}_{kind}" for kind in ("angular", "linear") for axis in "xyz")

INERTIA = (
    *(f"inertia_{axes}" for axes in ("xx", "yy", "zz", "xy", "xz", "yz")),
    *(f"moment_{a}" for a in "xyz"),
    "mass",
)
"""Names of the entries of `Fields.cinert`: inertia about the centre of mass of its tree, mass times offset, mass."""

VELOCITY = tuple(f"{part}_velocity" for part in _SPATIAL)
"""Names of the entries of `Fields.cvel`."""

FORCE = tuple(f"{axis}_contact_{kind}" for kind in ("torque", "force") for axis in "xyz")
"""Names of the entries of `Fields.cfrc_ext`."""


class Fields(NamedTuple):
    """What a task sees of a simulation, float32. As with `mj_step`, those after `qvel` lag one substep behind."""

    displacement: jax.Array
    """Scalar, metres: how far `Task.position` came along x in this step. NaN where the simulation is unstable."""
    qpos: jax.Array
    """`[nq]`."""
    qvel: jax.Array
    """`[nv]`."""
    cinert: jax.Array | None = None
    """`[bodies, 10]`; this and what follows only where the task reads it."""
    cvel: jax.Array | None = None
    """`[bodies, 6]`."""
    qfrc_actuator: jax.Array | None = None
    """`[nv]`."""
    cfrc_ext: jax.Array | None = None
    """`[bodies, 6]`: contact forces."""


class Task:
    """A robot that is paid for its way along x. `constants` are the defaults of gymnasium's class, by their names."""

    hidden = 1
    """Leading coordinates that the observation leaves out."""
    reads: tuple[str, ...] = ()
    """Names of the fields after `qvel` that are read."""
    normal_velocities = False
    """Whether the initial velocities' noise is normal; else uniform, as that of the coordinates."""

    def __init__(self, source: Any, version: int):
        """The task of a gymnasium environment."""
        self.version = version
        self.model: Any = source.model
        self.frame_skip = int(source.frame_skip)
        self.dt = float(source.dt)
        self.constants: Any = _constants(type(source))

    def position(self) -> tuple[str, np.ndarray]:
        """What `Fields.displacement` is the way of: a field of the simulation, and weights of its elements."""
        return "qpos", np.eye(1, self.model.nq)[0]

    def noise(self, key: jax.Array) -> jax.Array:
        """What an initial state adds to the model's coordinates and velocities, `[nq + nv]`."""
        scale, (nq, nv) = self.constants.reset_noise_scale, (self.model.nq, self.model.nv)
        for_qpos, for_qvel = jax.random.split(key)
        qpos = jax.random.uniform(for_qpos, (nq,), minval=-scale, maxval=scale)
        if self.normal_velocities:
            qvel = scale * jax.random.normal(for_qvel, (nv,))
        else:
            qvel = jax.random.uniform(for_qvel, (nv,), minval=-scale, maxval=scale)
        return jnp.concatenate([qpos, qvel])

    def observation(self, fields: Fields) -> jax.Array:
        """`[O]`."""
        return jnp.concatenate([fields.qpos[self.hidden :], fields.qvel])

    def observation_names(self) -> list[str]:
        """What `observation` consists of, `[O]`."""
        positions, velocities = labels.coordinates(self.model)
        return [*positions[self.hidden :], *velocities]

    def healthy(self, fields: Fields) -> jax.Array:
        """Whether the robot is in a state that it may go on from."""
        return jnp.asarray(True)

    def contact_cost(self, fields: Fields) -> jax.Array | float:
        """Taken off the reward."""
        return 0.0

    def reward(self, fields: Fields, ctrl: jax.Array) -> jax.Array:
        """Reward of a step that ended at these fields, made with these controls."""
        c = self.constants
        # Up to version 4, a step that ends in a fall is paid as if it did not.
        paid = self.healthy(fields) if self.version >= 5 else True
        forward = c.forward_reward_weight * fields.displacement / self.dt
        costs = c.ctrl_cost_weight * jnp.sum(ctrl**2) + self.contact_cost(fields)
        return forward + c.healthy_reward * paid - costs

    def terminated(self, fields: Fields) -> jax.Array:
        """Whether the episode ends here."""
        return ~self.healthy(fields)


class HalfCheetah(Task):
    """Never falls."""

    normal_velocities = True


class Swimmer(Task):
    """Never falls, either; does not see where it is."""

    hidden = 2


class Walker2d(Task):
    """Has a height and an angle to keep."""

    def observation(self, fields: Fields) -> jax.Array:
        """`[O]`, with velocities up to 10."""
        return super().observation(fields._replace(qvel=jnp.clip(fields.qvel, -10, 10)))

    def healthy(self, fields: Fields) -> jax.Array:
        """High enough and upright."""
        z, angle = fields.qpos[1], fields.qpos[2]
        (low, high), (left, right) = self.constants.healthy_z_range, self.constants.healthy_angle_range
        return (low < z) & (z < high) & (left < angle) & (angle < right)


class Hopper(Walker2d):
    """A walker of one leg, which nothing may fling about."""

    def healthy(self, fields: Fields) -> jax.Array:
        """Whether a walker would be healthy, and no value is out of range."""
        low, high = self.constants.healthy_state_range
        values = jnp.concatenate([fields.qpos, fields.qvel])[2:]
        return super().healthy(fields) & ((low < values) & (values < high)).all()


class Ant(Task):
    """Feels what it touches, from version 5 on."""

    hidden = 2
    normal_velocities = True

    def __init__(self, source: Any, version: int):
        """The task of a gymnasium environment."""
        super().__init__(source, version)
        self.reads = ("cfrc_ext",) if version >= 5 else ()

    def position(self) -> tuple[str, np.ndarray]:
        """The torso's."""
        torso = self.model.body("torso").id
        return "xpos", np.eye(1, 3 * self.model.nbody, 3 * torso)[0]

    def observation(self, fields: Fields) -> jax.Array:
        """`[O]`."""
        seen = super().observation(fields)
        if self.version == 3:
            return jnp.concatenate([seen, jnp.zeros(6 * self.model.nbody)])
        return seen if self.version == 4 else jnp.concatenate([seen, self._forces(fields)[1:].ravel()])

    def observation_names(self) -> list[str]:
        """What `observation` consists of, `[O]`."""
        seen = super().observation_names()
        return seen if self.version == 4 else [*seen, *labels.of_bodies(self.model, FORCE, self.version >= 5)]

    def healthy(self, fields: Fields) -> jax.Array:
        """Whether all is finite, and the torso neither fallen nor jumping."""
        low, high = self.constants.healthy_z_range
        finite = jnp.isfinite(fields.qpos).all() & jnp.isfinite(fields.qvel).all()
        return finite & (low <= fields.qpos[2]) & (fields.qpos[2] <= high)

    def contact_cost(self, fields: Fields) -> jax.Array | float:
        """Cost of all contact forces, each clipped."""
        if self.version < 5:
            return 0.0
        return self.constants.contact_cost_weight * jnp.sum(self._forces(fields) ** 2)

    def _forces(self, fields: Fields) -> jax.Array:
        assert fields.cfrc_ext is not None
        return jnp.clip(fields.cfrc_ext, *self.constants.contact_force_range)


class Humanoid(Task):
    """Sees its masses, their velocities, its muscles and what it touches."""

    hidden = 2
    reads = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")

    def position(self) -> tuple[str, np.ndarray]:
        """The centre of mass."""
        weights = np.zeros((self.model.nbody, 3))
        weights[:, 0] = self.model.body_mass / self.model.body_mass.sum()
        return "xipos", weights.ravel()

    def observation(self, fields: Fields) -> jax.Array:
        """`[O]`. Version 5 leaves out what is always zero: the world's values and the free joint's forces."""
        assert fields.cinert is not None and fields.cvel is not None
        assert fields.qfrc_actuator is not None and fields.cfrc_ext is not None
        body, joint = (1, 6) if self.version >= 5 else (0, 0)
        parts = fields.cinert[body:], fields.cvel[body:], fields.qfrc_actuator[joint:], fields.cfrc_ext[body:]
        return jnp.concatenate([super().observation(fields), *(part.ravel() for part in parts)])

    def observation_names(self) -> list[str]:
        """What `observation` consists of, `[O]`."""
        body, joint = (1, 6) if self.version >= 5 else (0, 0)
        inertia, velocity, force = (labels.of_bodies(self.model, part, body) for part in (INERTIA, VELOCITY, FORCE))
        _, velocities = labels.coordinates(self.model)
        driven = [f"{name.replace('_velocity', '')}_actuator_force" for name in velocities[joint:]]
        return [*super().observation_names(), *inertia, *velocity, *driven, *force]

    def healthy(self, fields: Fields) -> jax.Array:
        """Neither fallen nor jumping."""
        low, high = self.constants.healthy_z_range
        return (low < fields.qpos[2]) & (fields.qpos[2] < high)

    def contact_cost(self, fields: Fields) -> jax.Array | float:
        """Cost of all contact forces, up to a limit."""
        if self.version < 5:
            return 0.0
        assert fields.cfrc_ext is not None
        cost = self.constants.contact_cost_weight * jnp.sum(fields.cfrc_ext**2)
        return jnp.clip(cost, *self.constants.contact_cost_range)


class InvertedPendulum(Task):
    """Is paid for each step that it stands."""

    hidden = 0

    def healthy(self, fields: Fields) -> jax.Array:
        """Whether it is within 0.2 radians of upright."""
        return jnp.isfinite(self.observation(fields)).all() & (jnp.abs(fields.qpos[1]) <= 0.2)

    def reward(self, fields: Fields, ctrl: jax.Array) -> jax.Array:
        """1; 0 for the step of the fall, from version 5 on."""
        return jnp.where(self.healthy(fields) | (self.version < 5), 1.0, 0.0)


_ROBOTS = (HalfCheetah, Hopper, Walker2d, Ant, Humanoid, InvertedPendulum, Swimmer)

TASKS: Mapping[str, tuple[type[Task], int]] = {
    f"{robot.__name__}-v{version}": (robot, version)
    for robot in _ROBOTS
    for version in ((3, 4, 5) if robot is Ant else (4, 5))
}
"""Classes and versions of the tasks, by gymnasium's names."""

MISSING = "needs Gymnasium's MuJoCo tasks, which are not installed: pip install 'rlx2-jax[mujoco]'."
"""What is the matter with a task, and the mend."""


@functools.cache
def load(name: str) -> Task:
    """The task of a name in `TASKS`, made once per process, its model with it.

    Raises:
      ConfigError: gymnasium, or a part that its MuJoCo tasks need, is missing or too old.
    """
    kind, version = TASKS[name]
    try:
        with quiet():
            from gymnasium.envs import registration

            spec = registration.spec(f"{kind.__name__}-v{max(version, 4)}")
            source = registration.load_env_creator(str(spec.entry_point))()
    # Gymnasium has errors of its own for what is missing, and imports more than it says.
    except Exception as problem:
        raise ConfigError(f"{name} {MISSING}") from problem
    return kind(source, version)


def _constants(source: type) -> types.SimpleNamespace:
    """Defaults of a gymnasium class, and of those that a version has not made an argument yet."""
    parameters = inspect.signature(source).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    unnamed = {"forward_reward_weight": 1.0, "healthy_reward": 0.0, "reset_noise_scale": 0.01}
    return types.SimpleNamespace(**(unnamed | given))
