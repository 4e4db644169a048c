"""Packed perceptrons against masked ones: values, gradients, mappings, refusals, and the C++ under sanitizers."""

import functools
import importlib.util
import itertools
import math
import shutil
import subprocess
import sysconfig
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import mtrand

from rlx2_jax import kernels, networks
from rlx2_jax.errors import ConfigError
from rlx2_jax.kernels import packing, perceptron
from rlx2_jax.networks import forms, masking
from rlx2_jax.replay import buffer
from rlx2_jax.runtime import native
from tests.conftest import ROOT

NATIVE = native.instruction_sets()
CALL_ERRORS = (ValueError, jax.errors.JaxRuntimeError)
"""An error of a native call: the first where JAX runs the call at once, the second where it runs in the background."""

needs_native = pytest.mark.skipif(not NATIVE, reason="the native kernels were not built")


@pytest.mark.skipif(
    shutil.which("c++") is None or not (Path(sysconfig.get_path("include")) / "Python.h").exists(),
    reason="nothing to build the native kernels with",
)
def test_where_there_is_a_compiler_the_native_kernels_are_there():
    """Their installation is optional, so a mistake in them would go unseen, and their tests be skipped."""
    assert NATIVE


def random_network(seed, sizes, density, twins=False):
    """Masked parameters, boolean masks and link counts of a perceptron with random links, perhaps none in a row."""
    rng = np.random.default_rng(seed)
    lead = (2,) if twins else ()
    params, mask, counts = {}, {}, []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        count = int(density * inputs * outputs)
        order = rng.random((*lead, inputs * outputs)).argsort(-1).argsort(-1)
        chosen = (order < count).reshape(*lead, inputs, outputs)
        kernel = rng.normal(size=chosen.shape) * chosen / np.sqrt(max(1, density * inputs))
        params[f"Dense_{i}"] = {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.asarray(rng.normal(size=(*lead, outputs)), jnp.float32),
        }
        mask[f"Dense_{i}"] = {"kernel": jnp.asarray(chosen), "bias": jnp.ones((*lead, outputs), bool)}
        counts.append(count)
    return params, mask, tuple(counts)


def value_and_gradients(function, *arguments):
    """Output of `function`, and the gradients of a curved function of it."""
    loss = lambda *arguments: jnp.sum(jnp.sin(function(*arguments)))
    return function(*arguments), jax.grad(loss, tuple(range(len(arguments))))(*arguments)


networks_of_any_shape = st.tuples(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.02, 0.1, 0.4, 1.0]),
)


pack, unpack = jax.jit(forms.pack), jax.jit(forms.unpack)


@functools.partial(jax.jit, static_argnums=(1, 2))
def links_of(mask, capacities, spare):
    """As one program: many sizes are tried, and step by step each step would be compiled for each of them."""
    return forms.links_of(mask, capacities, spare=spare)


def with_room(counts, spare):
    """Capacities with spare places, of each matrix another number, if there are to be any."""
    return tuple(count + spare * (i + 1) for i, count in enumerate(counts))


@given(networks_of_any_shape, st.booleans(), st.sampled_from([0, 1, 7]))
@settings(max_examples=10)
def test_packing_is_exact_and_has_one_form(network, twins, spare):
    params, mask, counts = random_network(*network, twins)
    links = links_of(mask, with_room(counts, spare), spare > 0)
    vector = pack(params, links)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(forms.masks_of)(links), masking.kernels(mask))
    jax.tree.map(np.testing.assert_array_equal, unpack(vector, links), params)
    assert np.count_nonzero(vector) <= sum(np.count_nonzero(x) for x in jax.tree.leaves(params))
    for link, count in zip(links, counts, strict=True):
        for one in range(2 if twins else 1):
            starts, inputs, columns, outputs, order = (
                np.asarray(x[one] if twins else x) for x in jax.tree.leaves(link)
            )
            assert starts[0] == columns[0] == 0 and starts[-1] == columns[-1] == count
            assert (inputs[count:] == link.shape[0]).all() and (outputs[count:] == link.shape[1]).all()
            np.testing.assert_array_equal(order[count:], np.arange(count, link.capacity))
            inputs, outputs, order = (x[:count] for x in (inputs, outputs, order))
            by_output = [inputs[a:b] for a, b in itertools.pairwise(starts)]
            assert all((np.diff(row) > 0).all() for row in by_output)
            outputs_by_output = np.repeat(np.arange(link.shape[1]), np.diff(starts))
            np.testing.assert_array_equal(outputs_by_output[order], outputs)
            np.testing.assert_array_equal(inputs[order], np.repeat(np.arange(link.shape[0]), np.diff(columns)))


@needs_native
@given(networks_of_any_shape, st.sampled_from([1, 2, 63, 64, 65, 200]))
@settings(max_examples=10)
def test_all_implementations_agree_with_masked_in_value_and_gradients(network, batch):
    params, mask, counts = random_network(*network)
    links = links_of(mask, counts, False)
    x = jnp.asarray(np.random.default_rng(network[0]).normal(size=(batch, network[1][0])), jnp.float32)
    net = networks.MLP(tuple(network[1][1:]))

    @jax.jit
    def all_of_them(params, x):
        expected, (of_params, of_x) = value_and_gradients(lambda p, x: net.apply({"params": p}, x), params, x)
        vector = forms.pack(params, links)
        run = lambda name: lambda v, x: perceptron(v, links, x, implementation=name)
        return (expected, (forms.pack(of_params, links), of_x)), {
            name: value_and_gradients(run(name), vector, x) for name in ("portable", *NATIVE)
        }

    expected, found = all_of_them(params, x)
    for result in found.values():
        for ours, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            scale = 1e-5 * (1 + np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=scale)


@needs_native
@given(networks_of_any_shape, st.integers(1, 9), st.sampled_from([0, 1, 65, 200]))
@settings(max_examples=5)
def test_spare_places_change_nothing(network, spare, batch):
    """Of value and gradients, to the bit; and they are zero in the gradient, and after steps of Adam."""
    params, mask, counts = random_network(*network)
    x = jnp.asarray(np.random.default_rng(network[0]).normal(size=(batch, network[1][0])), jnp.float32)

    @functools.partial(jax.jit, static_argnames="name")
    def trained(vector, links, name):
        run = lambda vector, x: perceptron(vector, links, x, implementation=name)
        y, (gradient, of_x) = value_and_gradients(run, vector, x)
        state = kernels.ADAM.init(vector)
        for _ in range(2):
            vector, state = kernels.adam_step(vector, gradient, state, 0.1)
        return y, of_x, [gradient, vector, state.mu, state.nu]

    for name in ("portable", *NATIVE):
        results = []
        for capacities in (counts, with_room(counts, spare)):
            links = links_of(mask, capacities, capacities != counts)
            y, of_x, vectors = trained(pack(params, links), links, name)
            trees = [unpack(vector, links) for vector in vectors]
            results.append((y, of_x, trees))
            for vector, tree in zip(vectors, trees, strict=True):
                np.testing.assert_array_equal(pack(tree, links), vector)
        for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5 * (name == "portable"), atol=1e-6 * (name == "portable"))


@needs_native
@pytest.mark.parametrize("twins_share_input", [True, False])
def test_mapping_is_a_loop(twins_share_input):
    params, mask, counts = random_network(3, (5, 24, 3), 0.3, twins=True)
    links = forms.links_of(mask, counts)
    vector = forms.pack(params, links)
    # Two seeds of twin networks, as in a sweep.
    vectors = jnp.stack([vector, 2 * vector])
    rng = np.random.default_rng(0)
    shape = (2, 30, 5) if twins_share_input else (2, 2, 30, 5)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    one = lambda v, k, x: value_and_gradients(lambda v, x: perceptron(v, k, x), v, x)
    twins = jax.vmap(one, in_axes=(0, 0, None if twins_share_input else 0))
    mapped = jax.jit(jax.vmap(twins, in_axes=(0, None, 0)))(vectors, links, x)
    for seed in range(2):
        for twin in range(2):
            pick = jax.tree.map(lambda leaf, twin=twin: leaf[twin], links)
            inputs = x[seed] if twins_share_input else x[seed, twin]
            alone = one(vectors[seed, twin], pick, inputs)
            for ours, theirs in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone), strict=True):
                np.testing.assert_array_equal(ours[seed, twin], theirs)


@needs_native
@pytest.mark.parametrize("wanted", [(1,), (2,), (0, 1, 2)])
def test_several_inputs_are_their_concatenation(wanted):
    params, mask, counts = random_network(5, (9, 24, 3), 0.3)
    links = forms.links_of(mask, counts)
    vector = forms.pack(params, links)
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.normal(size=(70, size)), jnp.float32) for size in (3, 6))
    together = lambda v, a, b: perceptron(v, links, jnp.concatenate([a, b], -1))
    apart = lambda v, a, b: perceptron(v, links, a, b)
    np.testing.assert_array_equal(together(vector, first, second), apart(vector, first, second))
    gradients = [jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), wanted)(vector, first, second) for f in (together, apart)]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="not features of the same samples"):
        apart(vector, first[1:], second)


@needs_native
def test_only_the_gradients_asked_for_are_computed():
    params, mask, counts = random_network(1, (5, 24, 3), 0.3)
    links = forms.links_of(mask, counts)
    vector, x = forms.pack(params, links), jnp.ones((4, 5))

    def results_of_backward(gradient_of):
        jaxpr = jax.make_jaxpr(jax.grad(lambda v, x: perceptron(v, links, x).sum(), gradient_of))(vector, x)
        return next(len(e.outvars) for e in jaxpr.eqns if e.params.get("target_name") == native.BACKWARD)

    # The parameters' gradient comes with scratch.
    assert [results_of_backward(g) for g in (0, 1, (0, 1))] == [2, 1, 3]


@needs_native
def test_nan_passes_through_as_in_a_dense_network():
    params, mask, counts = random_network(1, (3, 16, 2), 1.0)
    links = forms.links_of(mask, counts)
    x = jnp.ones((3, 3)).at[1, 0].set(jnp.nan)
    y = perceptron(forms.pack(params, links), links, x)
    np.testing.assert_array_equal(np.isnan(y), [[False] * 2, [True] * 2, [False] * 2])


@needs_native
def test_leading_axes_of_the_input_are_samples():
    params, mask, counts = random_network(1, (3, 16, 2), 0.5)
    links = forms.links_of(mask, counts)
    vector = forms.pack(params, links)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    flat = perceptron(vector, links, x.reshape(24, 3))
    np.testing.assert_array_equal(perceptron(vector, links, x), flat.reshape(4, 6, 2))
    np.testing.assert_array_equal(perceptron(vector, links, x[0, 0]), flat[0])


@needs_native
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_of_no_samples_there_is_no_output_and_no_gradient(shape):
    params, mask, counts = random_network(1, (3, 16, 2), 0.5)
    links = forms.links_of(mask, counts)
    vector, x = forms.pack(params, links), jnp.zeros(shape)
    for name in ("portable", "native"):
        run = lambda v, x, name=name: perceptron(v, links, x, implementation=name)
        y, (of_vector, of_x) = jax.jit(lambda v, x, run=run: value_and_gradients(run, v, x))(vector, x)
        assert (y.shape, of_x.shape) == ((*shape[:-1], 2), shape)
        np.testing.assert_array_equal(of_vector, jnp.zeros_like(vector))
    mapped = jax.vmap(lambda x: perceptron(vector, links, x, implementation="native"))(x)
    assert mapped.shape == (*shape[:-1], 2)


@needs_native
def test_no_rows_no_windows_and_no_parameters_are_none():
    nothing = lambda *shape: jnp.zeros(shape, jnp.int32)
    assert kernels.take_rows(jnp.zeros((0, 3, 2)), nothing(2, 0)).shape == (2, 0, 3, 2)
    assert kernels.take_rows(jnp.zeros((5, 0)), nothing(4)).shape == (4, 0)
    ring = jnp.zeros((4, 2, 0)), jnp.zeros((4, 2, 1)), jnp.zeros((4, 2)), nothing(4, 2), jnp.zeros((1, 2, 0))
    for take in (kernels.take_windows, buffer.take_windows):
        for shape in ((0,), (2, 0), (3,)):
            found = take(ring, nothing(*shape), nothing(*shape), 1, 3, 0.9)
            assert found.observation.shape == (*shape, 0)
    params = jnp.zeros((2, 0))
    moved, _ = kernels.adam_step(params, params, kernels.ADAM.init(params), 0.1)
    assert moved.shape == params.shape


@needs_native
def test_inputs_may_be_many_and_layers_as_many_as_the_kernels_take():
    params, mask, counts = random_network(1, (5, 16, 2), 0.5)
    links = forms.links_of(mask, counts)
    vector, x = forms.pack(params, links), jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    apart = perceptron(vector, links, *jnp.split(x, 5, -1), implementation="native")
    np.testing.assert_array_equal(apart, perceptron(vector, links, x, implementation="native"))
    params, mask, counts = random_network(1, (2,) * 18, 1.0)
    links = forms.links_of(mask, counts)
    vector, x = forms.pack(params, links), jnp.ones((4, 2))
    assert perceptron(vector, links, x, implementation="portable").shape == (4, 2)
    with pytest.raises(ValueError, match="a perceptron of 17 layers; packed kernels take 16"):
        perceptron(vector, links, x, implementation="native")


def test_wrong_arguments_are_refused_when_tracing():
    params, mask, counts = random_network(1, (3, 16, 2), 0.5)
    links = forms.links_of(mask, counts)
    vector, x = forms.pack(params, links), jnp.ones((4, 3))
    with pytest.raises(ValueError, match="layer 0 takes 3 inputs, but is given 5"):
        perceptron(vector, links, jnp.ones((4, 5)))
    with pytest.raises(ValueError, match=r"parameters of shape \(57,\)"):
        perceptron(vector[:-1], links, x)
    with pytest.raises(ValueError, match="float32 values, not float16"):
        perceptron(vector.astype(jnp.float16), links, x)
    with pytest.raises(ValueError, match="int32 indices, not uint8"):
        perceptron(vector, jax.tree.map(lambda i: i.astype(jnp.uint8), links), x)
    with pytest.raises(ValueError, match="at least one layer"):
        perceptron(vector, (), x)


@needs_native
@pytest.mark.parametrize("field", ["row_start", "inputs", "column_start", "outputs", "order"])
@pytest.mark.parametrize("value", [-1, 10_000, -(2**31), 2**31 - 1])
def test_indices_out_of_range_are_errors_of_the_call(field, value):
    params, mask, counts = random_network(1, (3, 16, 2), 0.5)
    links = forms.links_of(mask, counts)
    vector = forms.pack(params, links)
    bad = links[0].replace(**{field: getattr(links[0], field).at[2].set(value)})
    with pytest.raises(CALL_ERRORS, match=r"rlx2_jax kernels: .*(out of range|run from 0)"):
        jax.block_until_ready(jax.grad(lambda v: perceptron(v, (bad, links[1]), jnp.ones((4, 3))).sum())(vector))


@needs_native
def test_operands_that_do_not_fit_are_errors_of_the_call():
    """Below the door that checks: the custom call itself."""
    params, mask, counts = random_network(1, (3, 16, 2), 0.5)
    links = forms.links_of(mask, counts)
    vector, x = forms.pack(params, links), jnp.ones((4, 3))
    indices = [index for link in links for index in (link.row_start, link.inputs)]
    result = jax.ShapeDtypeStruct((4, 2), jnp.float32)

    def call(*operands, result=result, **attributes):
        attributes = {"instructions": "auto", "normalised": False, "arrays": np.int64(1), **attributes}
        return jax.block_until_ready(jax.ffi.ffi_call(native.FORWARD, result)(*operands, **attributes))

    np.testing.assert_allclose(call(x, vector, *indices), perceptron(vector, links, x))
    for message, arguments, options in (
        ("wrong number", (x, vector, *indices[:-1]), {}),
        ("parameters have the wrong size", (x, vector[1:], *indices), {}),
        ("element type", (x.astype(jnp.int32), vector, *indices), {}),
        ("element type", (x, vector, *indices[:-1], indices[-1].astype(jnp.float32)), {}),
        ("does not fit", (x[None, :, :], vector, *indices), {"result": jax.ShapeDtypeStruct((2, 4, 2), jnp.float32)}),
        ("y has a shape", (x, vector, *indices), {"result": jax.ShapeDtypeStruct((5, 2), jnp.float32)}),
        ("too few axes", (jnp.ones(3), vector, *indices), {}),
        ("no instruction set", (x, vector, *indices), {"instructions": "abacus"}),
    ):
        with pytest.raises(CALL_ERRORS, match=message):
            call(*arguments, **options)


@needs_native
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), st.sampled_from([(0,), (1,), (4, 50)]))
@settings(max_examples=25)
def test_windows_taken_are_those_of_the_portable_form(seed, n_step, n_max, shape):
    rng = np.random.default_rng(seed)
    rows, columns, slots = 7, 3, 2
    floats = lambda *sizes: jnp.asarray(rng.normal(size=sizes), jnp.float32)
    integers = lambda low, high, *sizes: jnp.asarray(rng.integers(low, high, sizes), jnp.int32)
    ring = (
        floats(rows, columns, 4),
        floats(rows, columns, 2),
        floats(rows, columns),
        integers(-2, slots + 1, rows, columns),
        floats(slots, columns, 4),
    )
    row, column = integers(0, 50, *shape), integers(0, columns, *shape)
    both = [
        jax.jit(take, static_argnames="n_max")(ring, row, column, n_step, n_max=n_max, gamma=0.9)
        for take in (kernels.take_windows, buffer.take_windows)
    ]
    for name, ours, theirs in zip(kernels.Windows._fields, *both, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6, err_msg=name)


@needs_native
@pytest.mark.parametrize("what", ["row", "column", "slot"])
def test_windows_outside_the_ring_are_errors(what):
    ring = [
        jnp.zeros((4, 2, 3)),
        jnp.zeros((4, 2, 1)),
        jnp.zeros((4, 2)),
        jnp.zeros((4, 2), jnp.int32),
        jnp.zeros((1, 2, 3)),
    ]
    row, column = jnp.zeros(5, jnp.int32), jnp.zeros(5, jnp.int32)
    if what == "row":
        row = row.at[3].set(-1)
    elif what == "column":
        column = column.at[3].set(2)
    else:
        ring[3] = ring[3].at[0, 0].set(2)
    with pytest.raises(CALL_ERRORS, match="out of range"):
        jax.block_until_ready(kernels.take_windows(ring, row, column, 1, 3, 0.9))


def moments(gradient, state):
    return kernels.adam_step(gradient, gradient, state, 0.1)[1][1:]


def optax_moments(gradient, state):
    return kernels.ADAM.update(gradient, state)[1][1:]


@needs_native
def test_adam_is_optax_adam():
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=(2, 9000)), jnp.float32)
    state = kernels.ADAM.init(params)
    expected_params, expected_state = params, state
    step = jax.jit(kernels.adam_step)
    for _ in range(5):
        gradient = jnp.asarray(rng.normal(size=params.shape), jnp.float32)
        params, state = step(params, gradient, state, 1e-2)
        direction, expected_state = kernels.ADAM.update(gradient, expected_state)
        expected_params = expected_params - 1e-2 * direction
    for ours, theirs in zip(
        jax.tree.leaves((params, state)), jax.tree.leaves((expected_params, expected_state)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    # Its decays are those of optax, to the last place: moments of one gradient are products alone.
    for ours, theirs in zip(
        *(step(gradient, kernels.ADAM.init(params)) for step in (moments, optax_moments)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-7)
    # Two runs of a sweep with step sizes of their own, whose networks are alike.
    mapped, _ = jax.vmap(kernels.adam_step, in_axes=(None, 0, None, 0))(
        params, jnp.stack([gradient, -gradient]), state, jnp.asarray([0.1, 0.2])
    )
    for run, (sign, size) in enumerate(((1, 0.1), (-1, 0.2))):
        alone = kernels.adam_step(params, sign * gradient, state, size)[0]
        np.testing.assert_array_equal(mapped[run], alone)


@needs_native
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    st.sampled_from([(0,), (1,), (5, 7), (40, 3, 30)]),
    st.sampled_from([jnp.float32, jnp.int32]),
)
@settings(max_examples=20)
def test_taking_rows_is_indexing(seed, tail, shape, dtype):
    rng = np.random.default_rng(seed)
    table = jnp.asarray(rng.integers(-9, 9, (50, *tail)), dtype)
    index = jnp.asarray(rng.integers(0, 50, shape), jnp.int32)
    np.testing.assert_array_equal(jax.jit(kernels.take_rows)(table, index), table[index])
    pairs = jnp.stack([table, 2 * table]), jnp.stack([index, 49 - index])
    expected = jnp.stack([t[i] for t, i in zip(*pairs, strict=True)])
    np.testing.assert_array_equal(jax.vmap(kernels.take_rows)(*pairs), expected)


@needs_native
@pytest.mark.parametrize("bad", [-1, 50, 2**31 - 1, -(2**31)])
def test_rows_outside_the_table_are_errors(bad):
    with pytest.raises(CALL_ERRORS, match="take rows: an index is out of range"):
        jax.block_until_ready(kernels.take_rows(jnp.zeros((50, 3)), jnp.asarray([0, bad, 1])))


@needs_native
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (2, 30, 11)])
def test_the_portable_search_finds_the_same_links(shape):
    rng = np.random.default_rng(0)
    size = math.prod(shape[-2:])
    for most, spare in itertools.product((0, 1, size // 3, size), (0, 2)):
        # Where there is room, each matrix has another number of links.
        counts = [max(0, most - bool(spare) * i) for i in range(math.prod(shape[:-2]))]
        mask = np.stack([rng.permutation(size) < count for count in counts]).reshape(shape)
        one = [
            functools.partial(f, capacity=most + spare, spare=spare > 0)
            for f in (packing._from_mask, packing.from_mask)
        ]
        found = [jax.jit(masking.per_matrix(f))(mask) for f in one]
        jax.tree.map(np.testing.assert_array_equal, *found)
        np.testing.assert_array_equal(np.ravel(found[0].row_start[..., -1]), counts)


@needs_native
@pytest.mark.parametrize(("capacity", "spare"), [(11, False), (13, False), (11, True)])
def test_a_mask_is_packed_only_where_its_links_fit(capacity, spare):
    with pytest.raises(CALL_ERRORS, match="index links: a mask has another number of links than its packed form"):
        jax.block_until_ready(packing.from_mask(jnp.ones((3, 4), bool), capacity, spare=spare))


@needs_native
def test_fast_keys_make_the_keys_of_plain_ones():
    keys = jax.random.split(jax.random.PRNGKey(7), 3)
    makes = (
        lambda key: jax.random.split(key, 5),
        lambda key: jax.random.split(key, (2, 3)),
        lambda key: jax.random.fold_in(key, 2**32 - 1),
        lambda key: jax.random.fold_in(jax.random.split(key)[1], 0),
    )
    for make in makes:
        plain = lambda key, make=make: jax.random.key_data(make(key))
        fast = lambda key, plain=plain: plain(kernels.fast_key(key))
        np.testing.assert_array_equal(jax.jit(fast)(keys[0]), plain(keys[0]))
        np.testing.assert_array_equal(jax.vmap(fast)(keys), jax.vmap(plain)(keys))


def test_a_key_comes_back_in_the_form_of_another_one():
    for key in (jax.random.PRNGKey(3), jax.random.key(3)):
        back = kernels.key_like(kernels.fast_key(key), key)
        assert back.dtype == key.dtype and (back == key).all()


@needs_native
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (20, 256, 3), (70_001,)])
def test_fast_keys_make_the_random_numbers_of_plain_ones(shape):
    draws = (
        lambda key: jax.random.bits(key, shape),
        lambda key: jax.random.normal(key, shape),
        lambda key: jax.random.uniform(key, shape, minval=-1.0),
        lambda key: jax.random.randint(key, shape, 0, jnp.int32(12345)),
        lambda key: jax.random.bits(key, shape, jnp.uint8),
    )
    keys = jax.random.split(jax.random.PRNGKey(7), 3)
    for draw in draws:
        fast = lambda key, draw=draw: draw(kernels.fast_key(key))
        np.testing.assert_array_equal(jax.jit(fast)(keys[0]), draw(keys[0]))
        np.testing.assert_array_equal(jax.vmap(fast)(keys), jax.vmap(draw)(keys))
        np.testing.assert_array_equal(fast(jax.random.wrap_key_data(keys[0])), draw(keys[0]))
    other = jax.random.key(0, impl="rbg")
    assert kernels.fast_key(other) is other


def test_room_for_links_is_a_shape():
    _, mask, counts = random_network(1, (3, 16, 2), 0.5)
    links = forms.links_of(mask, counts)
    assert [(link.capacity, link.shape) for link in links] == [(24, (3, 16)), (16, (16, 2))]
    assert packing.to_mask(links[0]).sum() == 24


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    ("sanitizer", "define"), [("address,undefined", ""), ("thread", ""), ("address,undefined", "-DRLX2_AS_GCC_11")]
)
def test_the_kernels_are_clean_under_sanitizers(tmp_path, sanitizer, define):
    sources = ROOT / "rlx2_jax" / "kernels" / "cpp"
    program = tmp_path / "harness"
    options = ["-std=c++17", "-O1", "-g", "-ffp-contract=fast", "-Wno-psabi", "-pthread"]
    files = [ROOT / "tests" / "native" / "harness.cc"]
    files += [sources / name for name in ("data.cc", "perceptron.cc", "topology.cc")]
    options += [define] if define else []
    build = ["g++", *options, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{sources}", *files]
    subprocess.run([*build, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_call_goes_on_where_the_system_gives_no_more_threads(tmp_path):
    program, source = tmp_path / "threads", ROOT / "tests" / "native" / "threads.cc"
    sources = ROOT / "rlx2_jax" / "kernels" / "cpp"
    subprocess.run(["g++", "-std=c++17", "-O1", "-pthread", f"-I{sources}", source, "-o", program, "-ldl"], check=True)
    assert subprocess.run([program], capture_output=True, text=True, timeout=60).stdout == "1 2\n"


def test_samples_that_fill_up_a_tile_are_in_no_gradient():
    """Of zeros the second layer would be infinite, which it is for no sample."""
    links = (packing.from_mask(jnp.ones((1, 1), bool), 1),) * 3
    vector = jnp.float32([-1e20, 1e20, 1e20, 0, 1, 0])
    for name in ("portable", *NATIVE):
        for samples in (63, 64, 65):
            loss = lambda v, x, name=name: perceptron(v, links, x, implementation=name).sum()
            np.testing.assert_array_equal(jax.grad(loss)(vector, jnp.ones((samples, 1))), [0, 0, 0, 0, 0, samples])


@pytest.mark.parametrize("what", ["no library", "a library without our calls"])
def test_a_library_that_does_not_fit_is_refused_with_the_mend(what, tmp_path, monkeypatch):
    path = tmp_path / "_native.so" if what == "no library" else mtrand.__file__
    (tmp_path / "_native.so").write_text("nothing")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin=str(path)))
    with pytest.raises(ConfigError, match=r"^the native kernels do not fit \(.*\); reinstall rlx2-jax\.$"):
        native.load.__wrapped__()
