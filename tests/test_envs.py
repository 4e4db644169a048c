"""Environments: what one step of many tells, what resets leave behind, and Brax without its noise."""

import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import envs
from rlx2_jax.envs import brax
from rlx2_jax.errors import ConfigError
from tests.conftest import assert_finite

LIMIT = 5
KEY = jax.random.key(0)
ZERO = lambda observation: jnp.zeros((*observation.shape[:-1], 1))


def begun(name, limit=LIMIT):
    """Four environments at their first states."""
    # Spring compiles soonest; probes have no physics.
    vector = envs.VectorEnvironment(envs.make(name, "spring"), 4, limit, pool=8)
    return vector, jax.jit(vector.renew)(vector.init(), KEY)


def play(name, policy=ZERO, *, steps=12, limit=LIMIT):
    """What a policy meets: (state before, result, state after) of each step."""
    vector, state = begun(name, limit)
    step = jax.jit(lambda s, key: vector.step(s, policy(s.current.observation), key))
    history = []
    for step_key in jax.random.split(KEY, steps):
        after, result = step(state, step_key)
        history.append((state, result, after))
        state = after
    return history


def test_the_time_limit_truncates_and_does_not_terminate():
    for i, (_, result, after) in enumerate(play("probe/forever")):
        due = (i + 1) % LIMIT == 0
        assert (result.truncated == due).all()
        assert not result.terminated.any()
        np.testing.assert_array_equal(result.finished_return, LIMIT if due else 0)
        np.testing.assert_array_equal(after.steps, (i + 1) % LIMIT)
        np.testing.assert_array_equal(after.episode_return, (i + 1) % LIMIT)


def test_an_episode_that_ends_by_itself_at_the_limit_terminates_and_is_not_truncated():
    for i, (_, result, _) in enumerate(play("probe/chain", limit=2)):
        assert (result.terminated == (i % 2 == 1)).all()
        assert not result.truncated.any()


def test_the_final_observation_is_the_one_reached_and_the_next_a_fresh_one():
    for i, (before, result, after) in enumerate(play("probe/chain")):
        np.testing.assert_array_equal(before.current.observation, i % 2)
        np.testing.assert_array_equal(result.final_observation, 1)
        np.testing.assert_array_equal(after.current.observation, (i + 1) % 2)


def test_an_episode_that_goes_on_goes_on_from_the_observation_reached():
    history = play("probe/action", limit=3)
    for _, result, after in history:
        goes_on = ~np.asarray(result.terminated | result.truncated)
        np.testing.assert_array_equal(after.current.observation[goes_on], result.final_observation[goes_on])


def test_each_reset_draws_one_of_the_pool_of_fresh_initial_states():
    history = play("probe/action")
    seen = np.array([after.current.observation[:, 0] for _, _, after in history])
    pool = np.asarray(history[0][0].pool.observation[:, 0])
    assert np.unique(pool).size == 8
    assert np.isin(seen, pool).all()
    assert all(np.unique(one_environment).size > 2 for one_environment in seen.T)


def test_environments_begin_at_different_fresh_states():
    state = begun("probe/action")[1]
    assert np.unique(state.current.observation).size == 4
    np.testing.assert_array_equal(state.steps, 0)


def test_renew_draws_a_new_pool_and_leaves_the_episodes_alone():
    vector, state = begun("probe/action")
    state = state.replace(steps=jnp.arange(4), episode_return=jnp.ones(4))
    renewed = vector.renew(state, jax.random.key(1))
    assert not np.isin(renewed.pool.observation, state.pool.observation).any()
    chex.assert_trees_all_equal(renewed.replace(pool=None), state.replace(pool=None))


@pytest.mark.parametrize(("action", "clipped"), [(5.0, 1.0), (-5.0, -1.0), (0.25, 0.25)])
def test_actions_are_clipped_before_the_task_sees_them(action, clipped):
    for before, result, _ in play("probe/action", lambda s: ZERO(s) + action, steps=2):
        expected = 1 - (clipped - before.current.observation[:, 0] / 2) ** 2
        np.testing.assert_allclose(result.reward, expected, rtol=1e-6, atol=1e-6)


def test_a_non_finite_step_ends_its_own_episode_only_and_is_no_end_of_the_task():
    only_the_first = lambda s: ZERO(s).at[0].set(1.0)
    for i, (_, result, after) in enumerate(play("probe/fragile", only_the_first)):
        np.testing.assert_array_equal(result.finite, [False, True, True, True])
        assert not (result.terminated | result.truncated)[0]
        assert (result.truncated[1:] == ((i + 1) % LIMIT == 0)).all()
        np.testing.assert_array_equal(after.steps[1:], (i + 1) % LIMIT)
        assert after.steps[0] == 0
        assert_finite(after)


@pytest.mark.parametrize("action", [np.nan, np.inf, -np.inf])
def test_a_non_finite_action_is_not_finite_even_where_the_task_does_not_mind(action):
    for _, result, after in play("probe/constant", lambda s: ZERO(s) + action, steps=2):
        assert not (result.finite | result.terminated | result.truncated).any()
        assert_finite(after)


def test_a_first_observation_that_is_not_finite_is_no_step_to_learn_from():
    """Though the task goes on from it as if nothing were."""
    vector, state = begun("probe/forever")
    spoilt = state.current._replace(observation=state.current.observation.at[0].set(jnp.nan))
    after, result = vector.step(state.replace(current=spoilt), jnp.zeros((4, 1)), KEY)
    np.testing.assert_array_equal(result.finite, [False, True, True, True])
    assert_finite(after)


def test_an_episode_lost_to_a_non_finite_step_is_not_a_finished_one():
    """A finished return is one that the trainer counts as an episode, so that their quotient is a mean."""
    only_the_first = lambda s: ZERO(s).at[0].set(1.0)
    vector, state = begun("probe/fragile")
    for _ in range(3):
        state, _ = vector.step(state, ZERO(state.current.observation), KEY)
    _, result = vector.step(state, only_the_first(state.current.observation), KEY)
    assert not (result.terminated | result.truncated).any()
    assert not result.finished_return.any()


def test_an_unknown_name_lists_the_families():
    for name in ("swimmer", "probe/nothing", "hopper/probe", ""):
        with pytest.raises(ConfigError, match="unknown env") as refused:
            envs.make(name)
        assert all(
            f"{family.title} {family.tasks[0]}, {family.tasks[1]}" in str(refused.value) for family in envs.FAMILIES
        )


@pytest.mark.parametrize("task", ["constant", "observed", "chain", "action", "forever"])
def test_probes_pay_what_their_table_says(task):
    paid = {
        "constant": lambda s, a: 1,
        "observed": lambda s, a: s,
        "chain": lambda s, a: s,
        "action": lambda s, a: 1 - (a - s / 2) ** 2,
        "forever": lambda s, a: 1,
    }[task]
    for before, result, _ in play(f"probe/{task}", lambda s: ZERO(s) + 0.3, steps=6):
        np.testing.assert_allclose(result.reward, paid(before.current.observation[:, 0], 0.3), rtol=1e-6)


def test_observed_shows_both_of_its_observations():
    pool = play("probe/observed", steps=1)[0][0].pool.observation
    assert sorted(np.unique(pool)) == [-1, 1]


def test_brax_runs_behind_the_protocol_and_keeps_the_final_observation():
    history = play("inverted_pendulum", steps=3, limit=2)
    for i, (before, result, after) in enumerate(history):
        assert_finite((result.final_observation, result.reward, after.current.observation))
        assert result.finite.all()
        assert not result.terminated.any()
        assert (result.truncated == (i % 2 == 1)).all()
        np.testing.assert_array_equal(result.reward, 1)
        assert (result.final_observation != before.current.observation).any(-1).all()
    _, cut, reset = history[1]
    pool = np.asarray(reset.pool.observation)
    assert all((pool == o).all(-1).any() for o in np.asarray(reset.current.observation))
    assert (reset.current.observation != cut.final_observation).any(-1).all()


def test_brax_tasks_are_made_once_and_know_their_sizes():
    env = envs.make("inverted_pendulum", "spring")
    assert envs.make("inverted_pendulum", "spring") is env
    assert envs.make("inverted_pendulum", "generalized") is not env
    assert (env.observation_size, env.action_size) == (4, 1)


def test_brax_prints_nothing_and_writes_nothing(tmp_path):
    """halfcheetah is the one that talks: at import, at creation, and into MUJOCO_LOG.TXT."""
    command = (
        "import jax\n"
        "from rlx2_jax import envs\n"
        "for name in ('inverted_pendulum', 'halfcheetah'):\n"
        "    env = envs.make(name)\n"
        "    state = jax.eval_shape(env.reset, jax.random.key(0))\n"
        "    jax.eval_shape(env.step, state, jax.ShapeDtypeStruct((env.action_size,), 'float32'))\n"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(pathlib.Path(tmp_path).iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", brax.TASKS)
@pytest.mark.parametrize("backend", brax.BACKENDS)
def test_every_task_on_every_backend_is_traced_to_its_shapes(name, backend):
    env = envs.make(name, backend)
    state = jax.eval_shape(env.reset, jax.random.key(0))
    stepped = jax.eval_shape(env.step, state, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    for found in (state, stepped):
        assert found.observation.shape == (env.observation_size,)
        assert {found.observation.dtype.name, found.reward.dtype.name} == {"float32"}
    assert jax.tree.structure(stepped) == jax.tree.structure(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", brax.TASKS)
def test_every_task_takes_a_finite_step(name):
    """On the default backend: each compiles for up to 20 seconds. A hopper on every backend is in `test_rollout`."""
    env = envs.make(name, "generalized")
    state = jax.jit(env.reset)(jax.random.key(0))
    state = jax.jit(env.step)(state, jnp.zeros(env.action_size))
    assert state.observation.shape == (env.observation_size,)
    assert state.observation.dtype == jnp.float32
    assert_finite((state.observation, state.reward))
