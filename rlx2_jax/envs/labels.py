"""What the entries of observations and actions are called, and what actions of -1 and 1 stand for.

Environments say so by optional members (see `base.Environment`); what one does not say is numbered, and its actions are
in [-1, 1] of their own unit. Names of MuJoCo's coordinates are those of the model's joints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlx2_jax.envs.base import Environment

LONGEST = 100
"""Characters of a name, at most."""

LARGEST = 1e30
"""Limit of an action, at most: of either sign, in any unit."""


def numbered(kind: str, count: int) -> tuple[str, ...]:
    """Names of things that have none: `observation_0` and so on."""
    return tuple(f"{kind}_{i}" for i in range(count))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable()


def _is_limits(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(limit, int | float) and abs(limit) <= LARGEST for limit in value)
        and value[0] < value[1]
    )


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "observation_names": (_is_name, f"something else than printable words of {LONGEST} characters at most"),
    "action_names": (_is_name, f"something else than printable words of {LONGEST} characters at most"),
    "action_limits": (_is_limits, "something else than pairs of finite numbers, the lower one first"),
}
"""What each value of a field must be, and what is the matter where one is not."""


class Labels(NamedTuple):
    """Names and limits, in the order of the entries."""

    observation_names: tuple[str, ...]
    """`[O]`."""
    action_names: tuple[str, ...]
    """`[A]`."""
    action_limits: tuple[tuple[float, float], ...]
    """`[A]`: what -1 and 1 mean, in the task's own unit."""

    @classmethod
    def of(cls, env: Environment) -> Labels:
        """The labels of an environment.

        Raises:
          ValueError: as of `read`.
        """
        said = {field: getattr(env, field, None) for field in cls._fields}
        return cls.read(said, env.observation_size, env.action_size)

    @classmethod
    def read(cls, said: Mapping[str, Any], observations: int, actions: int) -> Labels:
        """Labels, whoever says them; what is not said is numbered, and has limits of -1 and 1.

        Args:
          said: sequences by the names of the fields of `Labels`; what is left out or None is not said.
          observations: entries of an observation.
          actions: entries of an action.

        Raises:
          ValueError: they are not as many as there are entries, or no names and limits.
        """
        default = cls(numbered("observation", observations), numbered("action", actions), ((-1.0, 1.0),) * actions)
        found: dict[str, Any] = default._asdict()
        for field, values in found.items():
            if (given := said.get(field)) is None:
                continue
            if not isinstance(given, list | tuple) or len(given) != len(values):
                raise ValueError(f"{field} is no sequence of {len(values)}")
            is_one, kind = _KINDS[field]
            if not all(map(is_one, given)):
                raise ValueError(f"{field} has {kind}")
            found[field] = (
                tuple(tuple(map(float, pair)) for pair in given) if field == "action_limits" else tuple(given)
            )
        return cls(**found)


_AXES = ("x", "y", "z")

_OF_JOINT = {
    0: (
        (*(f"{axis}_position" for axis in _AXES), *(f"orientation_{part}" for part in ("w", *_AXES))),
        (*(f"{axis}_velocity" for axis in _AXES), *(f"{axis}_angular_velocity" for axis in _AXES)),
    ),
    1: (
        tuple(f"orientation_{part}" for part in ("w", *_AXES)),
        tuple(f"{axis}_angular_velocity" for axis in _AXES),
    ),
    2: (("position",), ("velocity",)),
    3: (("angle",), ("angular_velocity",)),
}
"""Coordinates and velocities of MuJoCo's kinds of joints: free, ball, slide, hinge."""


def coordinates(model: Any) -> tuple[list[str], list[str]]:
    """Names of the coordinates `qpos` and of the velocities `qvel` of a MuJoCo model."""
    positions, velocities = (
        [
            f"{_named(model.joint(i), 'joint', i)}_{part}"
            for i in range(model.njnt)
            for part in _OF_JOINT[int(model.jnt_type[i])][side]
        ]
        for side in (0, 1)
    )
    return positions, velocities


def actuators(model: Any) -> list[str]:
    """Names of the actuators of a MuJoCo model; of their joints, where they have none."""
    joint = lambda i: _named(model.joint(int(model.actuator_trnid[i, 0])), "actuator", i)
    on_joint = lambda i: int(model.actuator_trntype[i]) == 0
    return [model.actuator(i).name or (joint(i) if on_joint(i) else f"actuator_{i}") for i in range(model.nu)]


class OfActuators:
    """An environment whose actions are the controls of its model's actuators: their names and limits."""

    mj_model: Any
    """As of `base.Visible`."""

    @property
    def action_names(self) -> list[str]:
        """Names of the model's actuators."""
        return actuators(self.mj_model)

    @property
    def action_limits(self) -> list[list[float]]:
        """The actuators' ranges of control."""
        limits: list[list[float]] = self.mj_model.actuator_ctrlrange.tolist()
        return limits


def of_bodies(model: Any, parts: Sequence[str], first: int) -> list[str]:
    """Names of numbers `[bodies, parts]` of a MuJoCo model's bodies, from a first one on."""
    return [f"{_named(model.body(i), 'body', i)}_{part}" for i in range(first, model.nbody) for part in parts]


def _named(thing: Any, kind: str, index: int) -> str:
    return thing.name or f"{kind}_{index}"
