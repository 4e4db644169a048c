"""Masks: which links a network starts with, and the small operations on mask trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx2_jax import networks
from rlx2_jax.networks import masking
from tests.conftest import assert_zero_off_mask, links_of

SIZES = (5, 8, 8, 3)
KEY = jax.random.key(0)
CRITICS = networks.Net(networks.MLP(SIZES[1:]), twins=True).init(jax.random.key(1), SIZES[0])


@jax.jit
def first_masks(links, width, seed, params=CRITICS):
    """Masks by magnitude and at random, with traced numbers of links and a traced width."""
    key = jax.random.key(seed)
    return [masking.initial_masks(key, params, links, width, random=r) for r in (False, True)]


@given(
    st.tuples(*(st.integers(0, i * o) for i, o in networks.layer_shapes(SIZES))),
    st.integers(0, 99),
)
def test_each_matrix_of_each_critic_gets_exactly_its_links(links, seed):
    for mask in first_masks(links, 8, seed):
        for found, count in zip(links_of(mask), links, strict=True):
            np.testing.assert_array_equal(found, [count, count])


def test_magnitude_masks_hold_the_largest_initial_weights():
    links = (7, 11, 4)
    mask = first_masks(links, 8, 0)[0]
    for kernel, chosen in zip(masking.kernels(CRITICS), masking.kernels(mask), strict=True):
        for w, m in zip(np.abs(kernel), np.asarray(chosen), strict=True):
            assert w[m].min() > w[~m].max()


def test_random_masks_depend_on_the_key_and_not_on_the_weights():
    links = (7, 11, 4)
    one, other = (first_masks(links, 8, seed)[1] for seed in (0, 1))
    pairs = zip(masking.kernels(one), masking.kernels(other), strict=True)
    assert any((np.asarray(a) != b).any() for a, b in pairs)
    doubled = jax.tree.map(lambda x: -2 * x, CRITICS)
    again = first_masks(links, 8, 0, doubled)[1]
    for a, b in zip(masking.kernels(one), masking.kernels(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("random", [0, 1])
def test_a_narrow_network_is_a_block_of_each_matrix(random):
    width = 3
    live = (SIZES[0], width, width, SIZES[-1])
    mask = first_masks((5 * 3, 3 * 3, 3 * 3), width, 0)[random]
    for kernel, rows, cols in zip(masking.kernels(mask), live, live[1:], strict=False):
        block = np.zeros(kernel.shape, bool)
        block[:, :rows, :cols] = True
        np.testing.assert_array_equal(kernel, block)


def test_biases_are_always_dense():
    for mask in first_masks((1, 1, 1), 1, 0):
        assert all(np.asarray(layer["bias"]).all() for layer in mask.values())


def test_apply_zeroes_everything_off_the_mask_and_nothing_else():
    mask = first_masks((7, 11, 4), 8, 0)[1]
    poisoned = jax.tree.map(lambda p, m: jnp.where(m, p, jnp.nan), CRITICS, mask)
    masked = masking.apply(poisoned, mask)
    assert_zero_off_mask(masked, mask)
    jax.tree.map(lambda p, q, m: np.testing.assert_array_equal(p[m], q[m]), CRITICS, masked, mask)


def test_sparsity_counts_kernels_and_not_biases():
    mask = first_masks((10, 16, 6), 8, 0)[0]
    assert np.isclose(masking.sparsity(mask), 1 - 32 / (5 * 8 + 8 * 8 + 8 * 3))


def test_kernels_come_input_to_output_also_beyond_ten_layers():
    sizes = (3, *range(4, 15), 2)
    params = jax.eval_shape(networks.MLP(sizes[1:]).init, KEY, jnp.zeros((1, 3)))["params"]
    assert [k.shape for k in masking.kernels(params)] == list(networks.layer_shapes(sizes))


def test_per_matrix_maps_a_function_over_the_twins_only():
    twins = jnp.arange(24.0).reshape(2, 3, 4)
    total = masking.per_matrix(lambda m: m.sum())
    np.testing.assert_array_equal(total(twins), twins.sum((1, 2)))
    np.testing.assert_array_equal(total(twins[0]), twins[0].sum())
