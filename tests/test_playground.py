"""MuJoCo Playground's tasks: Playground's own, step by step, and fit for whole runs in one program."""

import functools
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import envs
from rlx2_jax.envs import playground
from rlx2_jax.errors import ConfigError
from tests.conftest import assert_finite

TASK = "CartpoleBalance"
KEY = jax.random.PRNGKey(0)
NUM, LIMIT = 4, 3


@pytest.fixture
def suite():
    """Playground's own collection of tasks; without it a test is skipped."""
    return pytest.importorskip("mujoco_playground").dm_control_suite


@functools.cache
def begun():
    """Environments past their first resets, and their compiled step."""
    vector = envs.VectorEnvironment(playground.load(TASK), NUM, LIMIT, pool=2 * NUM)
    return vector, jax.jit(vector.renew)(vector.init(), KEY), jax.jit(vector.step)


def kinds(state):
    """Structure, shapes and types of an abstract state, and whether types are weak."""
    return jax.tree.structure(state), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)]


def test_the_names_are_the_packages(suite):
    assert sorted(playground.TASKS) == sorted(suite.ALL_ENVS)


def test_a_task_is_playgrounds_step_by_step(suite):
    theirs = suite.load(TASK, config_overrides={"impl": "jax"})
    vector, state, step = begun()
    assert (vector.env.observation_size, vector.env.action_size) == (5, 1)
    expected = jax.jit(jax.vmap(theirs.reset))(jax.random.split(KEY, 2 * NUM))
    chex.assert_trees_all_close(state.pool.observation, expected.obs, rtol=1e-6)
    expected = jax.tree.map(lambda x: x[:NUM], expected)
    their_step = jax.jit(jax.vmap(theirs.step))
    for key in jax.random.split(KEY, LIMIT - 1):
        action = jax.random.uniform(key, (NUM, 1), minval=-1.0, maxval=1.0)
        expected = their_step(expected, action)
        state, result = step(state, action, key)
        chex.assert_trees_all_close(
            (result.final_observation, result.reward), (expected.obs, expected.reward), rtol=1e-5
        )
        assert not (result.terminated | result.truncated).any()


def test_an_episode_ends_by_time_alone_and_begins_anew_from_a_fresh_state(suite):
    _, state, step = begun()
    action = jnp.ones((NUM, 1))
    for _ in range(LIMIT):
        state, result = step(state, action, KEY)
    assert result.truncated.all() and not result.terminated.any()
    assert_finite((result, state.current.observation))
    pool = np.asarray(state.pool.observation)
    assert all((pool == o).all(-1).any() for o in np.asarray(state.current.observation))
    assert (state.current.observation != result.final_observation).any(-1).all()


def test_an_unstable_simulation_marks_its_own_transition(suite):
    _, state, step = begun()
    broken = [x.at[1].set(jnp.nan) if x.dtype == jnp.float32 else x for x in state.current.physics]
    state = state.replace(current=state.current._replace(physics=broken))
    state, result = step(state, jnp.zeros((NUM, 1)), KEY)
    np.testing.assert_array_equal(result.finite, np.arange(NUM) != 1)
    np.testing.assert_array_equal(jnp.isnan(result.reward), np.arange(NUM) == 1)
    assert not result.terminated.any()
    assert_finite(state)


@pytest.mark.parametrize(("task", "key"), [("CheetahRun", KEY), ("CartpoleSwingupSparse", jax.random.key(0))])
def test_a_step_keeps_a_states_kind_which_can_be_saved(task, key, suite):
    env = playground.load(task)
    start = jax.eval_shape(env.reset, key)
    following = jax.eval_shape(env.step, start, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    assert kinds(start) == kinds(following)
    assert all(x.size and not x.weak_type for x in jax.tree.leaves(start))


def test_it_prints_nothing_and_writes_nothing(suite, tmp_path):
    command = (
        "import jax\n"
        "from rlx2_jax import envs\n"
        f"env = envs.make('playground/{TASK}')\n"
        "jax.eval_shape(env.reset, jax.random.PRNGKey(0))\n"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(pathlib.Path(tmp_path).iterdir()) == []


def test_without_the_package_the_mend_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    playground.load.cache_clear()
    with pytest.raises(ConfigError) as refused:
        envs.make("playground/CheetahRun")
    assert str(refused.value) == (
        "playground/CheetahRun needs MuJoCo Playground, which is not installed: pip install 'rlx2-jax[playground]'."
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", playground.TASKS)
def test_every_task_has_the_limits_and_the_range_that_we_take_for_granted(task, suite):
    """Episodes of 1000 steps, actions that are controls, one flat observation, steps that keep a state's types."""
    config = suite.get_default_config(task)
    assert (config.episode_length, config.action_repeat) == (1000, 1)
    env = playground.load(task)
    np.testing.assert_array_equal(env._env.mj_model.actuator_ctrlrange, [[-1, 1]] * env.action_size)
    start = jax.eval_shape(env.reset, KEY)
    following = jax.eval_shape(env.step, start, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    assert start.observation.shape == (env.observation_size,) and start.observation.dtype == jnp.float32
    assert kinds(start) == kinds(following)
