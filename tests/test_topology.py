"""Topology events: the published one, and what no event may ever break."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx2_jax.networks import masking
from rlx2_jax.runtime import native
from rlx2_jax.sparse import drop_and_grow, topology

SIDES = st.sampled_from([1, 3, 8])
FRACTION = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))
# Few values, so that ties and exact zeros are the rule.
TIED = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
SCORE = st.one_of(TIED, st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 1e-30]))


@st.composite
def events(draw, leading=()):
    """Weight (zero off the mask), mask and grow score of one event."""
    shape = (*leading, draw(SIDES), draw(SIDES))
    mask = draw(hnp.arrays(bool, shape))
    weight = draw(hnp.arrays(np.float32, shape, elements=TIED, fill=st.just(0.25)))
    score = draw(hnp.arrays(np.float32, shape, elements=SCORE, fill=st.just(0.25)))
    return np.where(mask, weight, 0), mask, score


@jax.jit
def event(weight, mask, score, fraction):
    """One event on every matrix of a leaf with everything traced, the fraction too."""
    return masking.per_matrix(lambda w, m, s: drop_and_grow(w, m, s, fraction))(weight, mask, score)


TOP = [
    jax.jit(f)
    for f in (
        (topology.top_connections, topology._top_connections) if native.available() else (topology.top_connections,)
    )
]
event_per_fraction = jax.jit(jax.vmap(drop_and_grow, in_axes=(None, None, None, 0)))


def reference(weight, mask, score, fraction):
    """The event in plain NumPy: sort the links, keep the strongest, grow the most promising."""
    links = np.flatnonzero(mask)
    moved = int(np.float32(fraction) * np.float32(links.size))
    strongest = links[np.argsort(-np.abs(weight.ravel()[links]), kind="stable")]
    kept = strongest[: links.size - moved]
    others = np.setdiff1d(np.arange(mask.size), kept)
    promise = np.nan_to_num(np.abs(score.ravel()[others]), nan=0.0, posinf=np.inf)
    grown = others[np.argsort(-promise, kind="stable")][:moved]
    new_mask = np.zeros(mask.size, bool)
    new_mask[kept] = new_mask[grown] = True
    new_mask = new_mask.reshape(mask.shape)
    return np.where(new_mask & mask, weight, 0), new_mask


def test_drop_and_grow_repeats_the_published_event(vectors):
    data = np.load(vectors / "topology_event.npz")
    fraction = topology.drop_fraction_at(jnp.float32(data["zeta"]), jnp.int32(data["step"]), jnp.int32(data["tend"]))
    weight, mask = event(data["w"], data["mask"], data["grad"], fraction)
    np.testing.assert_array_equal(mask, data["newmask"])
    np.testing.assert_array_equal(weight, data["neww"])
    assert (data["mask"] != data["newmask"]).any()


@given(events(), FRACTION)
def test_drop_and_grow_agrees_with_plain_numpy(values, fraction):
    for found, expected in zip(event(*values, fraction), reference(*values, fraction), strict=True):
        np.testing.assert_array_equal(found, expected)


@given(events(), FRACTION)
def test_an_event_conserves_links_and_leaves_nothing_off_the_mask(values, fraction):
    weight, mask, _ = values
    new_weight, new_mask = map(np.asarray, event(*values, fraction))
    assert new_mask.sum() == mask.sum()
    assert not new_weight[~new_mask].any()
    assert not new_weight[new_mask & ~mask].any(), "a grown link starts at zero"
    stays = new_mask & mask
    np.testing.assert_array_equal(new_weight[stays], weight[stays])
    assert np.isfinite(new_weight).all()


@given(events(leading=(2,)), FRACTION)
def test_matrices_of_twin_critics_evolve_one_by_one_under_vmap(values, fraction):
    weight, mask = event(*values, fraction)
    for i in range(2):
        expected = reference(*(value[i] for value in values), fraction)
        np.testing.assert_array_equal(weight[i], expected[0])
        np.testing.assert_array_equal(mask[i], expected[1])


@given(events(), st.lists(FRACTION, min_size=3, max_size=3))
def test_a_batched_fraction_moves_each_runs_own_share(values, fractions):
    weights, new_masks = event_per_fraction(*values, np.float32(fractions))
    for i, fraction in enumerate(fractions):
        weight, mask = reference(*values, fraction)
        np.testing.assert_array_equal(weights[i], weight)
        np.testing.assert_array_equal(new_masks[i], mask)


@given(events())
def test_fraction_0_changes_nothing(values):
    weight, mask, _ = values
    for found, expected in zip(event(*values, 0.0), (weight, mask), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_link_dropped_and_regrown_in_one_event_keeps_its_value():
    weight = np.float32([[3.0, 0.1, 0.0]])
    mask = np.array([[True, True, False]])
    new_weight, new_mask = event(weight, mask, np.float32([[0.0, 9.0, 1.0]]), 0.5)
    np.testing.assert_array_equal(new_mask, mask)
    np.testing.assert_array_equal(new_weight, weight)


def test_an_active_link_of_weight_zero_ranks_above_every_absent_one():
    weight = np.zeros((1, 4), np.float32)
    mask = np.array([[False, False, True, True]])
    new_weight, new_mask = event(weight, mask, np.float32([[1.0, 2.0, 0.0, 0.0]]), 0.5)
    np.testing.assert_array_equal(new_mask, [[False, True, True, False]])
    assert not np.asarray(new_weight).any()


@given(events(), FRACTION)
def test_only_weights_on_the_mask_count(case, fraction):
    weight, mask, score = case
    stale = event(np.where(mask, weight, 7.0).astype(np.float32), mask, score, fraction)
    for ours, theirs in zip(stale, event(weight, mask, score, fraction), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nan_scores_grow_last():
    mask = np.array([[True, False, False]])
    grown = event(np.float32([[1.0, 0.0, 0.0]]), mask, np.float32([[0.0, np.nan, 0.1]]), 1.0)[1]
    np.testing.assert_array_equal(grown, [[False, False, True]])


@given(hnp.arrays(np.float32, st.tuples(SIDES, SIDES), elements=SCORE), st.integers(0, 80))
def test_top_connections_takes_exactly_the_largest_first_come_first_served(score, count):
    flat = score.ravel().tolist()
    order = sorted(range(len(flat)), key=lambda i: (np.isnan(flat[i]), -np.nan_to_num(flat[i], nan=0.0), i))
    for top_connections in TOP:
        assert sorted(np.flatnonzero(top_connections(score, count))) == sorted(order[:count])


@pytest.mark.parametrize("size", [20, 5000])
def test_any_byte_but_zero_marks_what_may_be_chosen(size):
    score = jax.random.normal(jax.random.PRNGKey(0), (size,))
    marks = np.arange(size) % 3 == 0
    bytes_ = jnp.asarray((marks * np.uint8(255)).view(bool))
    for count in (size // 2, size // 6):
        for top_connections in TOP:
            chosen = np.asarray(top_connections(score, count, bytes_))
            assert chosen.sum() == min(count, marks.sum()) and not chosen[~marks].any()


def moved(mask, fraction, target):
    """Masks after an event, by each implementation."""
    drop, grow = (jax.random.normal(jax.random.PRNGKey(k), mask.shape) for k in range(2))
    native_one = lambda *event: topology.exchange(mask, topology.Score(drop), topology.Score(grow), *event)
    portable = lambda *event: topology._exchange(mask, drop, grow, *event)
    ways = (native_one, portable) if native.available() else (native_one,)
    return [np.asarray(jax.jit(way)(fraction, target)) for way in ways]


def test_fewer_than_no_links_are_none():
    mask = jnp.arange(40).reshape(1, 40) < 10
    for number in (jnp.int32([-3]), jnp.int32([0])):
        for found in moved(mask, 0.3, number):
            assert not found.any()


def test_a_share_that_is_no_number_moves_nothing_and_one_above_all_moves_all():
    mask = jnp.arange(40).reshape(1, 40) < 10
    for fraction, same in ((np.nan, True), (-1.0, True), (np.inf, False), (2.0, False)):
        found = moved(mask, jnp.float32(fraction), None)[0]
        assert found.sum() == 10 and (found == mask).all() == same
        np.testing.assert_array_equal(found, moved(mask, jnp.float32(np.clip(np.nan_to_num(fraction), 0, 1)), None)[0])


def test_a_mask_has_no_gradient():
    weight = jnp.arange(1.0, 7).reshape(2, 3)
    assert jax.grad(lambda w: (w * topology.top_connections(w, 2)).sum())(weight).sum() == 2
    mask = weight > 3
    through = lambda w: jnp.where(drop_and_grow(w, mask, w, w.sum() / 100)[1], w, 0).sum()
    assert jax.jit(jax.grad(through))(weight).sum() == 3


def test_drop_fraction_anneals_from_zeta0_by_a_cosine_and_stops_at_the_end():
    end = 1000
    at = lambda call: float(topology.drop_fraction_at(jnp.float32(0.5), jnp.int32(call), jnp.int32(end)))
    for call in (0, 1, 250, 500, 999):
        assert np.isclose(at(call), 0.25 * (1 + np.cos(np.pi * call / end)), atol=1e-7)
    assert at(0) == 0.5
    assert at(999) > 0
    assert at(end) == at(end + 1) == 0
    assert at(2 * end) == 0, "the cosine would be back at its top"


def test_a_schedule_without_training_moves_nothing():
    assert topology.drop_fraction_at(jnp.float32(0.5), jnp.int32(0), jnp.int32(0)) == 0
