"""Multi-step windows: the published targets, and a loop that says the same."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx2_jax.replay import targets

BATCH = 4

n_step_window = jax.jit(targets.n_step_window)


def loop(reward, terminated, truncated, gamma):
    """One window, step by step: return, bootstrap discount, last step."""
    total = 0.0
    for k, r in enumerate(reward):
        total += gamma**k * r
        if terminated[k]:
            return total, 0.0, k
        if truncated[k]:
            return total, gamma ** (k + 1), k
    return total, gamma ** len(reward), len(reward) - 1


@st.composite
def windows(draw):
    """Rewards, terminations, truncations of a batch of windows, and a discount."""
    shape = (BATCH, draw(st.integers(1, 5)))
    reward = draw(hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))
    ends = [draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 0, 1]))) for _ in "tt"]
    return reward, *ends, draw(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))


def test_n_step_window_gives_the_published_targets(vectors):
    data = np.load(vectors / "nstep_target.npz")
    total, discount, last = n_step_window(data["reward"], 1 - data["not_done"], data["reset"], float(data["discount"]))
    reached = data["next_state"][np.arange(len(last)), last]
    value = np.minimum(3 * reached[:, 0] + 1, 2 * reached[:, 1] - 0.5)
    np.testing.assert_allclose(total + discount * value, data["target"], rtol=2e-6, atol=2e-6)
    assert data["reset"].any()
    assert not data["not_done"].all()


@given(windows())
def test_n_step_window_agrees_with_a_loop(values):
    reward, terminated, truncated, gamma = values
    total, discount, last = n_step_window(*values)
    assert last.dtype == np.int32
    for i in range(BATCH):
        expected = loop(reward[i].astype(float), terminated[i], truncated[i], gamma)
        np.testing.assert_allclose((total[i], discount[i], last[i]), expected, rtol=1e-5, atol=1e-4)


@given(windows())
def test_what_follows_an_end_changes_nothing(values):
    reward, terminated, truncated, gamma = values
    before = n_step_window(*values)
    after_end = np.arange(reward.shape[1]) > np.asarray(before[2])[:, None]
    changed = n_step_window(
        np.where(after_end, 1e6, reward),
        np.where(after_end, 1 - terminated, terminated),
        np.where(after_end, 1 - truncated, truncated),
        gamma,
    )
    for a, b in zip(before, changed, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [jnp.ones, np.ones])
def test_whole_rewards_are_discounted_as_others_are(make):
    none = jnp.zeros((1, 3), bool)
    found = targets.n_step_window(make((1, 3), np.int32), none, none, 0.9)
    np.testing.assert_allclose(found[0], 2.71, rtol=1e-6)
    np.testing.assert_allclose(found[1], 0.729, rtol=1e-6)


def test_a_step_that_both_terminates_and_is_cut_bootstraps_nothing():
    one = np.ones((1, 1), np.float32)
    assert n_step_window(one, one, one, 0.9)[1] == 0


def test_windows_whose_parts_do_not_match_are_refused():
    with pytest.raises(AssertionError, match="different shapes"):
        targets.n_step_window(np.ones((2, 3)), np.zeros((2, 1)), np.zeros((2, 3)), 0.9)
