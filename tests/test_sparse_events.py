"""Events against plain NumPy, written from the papers, and densities against a published table."""

import itertools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx2_jax import sparse
from rlx2_jax.runtime import native
from rlx2_jax.sparse import SparseError, densities, events, topology, trees
from rlx2_jax.sparse.methods import Method

SHAPE = (8, 12)
KEY = jax.random.PRNGKey(5)
METHODS = {
    "set": sparse.methods.set_(density=sparse.uniform(0.6), fraction=0.3, every=100),
    "rigl": sparse.methods.rigl(density=sparse.uniform(0.6), until=1000),
    "gradual": sparse.methods.gradual(density=sparse.uniform(0.9), end=1000),
    "n of m": sparse.methods.n_m(n=2, m=4, until=1000),
    "fan in": sparse.methods.constant_fan_in(density=sparse.uniform(0.6), until=1000),
}
STEP = 300


def example(seed, method):
    """Weight (zero off the mask), mask and gradient, all of one matrix; few values, so that many are alike."""
    rng = np.random.default_rng(seed)
    gradient = np.round(rng.normal(size=SHAPE), 1).astype(np.float32)
    weight = np.round(rng.normal(size=SHAPE), 1).astype(np.float32)
    mask = np.asarray(sparse.initial_masks(method, {"w": jnp.asarray(weight)}, jax.random.PRNGKey(seed))["w"])
    return np.where(mask, weight, 0), mask, gradient


def event(method, weight, mask, gradient, step=STEP):
    tree = lambda x: {"w": jnp.asarray(x)}
    return sparse.rewire(method, tree(weight), tree(mask), tree(gradient), key=KEY, step=step)


EVENTS = {name: jax.jit(lambda *args, m=method: event(m, *args)) for name, method in METHODS.items()}


def lowest(score, among, count):
    """Places of the `count` lowest among the given ones; of those alike the last go first."""
    return sorted(among, key=lambda i: (score[i], -i))[:count]


def highest(score, among, count):
    """Places of the `count` highest among the given ones; of those alike the first come first."""
    return sorted(among, key=lambda i: (-score[i], i))[:count]


def cosine(initial):
    return initial / 2 * (1 + np.cos(np.pi * STEP / 1000))


def moved(mask, fraction):
    return int(np.floor(np.float32(fraction) * np.float32(mask.sum())))


def after_moves(weight, mask, score, count):
    """Mocanu et al.; Evci et al.: the smallest weights go, the best of all others come."""
    w, active = np.abs(weight.ravel()), set(np.flatnonzero(mask))
    kept = active - set(lowest(w, active, count))
    return kept | set(highest(score.ravel(), set(range(mask.size)) - kept, count))


def after_pruning(weight, mask):
    """Zhu and Gupta, equation 1, from dense: the smallest weights go until the density is reached."""
    left = (1 - STEP / 1000) ** 3
    end = round(0.1 * mask.size)
    keep = end + round((mask.size - end) * left)
    active = set(np.flatnonzero(mask))
    return active - set(lowest(np.abs(weight.ravel()), active, len(active) - keep))


def after_moves_in_groups(weight, mask, gradient, count, groups):
    """The smallest weights of the leaf go, each group grows back to its number. `groups` are lists of places."""
    order = [i for group in groups for i in group]
    place = {i: n for n, i in enumerate(order)}
    w, g, active = np.abs(weight.ravel()), np.abs(gradient.ravel()), set(np.flatnonzero(mask))
    dropped = sorted(active, key=lambda i: (w[i], -place[i]))[:count]
    kept = active - set(dropped)
    result = set(kept)
    for group in groups:
        lost = len(active & set(group)) - len(kept & set(group))
        rest = sorted(set(group) - kept, key=lambda i: (-g[i], place[i]))
        result |= set(rest[:lost])
    return result


def expected(name, weight, mask, gradient):
    places = np.arange(mask.size).reshape(SHAPE)
    if name == "set":
        # The same random numbers; the paper says no more of them than that they are.
        leaf_key = jax.random.split(KEY, 1)[0]
        score = np.asarray(jax.random.uniform(jax.random.split(leaf_key)[1], SHAPE))
        return after_moves(weight, mask, score, moved(mask, 0.3))
    if name == "rigl":
        return after_moves(weight, mask, np.abs(gradient), moved(mask, cosine(0.3)))
    if name == "gradual":
        return after_pruning(weight, mask)
    groups = places.T.reshape(-1, 4) if name == "n of m" else places.T
    return after_moves_in_groups(weight, mask, gradient, moved(mask, cosine(0.3)), groups.tolist())


@settings(max_examples=15)
@given(st.sampled_from(list(METHODS)), st.integers(0, 2**16))
def test_an_event_is_that_of_the_paper(name, seed):
    weight, mask, gradient = example(seed, METHODS[name])
    found = EVENTS[name](weight, mask, gradient)
    new = np.zeros(mask.size, bool)
    new[list(expected(name, weight, mask, gradient))] = True
    new = new.reshape(SHAPE)
    np.testing.assert_array_equal(found.masks["w"], new)
    np.testing.assert_array_equal(found.params["w"], np.where(new & mask, weight, 0))
    assert (found.dropped, found.grown) == ((mask & ~new).sum(), (new & ~mask).sum())


@pytest.mark.skipif(not native.available(), reason="needs the native kernels")
@pytest.mark.parametrize("absolute", [False, True])
def test_the_native_event_is_the_portable_one(absolute):
    rng = np.random.default_rng(0)
    score = lambda x: topology.Score(x, absolute=absolute)
    exchange = lambda m, d, g, f, t: topology._exchange(m, score(d).plain(-1.0), score(g).plain(0.0), f, t)
    ours = jax.jit(lambda m, d, g, f, t: topology.exchange(m, score(d), score(g), f, t))
    for size, share, target in itertools.product((1, 40, 20_000), (0.0, 0.3, 1.0), (None, 0.05, 0.9)):
        mask = jnp.asarray(rng.random((1, size)) < 0.4)
        values = rng.choice(np.float32([0, -0.0, 1, -2, 3, np.nan, np.inf, 1e-40]), (2, 1, size))
        # With many values alike, and with none.
        for scores in (values, rng.normal(size=(2, 1, size)).astype(np.float32)):
            count = None if target is None else jnp.asarray([int(target * size)], jnp.int32)
            args = mask, *scores, jnp.float32(share), count
            found = ours(*args)
            with mock.patch.object(native, "available", return_value=False):
                portable = jax.jit(lambda *args: exchange(*args))
                assert "ffi_call" not in str(jax.make_jaxpr(portable)(*args))
                np.testing.assert_array_equal(found, portable(*args))


def resnet50():
    """Shapes of ResNet-50's convolutions and of its classifier, in order."""
    shapes, inputs = [(7, 7, 3, 64)], 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            shapes += [(1, 1, inputs, 4 * width)] if block == 0 else []
            inputs = 4 * width
    return [*shapes, (2048, 1000)]


def test_erdos_renyi_kernel_gives_the_published_sparsities(vectors):
    published = json.loads((vectors / "erdos_renyi_kernel.json").read_text())
    shapes = resnet50()
    found = densities.erdos_renyi_densities(shapes, published["sparsity"], kernel=True)
    # The table has whole percents.
    np.testing.assert_allclose(100 * (1 - np.array(found)), published["percent"], atol=0.5)
    by_path = sparse.erdos_renyi_kernel(0.9)({str(i): shape for i, shape in enumerate(shapes)})
    assert tuple(by_path.values()) == found


def test_densities_of_kernels_and_of_matrices():
    shapes = {"a": (64, 32), "conv": (3, 3, 16, 32), "c": (32, 8)}
    plain, kernel = sparse.erdos_renyi(0.9)(shapes), sparse.erdos_renyi_kernel(0.9)(shapes)
    sizes = {path: np.prod(shape) for path, shape in shapes.items()}
    for found in (plain, kernel):
        assert sum(found[p] * sizes[p] for p in shapes) == pytest.approx(0.1 * sum(sizes.values()))
    # Channels alone count for the plain one, the kernel's sides for the other.
    assert plain["conv"] / plain["a"] == pytest.approx((48 / 512) / (96 / 2048))
    assert kernel["conv"] / kernel["a"] == pytest.approx((54 / 4608) / (96 / 2048))
    assert sparse.by_path({"conv": 0.5, "a|c": 0.75})(shapes) == {"a": 0.25, "conv": 0.5, "c": 0.25}
    assert sparse.by_path({"conv": 0.5}, default=0.0)(shapes)["c"] == 1


def first_connections(density, params):
    """Of each leaf, as the first masks have them."""
    masks = events.initial_masks(Method(density), params, jax.random.PRNGKey(0))
    return {path: int(count) for path, count in trees.connections_of(masks).items()}


@pytest.mark.parametrize("scalar", [np.float32, np.float64, jnp.float32])
def test_densities_may_be_scalars_of_numpy_and_jax(scalar):
    params = {"a": jnp.zeros((64, 64)), "b": jnp.zeros((64, 8))}
    for density in (sparse.uniform, sparse.erdos_renyi, lambda s: sparse.by_path({"a": s}, default=0.5)):
        held, asked = (first_connections(density(s), params) for s in (scalar(0.75), 0.75))
        assert held == asked and min(held.values()) > 0


@pytest.mark.parametrize("scalar", [int, np.int64, jnp.int32])
def test_impossible_numbers_of_connections_are_refused_whatever_their_type(scalar):
    for count in (0, 1000):
        with pytest.raises(SparseError, match=f"a cannot hold {count} connections; use 1 to 64"):
            first_connections(lambda shapes, count=count: {"a": scalar(count)}, {"a": jnp.zeros((8, 8))})


def test_a_density_that_is_not_one_known_number_is_refused():
    params = {"a": jnp.zeros((8, 8))}
    counted = jax.jit(lambda value: events.initial_masks(Method(lambda shapes: {"a": value}), params, KEY))
    assert counted(jnp.int32(7))["a"].sum() == 7
    with pytest.raises(SparseError, match="a: a density must be one known number; trace numbers of connections"):
        counted(0.5)
    with pytest.raises(SparseError, match="a: a density must be one known number"):
        first_connections(lambda shapes: {"a": np.array([0.5, 0.5])}, params)
