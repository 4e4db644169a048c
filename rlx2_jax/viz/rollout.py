"""One episode as something to look at, whichever way it is shown: bodies over time, what was paid, and a camera.

The camera looks at the middle of the bodies that move. It follows them over the ground, smoothly, and not up and down.
Where all stay among shapes that are fixed, as on a rail or within walls, it stands still and sees these too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from rlx2_jax import envs
from rlx2_jax.config import Config
from rlx2_jax.envs import episodes
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import orders, structure
from rlx2_jax.policies import Policy

AZIMUTH = 112.0
"""Degrees, as MuJoCo counts them: the camera looks nearly across the way of a robot along x."""

LOW, HIGH = -14.0, -32.0
"""Degrees: elevations of the camera's look, after a robot and into a room."""

FOLLOWING = 0.4
"""Seconds over which the camera's path is averaged."""

UPRIGHT = 0.999
"""Cosine of the tilt up to which a plane is a ground."""

SHOWN_GROUPS = 3
"""MuJoCo's viewers show shapes of the first groups alone; the others are for collisions."""


class Camera(NamedTuple):
    """What is looked at, and from how far."""

    target: np.ndarray
    """`[F, 3]`, metres."""
    radius: float
    """Metres from the target within which all that moves lies, nearly always."""
    elevation: float
    """Degrees, as MuJoCo counts them: of the direction it looks in."""


class Rollout(NamedTuple):
    """One episode of a policy, F = T + 1 moments."""

    model: Any
    """The task's `mujoco.MjModel`."""
    frames: episodes.Frames
    """Where the bodies are at each moment."""
    camera: Camera
    """Where it is seen from."""
    dt: float
    """Seconds of a step."""
    rewards: np.ndarray
    """`[T]`."""
    actions: np.ndarray
    """`[T, A]`, in [-1, 1]."""
    ending: str
    """Why the episode is over, in words."""
    about: dict[str, Any]
    """Description of the policy; see `policies.describe`."""
    links: list[tuple[tuple[int, int], int]]
    """Shape and number of links of each matrix of the policy."""

    @property
    def episode_return(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.sum(dtype=np.float32))


def roll_out(policy: Policy, key: jax.Array, steps: int | None = None) -> Rollout:
    """Play one episode of a policy on its own task.

    Args:
      policy: as of `policies.load`.
      key: of the initial state.
      steps: at most; None is the task's episode.

    Raises:
      ConfigError: the task cannot be made, or has no bodies to look at.
    """
    about = policy.about
    env = episodes.require_visible(envs.make(about["env"], about["backend"]), about["env"])
    limit = min(about["episode_length"], steps or about["episode_length"])
    episode = episodes.record(env, policy.act, key, limit)
    seen = episodes.frames(env, episode)
    ending = "terminated by the task" if episode.terminated else f"cut after {episode.length:,} steps"
    return Rollout(
        model=env.mj_model,
        frames=seen,
        camera=follow(env.mj_model, seen, env.dt),
        dt=env.dt,
        rewards=episode.rewards,
        actions=episode.actions,
        ending=ending if episode.finite else "cut before a value that is not finite",
        about=about,
        links=links_per_matrix(policy),
    )


def links_per_matrix(policy: Policy) -> list[tuple[tuple[int, int], int]]:
    """Shape and number of links of each matrix, in the order of their calls.

    A policy holds its weights, not its masks, and a link may be zero: one that was just grown, or that leads to a dead
    unit. So the numbers are its configuration's; where those change during a run, weights that are not zero tell more.
    """
    made = Config.from_dict(policy.about["config"]), *policy.sizes
    actor = structure(*made)["actor"]
    found = [int(np.count_nonzero(kernel)) for kernel in masking.kernels(policy.params)]
    bounds = [sorted(pair) for pair in zip(actor.start_links, actor.links, strict=True)]
    counted = [
        (shape, min(max(count, fewest), most))
        for shape, count, (fewest, most) in zip(actor.shapes, found, bounds, strict=True)
    ]
    return [counted[i] for i in orders(*made)["actor"]]


def follow(model: Any, frames: episodes.Frames, dt: float) -> Camera:
    """A camera for these frames, `dt` seconds apart."""
    # A body moves if anything between it and the world does.
    moving = np.flatnonzero(np.asarray(model.body_weldid) > 0)
    moving = moving if moving.size else np.arange(model.nbody)
    shown = visible_geoms(model)
    positions, rotations = geom_frames(model, frames)
    of_robot = shown & np.isin(model.geom_bodyid, moving)
    reach = _reach(model)
    middle = frames.position[:, moving].mean(1)
    fixed = shown & ~of_robot & ~_level(model, rotations[0])
    if fixed.any():
        center = positions[0, fixed].mean(0)
        radius = float((np.linalg.norm(positions[0, fixed] - center, axis=-1) + reach[fixed]).max())
        if (np.linalg.norm(middle - center, axis=-1) <= radius).all():
            return Camera(np.tile(np.float32(center), (len(middle), 1)), radius, HIGH)
    width = max(1, round(FOLLOWING / dt))
    padded = np.pad(middle, ((width // 2, (width - 1) // 2), (0, 0)), mode="edge")
    target = np.stack([np.convolve(axis, np.full(width, 1 / width), mode="valid") for axis in padded.T], 1)
    target[:, 2] = middle[:, 2].mean()
    distances = np.linalg.norm(positions[:, of_robot] - target[:, None], axis=-1) + reach[of_robot]
    radius = float(np.quantile(distances.max(1), 0.95)) if of_robot.any() else 1.0
    return Camera(target.astype(np.float32), radius, LOW)


def _reach(model: Any) -> np.ndarray:
    """Radius of a ball about each shape, `[geoms]`, metres; planes, too, where they end."""
    return np.where(planes(model), np.hypot(model.geom_size[:, 0], model.geom_size[:, 1]), model.geom_rbound)


def planes(model: Any) -> np.ndarray:
    """Which shapes are planes, `[geoms]`."""
    import mujoco

    return np.asarray(model.geom_type == int(mujoco.mjtGeom.mjGEOM_PLANE))


def grounds(rollout: Rollout) -> np.ndarray:
    """Which shapes are shown and are grounds, `[geoms]`: planes of the world that face upwards."""
    model = rollout.model
    _, rotations = geom_frames(model, rollout.frames)
    return visible_geoms(model) & (model.body_weldid[model.geom_bodyid] == 0) & _level(model, rotations[0])


def _level(model: Any, rotations: np.ndarray) -> np.ndarray:
    """Which shapes, turned like this, are planes that face upwards."""
    return planes(model) & (rotations[:, 2, 2] > UPRIGHT)


def visible_geoms(model: Any) -> np.ndarray:
    """Which shapes are shown, `[geoms]`."""
    return (model.geom_group < SHOWN_GROUPS) & (geom_colors(model)[:, 3] > 0)


def geom_colors(model: Any) -> np.ndarray:
    """Colour of each shape, `[geoms, 4]`: its own, or its material's where it has none."""
    unset = (model.geom_rgba == np.array([0.5, 0.5, 0.5, 1], np.float32)).all(1) & (model.geom_matid >= 0)
    return np.where(unset[:, None], model.mat_rgba[model.geom_matid] if model.nmat else 0, model.geom_rgba)


def geom_frames(model: Any, frames: episodes.Frames) -> tuple[np.ndarray, np.ndarray]:
    """Positions `[F, geoms, 3]` and rotation matrices `[F, geoms, 3, 3]` of all shapes, which are fixed in bodies."""
    bodies = model.geom_bodyid
    turn = _matrices(frames.rotation)[:, bodies]
    position = frames.position[:, bodies] + np.einsum("fgij,gj->fgi", turn, model.geom_pos)
    return position, turn @ _matrices(model.geom_quat)


def _matrices(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices `[..., 3, 3]` of unit quaternions `[..., 4]`."""
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)
