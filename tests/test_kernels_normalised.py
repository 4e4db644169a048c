"""Packed perceptrons with layer normalisation: native, portable and linen's agree; mappings, edges and refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx2_jax import kernels
from rlx2_jax.kernels import packing
from rlx2_jax.runtime import native
from tests.test_kernels import CALL_ERRORS, NATIVE, links_of, needs_native, random_network, value_and_gradients


class LinenMLP(nn.Module):
    """What packed networks are held to."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.features[:-1]:
            x = nn.relu(nn.LayerNorm(epsilon=1e-6)(nn.Dense(width)(x)))
        return nn.Dense(self.features[-1])(x)


def random_normalised(seed, sizes, density, twins=False, spare=0):
    """Linen's parameters of a network with random links, scales and offsets, and the links."""
    params, mask, counts = random_network(seed, sizes, density, twins)
    rng = np.random.default_rng(seed + 1)
    for i, size in enumerate(sizes[1:-1]):
        scale, offset = rng.normal(size=(2, *((2,) if twins else ()), size))
        params[f"LayerNorm_{i}"] = {
            "scale": jnp.asarray(1 + scale / 2, jnp.float32),
            "bias": jnp.asarray(offset, jnp.float32),
        }
    return params, links_of(mask, tuple(count + spare for count in counts), spare > 0)


@jax.jit
def vector_of(params, links):
    """Linen's parameters, or their gradient, in the layout of a vector."""
    parts = []
    for i, link in enumerate(links):
        parts += [packing.pack(params[f"Dense_{i}"]["kernel"], link), params[f"Dense_{i}"]["bias"]]
        if norm := params.get(f"LayerNorm_{i}"):
            parts += [norm["scale"], norm["bias"]]
    return jnp.concatenate(parts)


def perceptron(vector, links, *inputs, implementation="auto"):
    return kernels.perceptron(vector, links, *inputs, normalised=True, implementation=implementation)


def samples(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def assert_close(found, expected):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(theirs).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * (1 + np.abs(theirs).max(initial=0)))


def assert_native_is_portable(vector, links, *inputs):
    """In value and all gradients, on every instruction set."""
    run = lambda name: lambda v, *x: perceptron(v, links, *x, implementation=name)
    results = jax.jit(lambda *given: [value_and_gradients(run(name), *given) for name in ("portable", *NATIVE)])(
        vector, *inputs
    )
    for result in results[1:]:
        assert_close(result, results[0])


@needs_native
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.02, 0.1, 0.4, 1.0]),
    st.sampled_from([1, 2, 63, 64, 65, 200]),
    st.sampled_from([0, 5]),
)
@settings(max_examples=6)
def test_all_implementations_agree_in_value_and_gradients(seed, sizes, density, batch, spare):
    params, links = random_normalised(seed, sizes, density, spare=spare)
    assert_native_is_portable(vector_of(params, links), links, samples(batch, sizes[0]))


@pytest.mark.parametrize("implementation", ["portable", "auto"])
@pytest.mark.parametrize(
    ("sizes", "density", "spread"),
    [((7, 32, 48, 3), 1.0, 1.0), ((7, 32, 48, 3), 0.2, 1.0), ((5, 40, 2), 0.05, 1.0), ((5, 40, 2), 0.5, 1e-3)],
)
def test_packed_is_linen(sizes, density, spread, implementation):
    params, links = random_normalised(2, sizes, density)
    # Of a small spread, so that its square is not large beside epsilon.
    params["Dense_0"] = jax.tree.map(lambda p: spread * p, params["Dense_0"])
    x = samples(70, sizes[0])
    linen = lambda p, x: LinenMLP(sizes[1:]).apply({"params": p}, x)
    packed = lambda v, x: perceptron(v, links, x, implementation=implementation)
    both = jax.jit(lambda p, v, x: (value_and_gradients(linen, p, x), value_and_gradients(packed, v, x)))
    (y, (of_params, of_x)), found = both(params, vector_of(params, links), x)
    assert_close(found, (y, (vector_of(of_params, links), of_x)))


def test_a_vector_holds_scale_and_offset_after_the_bias_of_each_hidden_layer():
    params, links = random_normalised(1, (3, 16, 8, 2), 0.5)
    first, second, last = packing.split(vector_of(params, links), links, normalised=True)
    for i, layer in enumerate((first, second)):
        np.testing.assert_array_equal(layer.bias, params[f"Dense_{i}"]["bias"])
        np.testing.assert_array_equal(layer.scale, params[f"LayerNorm_{i}"]["scale"])
        np.testing.assert_array_equal(layer.offset, params[f"LayerNorm_{i}"]["bias"])
    np.testing.assert_array_equal(packing.unpack(last.values, links[2]), params["Dense_2"]["kernel"])
    assert last.scale is last.offset is None


@needs_native
def test_without_a_hidden_layer_nothing_is_normalised():
    params, links = random_normalised(1, (9, 4), 0.5)
    vector, x = vector_of(params, links), samples(70, 9)
    plain, ours = (
        value_and_gradients(lambda v, x, n=n: kernels.perceptron(v, links, x, normalised=n), vector, x)
        for n in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, plain, ours)


@needs_native
@pytest.mark.parametrize("twins_share_input", [True, False])
def test_mapping_is_a_loop(twins_share_input):
    params, links = random_normalised(3, (5, 24, 17, 3), 0.3, twins=True)
    vector = jax.vmap(vector_of)(params, links)
    # Two seeds of twin networks, as in a sweep.
    vectors = jnp.stack([vector, 2 * vector])
    x = samples(*((2, 30, 5) if twins_share_input else (2, 2, 30, 5)))
    one = lambda v, k, x: value_and_gradients(lambda v, x: perceptron(v, k, x), v, x)
    twins = jax.vmap(one, in_axes=(0, 0, None if twins_share_input else 0))
    mapped = jax.jit(jax.vmap(twins, in_axes=(0, None, 0)))(vectors, links, x)
    for seed, twin in itertools.product(range(2), range(2)):
        pick = jax.tree.map(lambda leaf, twin=twin: leaf[twin], links)
        alone = one(vectors[seed, twin], pick, x[seed] if twins_share_input else x[seed, twin])
        for ours, theirs in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(ours[seed, twin], theirs)


@needs_native
def test_several_inputs_are_their_concatenation_and_have_only_the_gradients_asked_for():
    params, links = random_normalised(5, (9, 24, 16, 3), 0.3)
    vector, x = vector_of(params, links), samples(150, 9)
    loss = lambda v, *x: (perceptron(v, links, *x) ** 2).sum()
    apart = vector, x[:, :3], x[:, 3:]
    of_vector, of_x = jax.grad(loss, (0, 1))(vector, x)
    expected = of_vector, of_x[:, :3], of_x[:, 3:]
    for wanted in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
        results = len(wanted) + (0 in wanted)  # The parameters' gradient comes with scratch.
        gradient = jax.grad(loss, wanted)
        equations = jax.make_jaxpr(gradient)(*apart).eqns
        assert [len(e.outvars) for e in equations if e.params.get("target_name") == native.BACKWARD] == [results]
        for which, ours in zip(wanted, gradient(*apart), strict=True):
            np.testing.assert_array_equal(ours, expected[which])


@needs_native
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_of_no_samples_there_is_no_output_and_no_gradient(shape):
    params, links = random_normalised(1, (3, 16, 2), 0.5)
    vector, x = vector_of(params, links), jnp.zeros(shape)
    for name in ("portable", "native"):
        run = lambda v, x, name=name: perceptron(v, links, x, implementation=name)
        y, (of_vector, of_x) = jax.jit(lambda v, x, run=run: value_and_gradients(run, v, x))(vector, x)
        assert (y.shape, of_x.shape) == ((*shape[:-1], 2), shape)
        np.testing.assert_array_equal(of_vector, jnp.zeros_like(vector))


@needs_native
@pytest.mark.parametrize("batch", [1, 64, 65, 130])
def test_equal_units_and_samples_that_only_fill_a_tile_add_nothing(batch):
    """Of zero inputs and biases all units are the same, so the variance is zero; there is a unit without links, too."""
    params, links = random_normalised(4, (6, 20, 20, 2), 0.1)
    assert any((np.diff(np.asarray(link.row_start)) == 0).any() for link in links[:2])
    params = {
        name: {**layer, "bias": jnp.zeros_like(layer["bias"])} if name.startswith("Dense") else layer
        for name, layer in params.items()
    }
    assert_native_is_portable(vector_of(params, links), links, samples(batch, 6))
    assert_native_is_portable(vector_of(params, links), links, jnp.zeros((batch, 6)))


@needs_native
def test_nan_and_infinity_stay_in_their_sample():
    params, links = random_normalised(1, (3, 16, 12, 2), 1.0)
    vector, x = vector_of(params, links), samples(66, 3)
    strange = x.at[1, 0].set(jnp.nan).at[65, 1].set(jnp.inf)
    rows = np.delete(np.arange(66), [1, 65])
    for name in ("portable", *NATIVE):
        run = lambda x, name=name: perceptron(vector, links, x, implementation=name)
        (y, of_x), (expected, of_expected) = (jax.vjp(run, x) for x in (strange, x))
        assert np.isnan(y[jnp.array([1, 65])]).all()
        np.testing.assert_array_equal(y[rows], expected[rows])
        np.testing.assert_array_equal(of_x(expected)[0][rows], of_expected(expected)[0][rows])


@needs_native
def test_a_shift_of_all_units_goes_out_in_the_normalisation():
    """The mean is taken off before squares are summed, whose difference would be lost in rounding."""
    params, links = random_normalised(1, (3, 64, 2), 1.0)
    shifted = params | {"Dense_0": {**params["Dense_0"], "bias": params["Dense_0"]["bias"] + 2000.0}}
    for name in ("portable", *NATIVE):
        y, moved = (
            perceptron(vector_of(p, links), links, samples(5, 3), implementation=name) for p in (params, shifted)
        )
        np.testing.assert_allclose(moved, y, atol=0.01)


def test_a_vector_of_another_length_is_refused_with_the_one_needed():
    params, links = random_normalised(1, (3, 16, 2), 0.5)
    vector, x = vector_of(params, links), jnp.ones((4, 3))
    # 24 + 16 links, 16 + 2 biases, 16 scales, 16 offsets.
    assert vector.shape == (90,)
    with pytest.raises(ValueError, match=r"shape \(58,\) do not fit the links and normalisation, which need \(90,\)"):
        perceptron(vector[:58], links, x)
    with pytest.raises(ValueError, match=r"shape \(90,\) do not fit the links, which need \(58,\)"):
        kernels.perceptron(vector, links, x)


@needs_native
def test_sizes_that_do_not_fit_are_errors_of_the_call():
    """Below the door that checks: the custom calls themselves."""
    params, links = random_normalised(1, (3, 16, 2), 0.5)
    vector, x, y = vector_of(params, links), jnp.ones((4, 3)), jnp.ones((4, 2))
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    plain_size, size = (3 + 16) * native.tiling()[0], (3 + 16 + 1) * native.tiling()[0]

    def forward(vector, size, normalised):
        call = jax.ffi.ffi_call(native.FORWARD, [struct(4, 2), struct(size)])
        operands = [index for link in links for index in (link.row_start, link.inputs)]
        return call(x, vector, *operands, instructions="auto", normalised=normalised, arrays=np.int64(1))

    def backward(vector, size, normalised):
        call = jax.ffi.ffi_call(native.BACKWARD, [struct(*vector.shape), struct(0, *vector.shape), struct(4, 3)])
        operands = [i for k in links for i in (k.row_start, k.inputs, k.column_start, k.outputs, k.order)]
        sizes = {"sizes": np.array([3]), "wanted": np.array([1])}
        options = {"instructions": "auto", "normalised": normalised, "weights": True}
        return call(y, jnp.zeros(size), vector, *operands, **options, **sizes)

    for call in (forward, backward):
        jax.block_until_ready([call(vector, size, True), call(vector[:58], plain_size, False)])
        for message, arguments in (
            ("parameters have the wrong size", (vector[:58], size, True)),
            ("parameters have the wrong size", (vector, plain_size, False)),
            ("activations ha(s|ve)", (vector, plain_size, True)),
            ("activations ha(s|ve)", (vector[:58], size, False)),
        ):
            with pytest.raises(CALL_ERRORS, match=message):
                jax.block_until_ready(call(*arguments))
