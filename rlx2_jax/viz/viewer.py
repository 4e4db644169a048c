"""A rollout as one HTML page, which draws itself and loads nothing.

`viewer.html` is the page; what it shows stands in it as JSON. Long arrays are little-endian and in base64: positions of
the bodies that move as float32, exact; their quaternions as int16, in units of 1/32767 (an error below 0.004 degrees);
camera targets, rewards and actions as float32. Shapes are planes, spheres, capsules, ellipsoids, cylinders and boxes;
meshes and height fields appear as their bounding boxes, tendons and sites not at all.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from rlx2_jax import policies
from rlx2_jax.envs import labels
from rlx2_jax.io import files
from rlx2_jax.viz.rollout import AZIMUTH, Rollout, geom_colors, geom_frames, grounds, visible_geoms

UNIT = 32767
"""What a quaternion's entry of 1 is stored as."""

BOXED = ("mesh", "hfield", "sdf")
"""Kinds of shapes that are shown as boxes around them."""


def page(rollout: Rollout) -> bytes:
    """The page, UTF-8."""
    template = importlib.resources.files("rlx2_jax.viz").joinpath("viewer.html").read_text(encoding="utf-8")
    # No text of a task's or a person's may end the script element that it stands in.
    text = json.dumps(files.plain(contents(rollout)), separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("@DATA@", text).encode()


def frame(rollout: Rollout, height: int = 480) -> str:
    """The page as a part of another one, such as a notebook: HTML for `IPython.display.HTML`.

    Args:
      rollout: what it shows.
      height: of the part, in pixels; it is as wide as there is room.
    """
    # Not the frame alone, which IPython would advise to put in a file.
    source = html.escape(page(rollout).decode())
    return f'<div><iframe srcdoc="{source}" style="width: 100%; height: {height}px; border: 0"></iframe></div>'


def contents(rollout: Rollout) -> dict[str, Any]:
    """What the page shows, as JSON has it."""
    frames, about, model = rollout.frames, rollout.about, rollout.model
    moving = _moving(rollout)
    config = about["config"]
    total, present = sum(a * b for (a, b), _ in rollout.links), sum(count for _, count in rollout.links)
    backend = "" if about["backend"] in about["env"] else f" ({about['backend']})"
    heights = geom_frames(model, frames)[0][0, grounds(rollout), 2]
    return {
        "title": f"{about['env']}{backend}",
        "facts": [
            ["agent", f"{config['method']} {about['agent']}"],
            ["trained for", policies.trained_for(about)],
            ["sparsity", f"{100 * (1 - present / total):.1f} %"],
            ["links", f"{present:,} of {total:,}"],
            ["return", f"{rollout.episode_return:,.1f}"],
            ["episode", rollout.ending],
        ],
        "links": [[*shape, count] for shape, count in rollout.links],
        "actuators": _actuators(rollout),
        "dt": rollout.dt,
        "steps": len(rollout.rewards),
        "bodies": int(moving.sum()),
        "geoms": list(_geoms(rollout, moving)),
        "ground": float(heights.max()) if heights.size else None,
        "radius": rollout.camera.radius,
        "azimuth": AZIMUTH,
        "elevation": rollout.camera.elevation,
        "names": [model.body(int(i)).name for i in np.flatnonzero(moving)],
        "position": _encode(frames.position[:, moving], "<f4"),
        "rotation": _encode(np.rint(UNIT * frames.rotation[:, moving]), "<i2"),
        "target": _encode(rollout.camera.target, "<f4"),
        "reward": _encode(rollout.rewards, "<f4"),
        "action": _encode(rollout.actions, "<f4"),
    }


def _moving(rollout: Rollout) -> np.ndarray:
    """Which bodies ever move, `[bodies]`."""
    changed = [(array != array[:1]).any((0, 2)) for array in rollout.frames]
    return np.logical_or(*changed)


def _geoms(rollout: Rollout, moving: np.ndarray) -> Iterator[dict[str, Any]]:
    """Shapes in the frames of their bodies; those of bodies that never move, in the world's (`body` is -1)."""
    import mujoco

    model, frames = rollout.model, rollout.frames
    colors, endless = geom_colors(model), grounds(rollout)
    order = np.cumsum(moving) - 1
    for i in np.flatnonzero(visible_geoms(model)):
        kind = mujoco.mjtGeom(int(model.geom_type[i])).name.removeprefix("mjGEOM_").lower()
        position, rotation, size = (np.asarray(x[i], float) for x in (model.geom_pos, model.geom_quat, model.geom_size))
        if kind in BOXED:
            middle, size = model.geom_aabb[i, :3], model.geom_aabb[i, 3:]
            kind, position = "box", _place(position, rotation, middle)
        body = int(model.geom_bodyid[i])
        if not moving[body]:
            turn = frames.rotation[0, body].astype(float)
            position = _place(frames.position[0, body].astype(float), turn, position)
            rotation = _compose(turn, rotation)
        yield {
            "type": kind,
            "size": [0.0] * 3 if endless[i] else size.tolist(),
            "body": int(order[body]) if moving[body] else -1,
            "position": position.tolist(),
            "rotation": rotation.tolist(),
            "color": [round(float(x), 4) for x in colors[i]],
        }


def _actuators(rollout: Rollout) -> list[str]:
    """Names of the entries of an action: the actuators', where there is one for each."""
    model, count = rollout.model, rollout.actions.shape[1]
    return labels.actuators(model) if model.nu == count else [f"action {i}" for i in range(count)]


def _place(origin: np.ndarray, rotation: np.ndarray, point: np.ndarray) -> np.ndarray:
    """A point of a frame, in the frame that this one is in."""
    import mujoco

    turned = np.empty(3)
    mujoco.mju_rotVecQuat(turned, point, rotation)
    return origin + turned


def _compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The quaternion of one rotation after another."""
    import mujoco

    product = np.empty(4)
    mujoco.mju_mulQuat(product, outer, inner)
    return product


def _encode(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()
