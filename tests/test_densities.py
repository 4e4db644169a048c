"""Densities: the published values, and what holds for any stack of matrices."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlx2_jax.networks import structure
from rlx2_jax.sparse.densities import erdos_renyi_densities as erdos_renyi

SHAPES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=6)
SPARSITY = st.floats(0, 0.99)


def solve(shapes, sparsity):
    """Densities, or an example to be skipped where some matrix would have no link."""
    try:
        return erdos_renyi(shapes, sparsity)
    except ValueError:
        assume(False)


def test_erdos_renyi_gives_the_published_sparsities(vectors):
    rows = json.loads((vectors / "erdos_renyi.json").read_text())
    assert rows
    for row in rows:
        obs, act, hidden = row["obs"], row["act"], row["hidden"]
        actor = [(obs, hidden), (hidden, hidden), (hidden, act)]
        critic = [(obs + act, hidden), (hidden, hidden), (hidden, 1)] * 2
        for shapes, published in ((actor, row["actor"]), (critic, row["critic"])):
            found = 1 - np.array(erdos_renyi(shapes, row["sparsity"]))
            np.testing.assert_allclose(found, published, rtol=0, atol=1e-7)


@given(SHAPES, SPARSITY)
def test_erdos_renyi_spends_the_whole_budget_with_densities_in_0_to_1(shapes, sparsity):
    found = solve(shapes, sparsity)
    size = [i * o for i, o in shapes]
    assert all(0 < d <= 1 for d in found)
    assert math.isclose(np.dot(found, size), (1 - sparsity) * sum(size), rel_tol=1e-9)


@given(SHAPES, SPARSITY)
def test_erdos_renyi_shares_one_epsilon_and_caps_only_matrices_that_would_pass_1(shapes, sparsity):
    found = solve(shapes, sparsity)
    epsilon = [d * i * o / (i + o) for d, (i, o) in zip(found, shapes, strict=True) if d < 1]
    assume(epsilon)
    np.testing.assert_allclose(epsilon, epsilon[0], rtol=1e-9)
    for d, (i, o) in zip(found, shapes, strict=True):
        if d == 1:
            assert epsilon[0] * (i + o) / (i * o) >= 1 - 1e-9


@given(SHAPES, SPARSITY)
def test_doubling_the_stack_changes_no_density(shapes, sparsity):
    found = solve(shapes, sparsity)
    np.testing.assert_allclose(erdos_renyi(shapes * 2, sparsity), found * 2, rtol=1e-9)


@given(SHAPES, SPARSITY)
def test_link_counts_are_whole_positive_and_off_by_rounding_only(shapes, sparsity):
    found = solve(shapes, sparsity)
    links = structure.whole_counts(shapes, found)
    for count, d, (i, o) in zip(links, found, shapes, strict=True):
        assert isinstance(count, int)
        assert 1 <= count <= i * o
        assert abs(count - d * i * o) <= 0.5


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, math.nan])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity):
    with pytest.raises(ValueError, match="use a number in"):
        erdos_renyi([(4, 4)], sparsity)
    with pytest.raises(ValueError, match="use a number in"):
        structure.tiny_width((4, 8, 1), sparsity)


def test_a_sparsity_that_leaves_a_matrix_without_a_link_is_refused():
    with pytest.raises(ValueError, match="without a link; use a lower one"):
        erdos_renyi([(256, 256), (256, 1)], 0.99999)


@pytest.mark.parametrize("shapes", [[], [(0, 4)], [(4, 4), (4, 0)]])
def test_a_stack_without_weights_is_refused(shapes):
    with pytest.raises(ValueError, match="need at least one matrix"):
        erdos_renyi(shapes, 0.5)


@given(
    st.integers(1, 40),
    st.lists(st.integers(2, 300), min_size=1, max_size=3),
    st.integers(1, 20),
    SPARSITY,
)
def test_tiny_width_brackets_the_sparse_networks_weights(inputs, hidden, outputs, sparsity):
    sizes = (inputs, *hidden, outputs)
    width = structure.tiny_width(sizes, sparsity)
    weights = lambda w: inputs * w + w * w * (len(hidden) - 1) + w * outputs
    budget = (1 - sparsity) * sum(a * b for a, b in itertools.pairwise(sizes))
    assert 1 <= width <= min(hidden)
    if width > 1:
        assert weights(width - 1) < budget
    if width < min(hidden):
        assert weights(width + 1) > budget
    assert sum(structure.tiny_links(sizes, width)) == weights(width)
