"""Episodes to look at: poses are the simulator's, pages and films hold them, and launchers say what is missing."""

import base64
import ctypes.util
import html
import io
import json
import math
import os
import re
import stat
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rlx2_jax import envs, policies
from rlx2_jax.config import resolve
from rlx2_jax.envs import State, episodes
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import nets, structure
from rlx2_jax.policies import Policy, describe
from rlx2_jax.runtime import memory
from rlx2_jax.training import evaluation, workdirs
from rlx2_jax.viz import film, rollout, viewer
from tests.conftest import cached, launch_here, small

KEY = jax.random.PRNGKey(5)


def shaken(size):
    """A policy that moves all joints, and depends on what is seen."""
    return lambda observation: jnp.sin(3 * observation.sum(-1, keepdims=True) + jnp.arange(size))


def untrained(env, backend=None, **settings):
    """A policy that has learned nothing, and its configuration."""
    config = resolve(small(env=env, backend=backend, **settings))
    task = envs.make(env, backend)
    sizes = task.observation_size, task.action_size
    return Policy(nets(config, sizes[1])["actor"].init(KEY, sizes[0]), describe(config, 800, None, sizes)), config


@pytest.fixture(scope="module")
def cheetah():
    """Twenty steps of a robot with many joints."""
    return rollout.roll_out(untrained("HalfCheetah-v4", episode_length=20)[0], KEY)


def test_poses_are_those_of_mujoco_stepped_by_hand():
    env = envs.make("Hopper-v4", "mujoco")
    episode = episodes.record(env, shaken(3), KEY, 40)
    found = episodes.frames(env, episode)
    task, data, looked_at = env.task, mujoco.MjData(env.mj_model), mujoco.MjData(env.mj_model)
    noise = np.asarray(task.noise(KEY))
    data.qpos += noise[: task.model.nq]
    data.qvel += noise[task.model.nq :]
    assert 2 < episode.length <= 40
    for i in range(episode.length + 1):
        if i:
            data.ctrl[:] = episode.actions[i - 1]  # The hopper's controls are its actions.
            mujoco.mj_step(task.model, data, task.frame_skip)
        looked_at.qpos[:] = data.qpos
        mujoco.mj_kinematics(task.model, looked_at)
        np.testing.assert_array_equal(found.position[i], looked_at.xpos.astype(np.float32))
        np.testing.assert_array_equal(found.rotation[i], looked_at.xquat.astype(np.float32))


def assert_poses_of_brax(name, backend, steps):
    """Frames are Brax's own of its links, and those that its coordinates give, where the joints hold."""
    env = envs.make(name, backend)
    episode = episodes.record(env, shaken(env.action_size), KEY, steps)
    assert episode.finite
    found = episodes.frames(env, episode)
    simulated = episode.states.physics.pipeline_state
    links = env.mj_model.nbody - 1
    assert found.position.shape == (episode.length + 1, 1 + links, 3)
    if backend != "mjx":
        np.testing.assert_array_equal(found.position[:, 1:], simulated.x.pos)
        np.testing.assert_array_equal(found.rotation[:, 1:], simulated.x.rot)
    if backend in ("generalized", "mjx"):
        data = mujoco.MjData(env.mj_model)
        for i, qpos in enumerate(simulated.q if backend == "generalized" else simulated.qpos):
            data.qpos[:] = qpos
            mujoco.mj_kinematics(env.mj_model, data)
            np.testing.assert_allclose(found.position[i], data.xpos, atol=1e-5)
    assert np.ptp(found.position, 0).max() > 1e-3


def test_poses_are_those_of_brax():
    assert_poses_of_brax("inverted_pendulum", "generalized", 30)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["spring", "positional", "generalized", "mjx"])
def test_poses_are_those_of_every_brax(backend):
    assert_poses_of_brax("hopper", backend, 30)


@pytest.mark.slow
def test_poses_of_mjx_are_those_of_the_c_library_at_first():
    ours, other = (envs.make("InvertedPendulum-v4", engine) for engine in ("mjx", "mujoco"))
    found, expected = (episodes.frames(env, episodes.record(env, shaken(1), KEY, 3)) for env in (ours, other))
    np.testing.assert_allclose(found.position, expected.position, atol=1e-4)


@pytest.mark.parametrize("name", ["Hopper-v4", "InvertedPendulum-v4"])
def test_the_return_is_that_of_an_evaluation_from_the_same_state(name):
    policy, config = untrained(name, episode_length=60)
    env = envs.make(name)
    start = jax.vmap(env.reset)(KEY[None])
    expected = evaluation.episode_returns(env, policy.act, start, config.episode_length)
    found = rollout.roll_out(policy, KEY)
    np.testing.assert_allclose(found.episode_return, expected[0], rtol=1e-5)
    assert found.frames.position.shape[0] == len(found.rewards) + 1 == len(found.actions) + 1


@pytest.mark.parametrize(("name", "length"), [("chain", 2), ("constant", 1), ("forever", 7)])
def test_an_episode_ends_where_the_task_ends_it_or_its_time_is_over(name, length):
    episode = episodes.record(envs.make(f"probe/{name}"), shaken(1), KEY, 7)
    assert episode.length == length and episode.finite
    assert episode.terminated == (name != "forever")
    assert episode.rewards.shape == (length,)


def test_nothing_that_is_not_finite_is_kept():
    always = lambda value: lambda observation: jnp.full((*observation.shape[:-1], 1), value)
    for act in (always(jnp.nan), always(1.0)):  # The task pays NaN for the second.
        episode = episodes.record(envs.make("probe/fragile"), act, KEY, 7)
        assert not episode.finite and episode.length == 0
        assert np.isfinite(episode.states.observation).all()


def test_more_states_than_fit_are_refused_before_any_is_played(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"400 states need .* left; play fewer steps"):
        episodes.record(envs.make("probe/chain"), shaken(1), KEY, 400)


def test_shapes_stand_in_their_bodies_as_mujoco_has_them(cheetah):
    data = mujoco.MjData(cheetah.model)
    env = envs.make("HalfCheetah-v4", "mujoco")
    episode = episodes.record(env, shaken(6), KEY, 5)
    position, rotation = rollout.geom_frames(cheetah.model, episodes.frames(env, episode))
    for i in range(6):
        env.pose(episode.states.physics[i], data)
        np.testing.assert_allclose(position[i], data.geom_xpos, atol=1e-6)
        np.testing.assert_allclose(rotation[i].reshape(-1, 9), data.geom_xmat, atol=1e-6)


def test_the_camera_sees_all_that_moves_nearly_always(cheetah):
    shown = cheetah.model.geom_bodyid > 0
    position, _ = rollout.geom_frames(cheetah.model, cheetah.frames)
    away = np.linalg.norm(position[:, shown] - cheetah.camera.target[:, None], axis=-1)
    inside = away + cheetah.model.geom_rbound[shown] <= cheetah.camera.radius + 1e-5
    assert inside.all(1).mean() >= 0.9
    still = episodes.Frames(*(np.repeat(array[:1], 9, 0) for array in cheetah.frames))
    target = rollout.follow(cheetah.model, still, cheetah.dt).target
    np.testing.assert_allclose(target, np.tile(still.position[0, 1:].mean(0), (9, 1)), atol=1e-5)


def test_the_camera_stands_still_before_a_rail():
    seen = rollout.roll_out(untrained("InvertedPendulum-v4", episode_length=20)[0], KEY)
    assert np.ptp(seen.frames.position, 0).max() > 0 and np.ptp(seen.camera.target, 0).max() == 0
    assert seen.camera.radius >= 1  # The rail is two metres long.
    assert not rollout.grounds(seen).any()


def read_back(page):
    """What a page shows."""
    return json.loads(re.search(rb'<script id="data" type="application/json">(.*?)</script>', page, re.S).group(1))


def test_a_page_holds_the_poses_to_the_rounding_it_states(cheetah):
    shown = read_back(viewer.page(cheetah))
    decode = lambda name, kind: np.frombuffer(base64.b64decode(shown[name]), kind)
    frames, bodies = len(cheetah.frames.position), shown["bodies"]
    assert bodies == cheetah.model.nbody - 1  # The world does not move.
    np.testing.assert_array_equal(decode("position", "<f4").reshape(frames, bodies, 3), cheetah.frames.position[:, 1:])
    rotation = decode("rotation", "<i2").reshape(frames, bodies, 4) / viewer.UNIT
    np.testing.assert_allclose(rotation, cheetah.frames.rotation[:, 1:], atol=0.5 / viewer.UNIT + 1e-7)
    np.testing.assert_array_equal(decode("reward", "<f4"), cheetah.rewards)
    np.testing.assert_array_equal(decode("action", "<f4").reshape(-1, 6), cheetah.actions)
    np.testing.assert_array_equal(decode("target", "<f4").reshape(-1, 3), cheetah.camera.target)
    assert shown["actuators"] == ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    assert shown["ground"] == 0 and shown["geoms"][0]["size"] == [0, 0, 0] and shown["steps"] == 20
    assert shown["links"] == [[*shape, count] for shape, count in cheetah.links]
    assert [entry[:2] for entry in shown["links"]] == [[17, 16], [16, 16], [16, 6]]


def test_a_page_counts_the_links_that_a_run_has_also_those_that_are_zero():
    policy, config = untrained("HalfCheetah-v4", episode_length=2)
    own = structure(config, *policy.sizes)["actor"]
    assert sum(own.links) < sum(map(math.prod, own.shapes))
    silent = policy._replace(params=jax.tree.map(jnp.zeros_like, policy.params))
    for shown in (policy, silent):
        assert rollout.links_per_matrix(shown) == list(zip(own.shapes, own.links, strict=True))


def test_where_links_become_fewer_a_page_counts_weights():
    policy, config = untrained("HalfCheetah-v4", method="sparser", episode_length=2)
    own = structure(config, *policy.sizes)["actor"]
    assert own.start_links != own.links
    holding = lambda count, kernel: (jnp.arange(kernel.size) < count).astype(kernel.dtype).reshape(kernel.shape)
    counts = [(start + end) // 2 for start, end in zip(own.start_links, own.links, strict=True)]
    params = masking.with_kernels(policy.params, list(map(holding, counts, masking.kernels(policy.params))))
    assert [count for _, count in rollout.links_per_matrix(policy._replace(params=params))] == counts


def test_a_page_asks_for_nothing(cheetah):
    page = viewer.page(cheetah).decode()
    assert "default-src 'none'" in page
    # Not a word of what a browser could load something by.
    assert not re.search(r"https?:|//\w+\.|\bsrc=|\bhref=|@import|\burl\(|\bfetch\(|XMLHttp|WebSocket|\bimport\b", page)


def test_a_page_is_light_or_dark_as_its_reader_has_it(cheetah):
    page = viewer.page(cheetah).decode()
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    defined = [dict(re.findall(r"(--\w+): (#[0-9a-f]{6});", part)) for part in (light, dark)]
    assert defined[0].keys() == defined[1].keys() and not set(defined[0].values()) & set(defined[1].values())
    assert {*re.findall(r"--\w+", page)} == defined[0].keys()
    # No other colour stands in the page: all follow these.
    assert not re.search(r"[\s\"']#[0-9a-f]{3,6}\b", page.replace(light, "").replace(dark, ""))


def test_a_frame_holds_the_page(cheetah):
    frame = viewer.frame(cheetah, height=300)
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', frame).group(1)).encode() == viewer.page(cheetah)
    assert "height: 300px" in frame and frame.count("<") == 4


def test_no_text_leaves_the_data_of_a_page(cheetah):
    odd = cheetah._replace(about={**cheetah.about, "env": "</script><script>alert(1)</script>"})
    assert viewer.page(odd).count(b"<script") == viewer.page(cheetah).count(b"<script")
    assert read_back(viewer.page(odd))["title"].startswith("</script>")


ALL_SHAPES = """
<mujoco>
  <asset>
    <mesh name="wedge" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/>
    <hfield name="hills" nrow="2" ncol="2" size="1 1 .3 .1" elevation="0 1 1 0"/>
    <material name="red" rgba="1 0 0 1"/>
  </asset>
  <worldbody>
    <geom type="plane" size="0 0 1"/> <geom type="hfield" hfield="hills" pos="3 0 0"/>
    <body name="all" pos="0 0 1"> <freejoint/>
      <geom type="sphere" size=".1"/> <geom type="capsule" size=".1 .2" material="red"/>
      <geom type="ellipsoid" size=".1 .2 .3"/> <geom type="cylinder" size=".1 .2"/> <geom type="box" size=".1 .2 .3"/>
      <geom type="mesh" mesh="wedge"/> <geom type="box" size="1 1 1" group="4"/>
    </body>
  </worldbody>
</mujoco>
"""


class Thrown:
    """A person's own: a body that rises."""

    observation_size = 1
    action_size = 1
    dt = 0.1

    def __init__(self, broken=False):
        self.mj_model = mujoco.MjModel.from_xml_string(ALL_SHAPES)
        self.broken = broken

    def reset(self, key):
        return State(jnp.zeros(()), jnp.zeros(1), 0.0, False)

    def step(self, state, action):
        return State(state.physics + 0.1, jnp.zeros(1), 1.0, False)

    def pose(self, physics, data):
        if self.broken:
            raise KeyError("height")
        data.qpos[2] = 1 + physics
        mujoco.mj_kinematics(self.mj_model, data)


def test_an_environment_of_ones_own_is_seen_with_all_kinds_of_shapes():
    envs.register("thrown", Thrown)
    found = rollout.roll_out(untrained("thrown", episode_length=4)[0], KEY)
    np.testing.assert_allclose(found.frames.position[:, 1, 2], [1, 1.1, 1.2, 1.3, 1.4], rtol=1e-6)
    shown = read_back(viewer.page(found))
    assert [geom["type"] for geom in shown["geoms"]] == [
        *("plane", "box", "sphere", "capsule", "ellipsoid", "cylinder", "box", "box")
    ]
    assert [geom["body"] for geom in shown["geoms"]] == [-1] * 2 + [0] * 6
    assert shown["geoms"][3]["color"] == [1, 0, 0, 1]
    assert shown["actuators"] == ["action 0"]


@pytest.mark.parametrize("fault", ["broken", "no model"])
def test_an_environment_that_cannot_be_seen_is_told_in_one_sentence(fault):
    env = Thrown(broken=fault == "broken")
    if fault == "no model":
        env.mj_model = "a robot"
    envs.register(f"thrown {fault}", lambda: env)
    words = {"broken": r"pose of the environment raised KeyError", "no model": "no bodies to look at"}
    with pytest.raises(ConfigError, match=words[fault]):
        rollout.roll_out(untrained(f"thrown {fault}", episode_length=4)[0], KEY)


@given(st.integers(1, 300), st.floats(0.001, 0.2), st.integers(1, 50))
def test_a_film_runs_at_true_speed(frames, dt, fps):
    indices = film.moments(frames, dt, fps)
    assert indices[0] == 0 and indices[-1] < frames and (np.diff(indices) >= 0).all()
    np.testing.assert_array_less(np.abs(indices * dt - np.arange(len(indices)) / fps), dt / 2 + 1e-6)
    assert len(indices) / fps > (frames - 1) * dt - 1e-6  # To the end.


@given(st.integers(1, 300), st.integers(1, 50))
def test_a_gif_shows_each_picture_when_it_was(count, fps):
    shown = film.gif_durations(count, fps)
    assert len(shown) == count and min(shown) >= 20 and all(milliseconds % 10 == 0 for milliseconds in shown)
    np.testing.assert_array_less(np.abs(np.cumsum(shown) - 1000 * np.arange(1, count + 1) / fps), 5 + 1e-6)


def can_draw():
    """Whether there is a way to draw here."""
    try:
        return bool(film.choose_gl())
    except ConfigError:
        return False


drawing = pytest.mark.skipif(not can_draw(), reason="neither OSMesa nor EGL")


@drawing
def test_a_gif_shows_the_robot_move(cheetah):
    before = cheetah.model.geom_rgba.copy()
    gif = Image.open(io.BytesIO(film.write_gif(film.draw(cheetah, [0, 9, 19], film.Size(96, 64)), 25)))
    assert gif.size == (96, 64) and gif.n_frames == 3
    pictures = []
    for i in range(3):
        gif.seek(i)
        assert gif.info["duration"] == 40
        pictures.append(np.asarray(gif.convert("RGB"), float))
    assert min(picture.std() for picture in pictures) > 10
    assert np.abs(pictures[0] - pictures[2]).max() > 50
    np.testing.assert_array_equal(cheetah.model.geom_rgba, before)  # The task's own model is not painted.


@drawing
def test_an_mp4_is_one(cheetah, tmp_path, monkeypatch):
    pictures = lambda: film.draw(cheetah, [0, 9], film.Size(96, 64))
    try:
        film.find_ffmpeg()
    except ConfigError:
        pass
    else:
        assert film.write_mp4(pictures(), 25)[4:8] == b"ftyp"
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho no codec >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=r"ffmpeg made no MP4 \(no codec\); write \.gif instead"):
        film.write_mp4(pictures(), 25)


def saved(directory, env, **settings):
    """A run's directory with a policy that has learned nothing."""
    policy, config = untrained(env, **settings)
    workdirs.prepare(directory, config, resume=False, overwrite=False)
    policies.save(directory / policies.NAME, policy.params, policy.about)
    return directory


def test_the_launcher_writes_what_it_is_asked_for_and_its_episode_is_the_one_that_is_evaluated(tmp_path):
    run = saved(tmp_path / "run", "InvertedPendulum-v4", episode_length=12)
    files = [tmp_path / "new" / "a.html", *([tmp_path / "b.GIF"] if can_draw() else [])]
    given = (f"--workdir={run}", "--seed=3", cached())
    done = launch_here("rollout.py", *given, f"--output={','.join(map(str, files))}", "--width=64", "--height=48")
    assert done.returncode == 0, done.stderr
    assert all(f"wrote {path} (" in done.stdout and path.stat().st_size > 500 for path in files)
    evaluated = json.loads(launch_here("evaluate.py", *given, "--episodes=1", "--json").stdout)
    steps = read_back(files[0].read_bytes())["steps"]
    assert f"return {evaluated['mean']:.1f} in {steps} steps" in done.stdout
    shorter = launch_here("rollout.py", *given, "--steps=1")
    assert "in 1 steps" in shorter.stdout and read_back((run / "rollout.html").read_bytes())["steps"] == 1


REFUSED = {
    "": "no workdir given; name a run's directory with --workdir.",
    "--workdir=nowhere": "nowhere holds no run",
    "--workdir=run --policy=worst": "unknown policy 'worst'; valid: last, best.",
    "--workdir=run --policy=best": "no policy at run/policy_best.npz",
    "--workdir=run --output=film.avi": "output=film.avi: name a file that ends with .html, .gif or .mp4.",
    "--workdir=run --steps=0": "steps=0: use at least 1.",
    "--workdir=run --fps=60": "fps=60: use 1 to 50.",
    "--workdir=run --width=99": "width=99: use an even number from 16 to 4096.",
    "--workdir=run": "probe/action has no bodies to look at; take a task of Brax or MuJoCo, or ",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_cannot_be_watched_is_one_sentence_and_nothing_written(flags, tmp_path):
    saved(tmp_path / "run", "probe/action")
    before = sorted(tmp_path.rglob("*"))
    done = launch_here("rollout.py", *flags.split(), cached(), cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and REFUSED[flags] in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("asked", ["", "egl", "glfw"])
def test_where_nothing_can_draw_a_film_is_refused_at_once_and_a_page_is_not(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", asked)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    run = saved(tmp_path / "run", "InvertedPendulum-v4", episode_length=12)
    done = launch_here("rollout.py", f"--workdir={run}", f"--output={tmp_path}/a.gif", cached())
    assert done.returncode == 2 and "apt install libosmesa6" in done.stderr and done.stdout == ""
    assert launch_here("rollout.py", f"--workdir={run}", cached()).returncode == 0


@drawing
def test_where_there_is_no_ffmpeg_an_mp4_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    run = saved(tmp_path / "run", "InvertedPendulum-v4", episode_length=12)
    done = launch_here("rollout.py", f"--workdir={run}", f"--output={tmp_path}/a.mp4", cached())
    assert done.returncode == 2 and "apt install ffmpeg" in done.stderr and done.stdout == ""
