"""A rollout as moving pictures, drawn by MuJoCo without a screen.

Tasks are lit and painted for their authors' viewers, or not at all: here each has a light ground, a white background
and the same lamps, on a copy of its model.
"""

from __future__ import annotations

import copy
import ctypes.util
import importlib
import io
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax.envs.quiet import quiet
from rlx2_jax.errors import ConfigError
from rlx2_jax.viz.rollout import AZIMUTH, SHOWN_GROUPS, Rollout, geom_frames, grounds, planes

GL = {"osmesa": "OSMesa", "egl": "EGL"}
"""Ways to draw without a screen, and the libraries they need, the surest first."""

MISSING = (
    "no pictures can be drawn here: MuJoCo finds neither OSMesa nor EGL; install one (on Debian: apt install "
    "libosmesa6), or write .html, which needs none."
)
"""What is the matter, and the mend."""

NO_FFMPEG = "MP4 needs the program ffmpeg (on Debian: apt install ffmpeg) or pip install imageio-ffmpeg; or write .gif."
"""The same for `write_mp4`."""

COLORS = 96
"""In the palette of a GIF: the fewer, the smaller it is."""

APART = 9
"""Levels between two colours of a palette, in one of red, green and blue."""

BACKDROP = 40
"""Radii from the target to what closes the view."""

FOG = (5.0, 25.0)
"""Radii from the camera at which the ground begins to fade, and is gone."""


Pictures = Iterator[np.ndarray]
"""Pictures `[height, width, 3]`, uint8, one after another."""


class Size(NamedTuple):
    """A picture's, in pixels."""

    width: int
    """From left to right."""
    height: int
    """From top to bottom."""


def choose_gl() -> str:
    """The way to draw without a screen: `MUJOCO_GL` if that names one, else what is there.

    Raises:
      ConfigError: nothing is.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    names = [asked] if asked in GL else list(GL)
    found = next((name for name in names if ctypes.util.find_library(GL[name])), None)
    if found is None:
        raise ConfigError(MISSING)
    return found


def moments(frames: int, dt: float, fps: float) -> np.ndarray:
    """Indices of the frames, `dt` seconds apart, that a film of so many pictures a second shows, at true speed."""
    count = math.floor((frames - 1) * dt * fps + 1e-6) + 1
    return np.minimum(np.rint(np.arange(count) / (fps * dt)).astype(int), frames - 1)


def draw(rollout: Rollout, indices: Sequence[int] | np.ndarray, size: Size) -> Pictures:
    """Pictures of the frames with these indices.

    Raises:
      ConfigError: there is no way to draw.
    """
    name = choose_gl()
    with quiet():
        import mujoco

    model = _painted(rollout, size)
    try:
        context: Any = importlib.import_module(f"mujoco.{name}").GLContext(*size)
        context.make_current()
        drawer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except Exception as error:  # Drivers have errors of many kinds.
        raise ConfigError(MISSING) from error
    try:
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, drawer)
        view = mujoco.MjrRect(0, 0, *size)
        pixels = np.empty((size.height, size.width, 3), np.uint8)
        for scene in _scenes(rollout, model, indices):
            mujoco.mjr_render(view, scene, drawer)
            mujoco.mjr_readPixels(pixels, None, view, drawer)
            yield pixels[::-1].copy()
    finally:
        drawer.free()
        context.free()


def _scenes(rollout: Rollout, model: Any, indices: Sequence[int] | np.ndarray) -> Iterator[Any]:
    """What is to be drawn at each moment: one scene, which changes."""
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    scene, options, camera = mujoco.MjvScene(model, maxgeom=model.ngeom + 100), mujoco.MjvOption(), mujoco.MjvCamera()
    options.geomgroup[SHOWN_GROUPS:] = 0
    radius = rollout.camera.radius
    camera.azimuth, camera.elevation = AZIMUTH, rollout.camera.elevation
    camera.distance = 1.1 * radius / math.sin(math.radians(model.vis.global_.fovy) / 2)
    positions, rotations = geom_frames(model, rollout.frames)
    for i in indices:
        data.xpos[:], data.xquat[:] = rollout.frames.position[i], rollout.frames.rotation[i]
        data.geom_xpos[:], data.geom_xmat[:] = positions[i], rotations[i].reshape(-1, 9)
        camera.lookat[:] = rollout.camera.target[i]
        # Lamps come along: shadows fall around them alone.
        data.light_xpos[:] = rollout.camera.target[i] - 4 * radius * data.light_xdir
        mujoco.mjv_updateScene(model, data, options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
        _close_view(scene, rollout.camera.target[i], BACKDROP * radius)
        scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False
        scene.flags[mujoco.mjtRndFlag.mjRND_FOG] = True
        yield scene


def _close_view(scene: Any, target: np.ndarray, distance: float) -> None:
    """Put a white wall behind all, across the view."""
    import mujoco

    forward = scene.camera[0].forward.astype(float)
    right = np.cross(forward, [0.0, 0, 1])
    right /= np.linalg.norm(right)
    wall = np.stack([right, np.cross(-forward, right), -forward], 1)
    geom = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(
        geom,
        mujoco.mjtGeom.mjGEOM_PLANE,
        np.array([4 * distance, 4 * distance, 1]),
        target + distance * forward,
        wall.ravel(),
        np.ones(4, np.float32),
    )
    geom.category, geom.emission, geom.specular = mujoco.mjtCatBit.mjCAT_DECOR, 1.0, 0.0
    scene.ngeom += 1


def _painted(rollout: Rollout, size: Size) -> Any:
    """A copy of the model, lit and painted to be looked at."""
    import mujoco

    model, radius = copy.copy(rollout.model), rollout.camera.radius
    model.vis.global_.offwidth, model.vis.global_.offheight = size
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:], model.vis.headlight.specular[:] = 0.45, 0.45, 0.1
    # Distances of the view are multiples of the extent.
    model.stat.extent, model.vis.map.znear, model.vis.map.zfar = radius, 0.05, 2 * BACKDROP
    model.vis.map.fogstart, model.vis.map.fogend = FOG
    model.vis.rgba.fog[:] = 1.0
    model.light_diffuse[:], model.light_specular[:], model.light_ambient[:] = 0.4, 0.1, 0.0
    model.light_castshadow[:], model.light_type[:] = True, int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    model.geom_size[grounds(rollout), :2] = 0.0  # They go on for ever, as physics has it.
    flat = planes(model)
    model.geom_rgba[flat, :3] = 0.97
    for material in range(model.nmat):
        if material not in model.geom_matid[flat]:
            model.mat_texid[material] = -1
            continue
        model.mat_reflectance[material] = model.mat_specular[material] = 0.0
        model.mat_texrepeat[material] = 1 / radius
        for texture in set(model.mat_texid[material].tolist()) - {-1}:
            start = model.tex_adr[texture]
            end = start + model.tex_height[texture] * model.tex_width[texture] * model.tex_nchannel[texture]
            model.tex_data[start:end] = 205 + model.tex_data[start:end] // 12
    return model


def write_gif(pictures: Pictures, fps: float, exact: Sequence[str] = ()) -> bytes:
    """A GIF that repeats for ever, of pictures that all have the colours of the first ones' palette.

    Args:
      pictures: one after another.
      fps: of them per second.
      exact: hexadecimal codes of colours that they are drawn in, if they are not lit: these stay as they are.
    """
    from PIL import Image

    first = Image.fromarray(next(pictures))
    # The palette that covers most colours: others make grey grounds pink.
    covering = lambda: first.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette = _frequent(first, exact) if exact else covering()
    reduced = lambda image: image.quantize(palette=palette, dither=Image.Dither.NONE)
    rest = [reduced(Image.fromarray(picture)) for picture in pictures]
    out = io.BytesIO()
    durations = gif_durations(1 + len(rest), fps)
    reduced(first).save(out, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return out.getvalue()


def gif_durations(count: int, fps: float) -> list[int]:
    """Milliseconds of each picture of a GIF, which counts in hundredths of a second, such that none drifts."""
    ends = np.rint(100 * np.arange(count + 1) / fps).astype(int)
    return [10 * int(hundredths) for hundredths in np.diff(ends)]


def _frequent(picture: Any, exact: Sequence[str]) -> Any:
    """An image whose palette are some colours, and a picture's most frequent ones that Pillow tells from them."""
    from PIL import Image, ImageColor

    chosen = [ImageColor.getrgb(code) for code in exact]
    for _, color in sorted(picture.getcolors(picture.width * picture.height), reverse=True):
        near = (max(abs(a - b) for a, b in zip(color, other, strict=True)) < APART for other in chosen)
        if len(chosen) < COLORS and not any(near):
            chosen.append(color)
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for color in chosen for part in color])
    return palette


def write_mp4(pictures: Pictures, fps: float) -> bytes:
    """An MP4 that any player takes; pictures have even sides.

    Raises:
      ConfigError: there is no program that makes one, or it fails.
    """
    program = find_ffmpeg()
    first = next(pictures)
    size = f"{first.shape[1]}x{first.shape[0]}"
    with tempfile.TemporaryDirectory() as room, tempfile.TemporaryFile() as said:
        path = Path(room) / "film.mp4"
        given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
        wanted = ["-an", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
        command = [program, "-v", "error", *given, *wanted]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        assert process.stdin is not None
        try:
            with process.stdin as into:
                into.write(first.tobytes())
                for picture in pictures:
                    into.write(picture.tobytes())
        except BrokenPipeError:  # It has said why.
            pass
        finally:
            code = process.wait()
        if code or not path.exists():
            said.seek(0)
            words = said.read().decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            raise ConfigError(f"{program} made no MP4 ({words[0]}); write .gif instead.")
        return path.read_bytes()


def find_ffmpeg() -> str:
    """The program that makes MP4.

    Raises:
      ConfigError: there is none.
    """
    if found := shutil.which("ffmpeg"):
        return found
    try:
        return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise ConfigError(NO_FFMPEG) from None
