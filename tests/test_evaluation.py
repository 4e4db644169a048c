"""Scores: returns of known policies."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import envs
from rlx2_jax.training.evaluation import episode_returns


def returns(name, policy, episode_length=7):
    """Returns of 16 episodes of a probe."""
    env = envs.make(f"probe/{name}")
    start = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 16))
    return episode_returns(env, policy, start, episode_length)


def always(action):
    """The policy that does the same everywhere."""
    return lambda observation: jnp.full((*observation.shape[:-1], 1), action)


@pytest.mark.parametrize(
    ("name", "policy", "expected"),
    [
        ("constant", always(0.0), 1),
        ("chain", always(0.0), 1),
        ("forever", always(0.0), 7),
        ("action", lambda s: s / 2, 1),
        ("fragile", always(0.5), 7),
    ],
)
def test_returns_of_known_policies(name, policy, expected):
    np.testing.assert_allclose(returns(name, policy), expected, rtol=1e-6)


def test_each_episode_starts_at_its_own_state():
    found = returns("observed", always(0.0))
    assert sorted(np.unique(found)) == [-1, 1]
    assert np.unique(returns("action", always(0.0))).size == 16


def test_actions_are_clipped():
    np.testing.assert_array_equal(returns("action", always(9.0)), returns("action", always(1.0)))


@pytest.mark.parametrize("name", ["forever", "constant", "action"])
def test_a_policy_that_is_not_a_number_scores_nan_even_where_the_task_pays(name):
    assert np.isnan(returns(name, always(jnp.nan))).all()


def test_a_policy_that_is_infinite_scores_nan_even_where_the_task_pays():
    assert np.isnan(returns("forever", always(jnp.inf))).all()


def test_an_episode_with_a_non_finite_reward_scores_nan():
    assert np.isnan(returns("fragile", always(1.0))).all()


@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf])
def test_an_infinite_reward_scores_nan_and_not_the_best_there_is(value):
    env = envs.make("probe/constant")
    paid = lambda state, action: env.step(state, action)._replace(reward=jnp.asarray(value))
    start = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4))
    task = types.SimpleNamespace(step=paid)
    assert np.isnan(episode_returns(task, always(0.0), start, 3)).all()


def test_one_broken_episode_does_not_spoil_the_others():
    policy = lambda s: jnp.where(s < 0, jnp.nan, s)
    found = returns("observed", policy)
    assert np.isnan(found).any()
    np.testing.assert_array_equal(found[~np.isnan(found)], 1)
