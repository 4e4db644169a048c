"""Sparse training for any pytree: what holds for every tree, optimiser and method, at every step."""

import dataclasses
import functools
import inspect
import itertools
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from rlx2_jax import sparse
from rlx2_jax.sparse import trees

from .conftest import ROOT, census

HALF = sparse.uniform(0.5)
OPTIMISERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "lion": lambda: optax.lion(0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "rmsprop": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(0.1, momentum=0.5)),
    "adagrad": lambda: optax.adagrad(0.1),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}
METHODS = {
    "static": lambda inner, **parts: sparse.static(inner, density=sparse.erdos_renyi(0.5), **parts),
    "set": lambda inner, **parts: sparse.set_(inner, density=HALF, every=2, fraction=0.5, **parts),
    "rigl": lambda inner, **parts: sparse.rigl(inner, density=HALF, every=2, until=20, **parts),
    "rigl instead": lambda inner, **parts: sparse.rigl(inner, density=HALF, every=2, until=20, instead=True, **parts),
    "rlx2": lambda inner, **parts: sparse.rlx2(
        inner, density=sparse.erdos_renyi_kernel(0.5), every=2, until=20, **parts
    ),
    "gradual": lambda inner, **parts: sparse.gradual(
        inner, density=sparse.uniform(0.75), begin=1, end=5, every=2, **parts
    ),
    "n of m": lambda inner, **parts: sparse.n_m(inner, n=2, m=4, every=2, until=20, **parts),
    "fan in": lambda inner, **parts: sparse.constant_fan_in(inner, density=HALF, every=2, until=20, **parts),
    "dense": lambda inner, **parts: sparse.dense(inner, **parts),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A pytree of a user's own."""

    kernel: jax.Array
    bias: jax.Array


def matrix(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def random_tree(draw_seed, kind, dtype):
    rng = np.random.default_rng(draw_seed)
    # Inputs come in fours, so that every structure fits.
    sizes = [4 * int(rng.integers(1, 3)) for _ in range(3)]
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    layers = [Layer(normal(a, b), normal(b)) for a, b in itertools.pairwise(sizes)]
    if kind == "list":
        return [(layer.kernel, layer.bias) for layer in layers]
    if kind == "dict":
        convolution = {"w": normal(3, 3, sizes[0], sizes[1]), "b": normal(sizes[1])}
        return {"conv": convolution, "rest": {str(i): vars(layer) for i, layer in enumerate(layers)}}
    return layers


def gradients_like(params, seed):
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten([matrix(x.shape, seed + i, x.dtype) for i, x in enumerate(leaves)])


def moments(state, params):
    """Every tree in an optimiser's state with the structure of the parameters."""
    structure = jax.tree.structure(params)
    is_like = lambda x: jax.tree.structure(x) == structure
    return [x for x in jax.tree.leaves(state, is_leaf=is_like) if is_like(x)]


def moments_are_zero(masks, params, state):
    """Parameters and all that has their structure and shapes in the optimiser's state are zero off the masks."""
    assert jax.tree.leaves(masks)
    for tree in (params, *moments(state, params)):
        for mask, leaf in pairs(masks, tree):
            if mask is not None and leaf.shape == mask.shape and leaf.dtype != bool:
                assert not np.asarray(leaf, np.float32)[~np.asarray(mask)].any()


def pairs(masks, tree):
    found = []
    trees.map_masks(lambda mask, x: found.append((mask, x)), masks, tree)
    return found


def run(tx, params, steps=6, seed=0):
    """Parameters, state and the masks after each step, after checking what holds at every one."""
    params, state = jax.jit(lambda params: sparse.init(tx, params))(params)
    stacked = [gradients_like(params, seed + 10 * i) for i in range(steps)]

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        carry = optax.apply_updates(params, updates), state
        return carry, carry

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *stacked)
    _, every = jax.jit(lambda carry, g: jax.lax.scan(step, carry, g))((params, state), stacked)
    moments_are_zero(sparse.masks_of(state), params, state)
    history = [sparse.masks_of(state)]
    for i in range(steps):
        params, state = jax.tree.map(lambda x, i=i: x[i], every)
        history.append(sparse.masks_of(state))
        moments_are_zero(history[-1], params, state)
    return params, state, history


CASES = [
    (method, optimiser, kind, dtype)
    for method, optimiser, kind, dtype in zip(
        METHODS,
        [*OPTIMISERS, "adam"],
        ["list", "dict", "dataclass"] * 3,
        [jnp.float32, jnp.bfloat16] * 3 + [jnp.bfloat16, jnp.float32, jnp.float32],
        strict=True,
    )
]


@pytest.mark.parametrize(("method", "optimiser", "kind", "dtype"), CASES, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("seed", [0, 1])
def test_densities_hold_and_nothing_stands_off_the_mask_at_any_step(seed, method, optimiser, kind, dtype):
    params = random_tree(seed, kind, dtype)
    after, _, history = run(METHODS[method](OPTIMISERS[optimiser]()), params, seed=seed)
    counts = [sparse.connections_of(masks) for masks in history]
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, params)
    if method == "gradual":
        # Zhu and Gupta: dense until step 1, by the cubic at step 3, and there at step 5.
        left = [1, 1, 1, 1, 0.5**3, 0.5**3, 0]
        for path, size in sizes(params).items():
            end = round(0.25 * size)
            assert [int(c[path]) for c in counts] == [end + round((size - end) * share) for share in left]
        return
    assert all(c == counts[0] for c in counts)
    if method in ("set", "rigl", "n of m", "fan in", "rigl instead"):
        assert {path: int(n) for path, n in counts[0].items()} == {p: round(n / 2) for p, n in sizes(params).items()}
    changes = [a != b for a, b in itertools.pairwise(map(as_bytes, history))]
    # Events come before the third and the fifth step; between them nothing moves.
    assert [i for i, change in enumerate(changes) if change] == ([] if method in ("static", "dense") else [2, 4])


def sizes(params):
    return {path: leaf.size for path, leaf in trees.by_path(params).items() if leaf.ndim > 1}


def as_bytes(masks):
    return b"".join(np.asarray(m).tobytes() for m in jax.tree.leaves(masks))


def test_what_grows_starts_at_zero():
    tx = METHODS["rigl instead"](optax.sgd(0.1))
    params, state = sparse.init(tx, {"w": matrix((16, 16))})
    updates, after = tx.update(gradients_like(params, 0), state, params, event=True)
    new = np.asarray(optax.apply_updates(params, updates)["w"])
    grown = np.asarray(after.masks["w"] & ~state.masks["w"])
    stays = np.asarray(after.masks["w"] & state.masks["w"])
    assert grown.sum() == int(0.3 * 128)
    assert not new[grown].any()
    np.testing.assert_array_equal(new[stays], np.asarray(params["w"])[stays])


@pytest.mark.parametrize("leaf", [(8, 12), (3, 3, 8, 4)])
def test_n_of_m_and_fan_in_hold_in_every_group(leaf):
    params = {"w": matrix(leaf)}
    _, _, history = run(METHODS["n of m"](optax.adam(0.1)), params)
    for masks in history:
        groups = np.moveaxis(np.asarray(masks["w"]), -2, -1).reshape(-1, 4)
        assert (groups.sum(-1) == 2).all()
    density = sparse.uniform(0.7)
    _, _, history = run(sparse.constant_fan_in(optax.adam(0.1), density=density, every=2, until=9), params)
    for masks in history:
        inputs = np.asarray(masks["w"]).reshape(-1, leaf[-1])
        assert (inputs.sum(0) == round(0.3 * inputs.shape[0])).all()


def test_pruning_may_begin_sparse_and_fall_into_groups():
    params = {"w": matrix((16, 16))}
    method = functools.partial(sparse.gradual, optax.sgd(0.1), begin=0, end=4, every=2)
    _, _, history = run(method(density=sparse.uniform(0.9), start=HALF), params)
    assert [int(sparse.connections_of(m)["w"]) for m in history] == [128, 128, 128, 39, 39, 26, 26]
    _, _, history = run(method(density=HALF, structure=sparse.n_of_m(2, 4)), params)
    per_group = [np.asarray(m["w"]).T.reshape(-1, 4).sum(-1) for m in history]
    assert [set(groups.tolist()) for groups in per_group] == [{4}, {4}, {4}, {2}, {2}, {2}, {2}]


def test_a_stack_of_matrices_is_sparse_one_by_one():
    params = {"twin": matrix((2, 8, 8)), "bias": matrix((2, 8))}
    _, _, history = run(METHODS["rigl"](optax.adam(0.1), stacked=1), params)
    for masks in history:
        assert np.asarray(masks["twin"]).sum((1, 2)).tolist() == [32, 32]
        assert masks["bias"] is None
    by_path = lambda path, leaf: int(path == "twin")
    method = sparse.methods.rigl(density=HALF, until=9, stacked=by_path)
    assert sparse.initial_masks(method, params, jax.random.PRNGKey(0))["twin"].sum() == 64


class Perceptron(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.LayerNorm()(linen.Dense(16)(linen.Embed(5, 8)(x))))
        return linen.Dense(4)(x)


def test_flax_linen_and_nnx_parameters_are_trees_like_any_other():
    params = Perceptron().init(jax.random.PRNGKey(0), jnp.zeros((2,), jnp.int32))
    _, _, history = run(METHODS["rigl"](optax.adam(0.1)), params)
    assert set(sparse.connections_of(history[0])) == {"params/Dense_0/kernel", "params/Dense_1/kernel"}
    module = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.Linear(16, 4, rngs=nnx.Rngs(1)))
    after, _, history = run(METHODS["rigl"](optax.adam(0.1)), nnx.state(module, nnx.Param))
    assert set(sparse.connections_of(history[0])) == {"layers/0/kernel", "layers/1/kernel"}
    nnx.update(module, after)
    assert int(jnp.sum(module.layers[0].kernel[...] != 0)) <= 64


class Attention(NamedTuple):
    query: Any
    value: Any


@pytest.mark.parametrize("parts", [dict, Attention], ids=["dict", "tuple"])
def test_a_parameter_may_be_called_value(parts):
    tree = {
        "attend": parts(query=matrix((4, 4)), value=matrix((4, 4), 1)),
        "other": parts(query=matrix((4,)), value=matrix((4, 4), 3)),
        "scale": {"value": matrix((4, 4), 2)},
    }
    tx = sparse.static(optax.sgd(0.1), density=sparse.by_path({"attend/value$": 0.75}, default=0.5))
    found = sparse.connections_of(sparse.masks_of(sparse.init(tx, tree)[1]))
    assert found == {"attend/query": 8, "attend/value": 4, "other/value": 8, "scale/value": 8}


def test_a_matrix_called_b_is_a_bias_in_small_letters_alone():
    tx = sparse.static(optax.sgd(0.1), density=HALF)
    _, state = sparse.init(tx, {"A": matrix((8, 2)), "B": matrix((2, 8)), "b": matrix((2, 2)), "Bias": matrix((2, 2))})
    assert set(sparse.connections_of(state.masks)) == {"A", "B"}


def test_a_state_is_mapped_as_parameters_are_if_dense_leaves_count():
    params = {"w": matrix((4, 4)), "b": matrix((4,))}
    tx = METHODS["rigl"](optax.adam(0.1))
    _, state = sparse.init(tx, params)
    names = {"w": "matrix", "b": "vector"}
    found = optax.tree_map_params(
        tx, lambda x, name: x if x is None else name, state, names, is_leaf=lambda x: x is None
    )
    assert found.inner[0].mu == names
    assert found.masks == {"w": "matrix", "b": None}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_an_event_instead_of_a_step_takes_gradients_of_another_type(dtype):
    tx = sparse.rigl(optax.adam(0.1), density=HALF, until=9, every=2, instead=True)
    params, state = sparse.init(tx, {"w": matrix((8, 8), dtype=dtype)})
    for seed in range(4):
        gradients = jax.tree.map(lambda x: x.astype(jnp.float32), gradients_like(params, seed))
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert not np.asarray(params["w"], np.float32)[~np.asarray(state.masks["w"])].any()


def test_empty_leaves_are_dense():
    _, state = sparse.init(METHODS["rigl"](optax.adam(0.1)), {"w": matrix((8, 8)), "none": jnp.zeros((0, 4))})
    assert set(sparse.connections_of(state.masks)) == {"w"}


@pytest.mark.parametrize("optimiser", [optax.lbfgs, functools.partial(optax.sm3, 0.1)])
def test_optimisers_that_do_not_tell_their_moments_are_refused_or_keep_them(optimiser):
    params = {"w": matrix((8, 8))}
    with pytest.raises(sparse.SparseError, match="use reset_moments=False"):
        sparse.init(sparse.rigl(optimiser(), density=HALF, until=9), params)
    params, state = sparse.init(sparse.rigl(optimiser(), density=HALF, until=9, reset_moments=False), params)
    assert int(sparse.connections_of(state.masks)["w"]) == 32


def test_numbers_of_connections_may_be_traced():
    params = {"w": matrix((8, 8))}

    @jax.jit
    def begin(count):
        method = sparse.methods.rigl(density=sparse.connections({"w": count}), until=9)
        return sparse.initial_masks(method, params, jax.random.PRNGKey(0))["w"].sum()

    assert [int(begin(n)) for n in (1, 10, 64)] == [1, 10, 64]


def test_an_unbatched_event_stays_a_branch_under_vmap():
    tx = METHODS["rigl"](optax.sgd(0.1))
    params, state = sparse.init(tx, {"w": matrix((8, 8))})
    many = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
    given = jax.vmap(lambda g, s, p, event: tx.update(g, s, p, event=event), in_axes=(0, 0, 0, None))
    counted = jax.vmap(lambda g, s, p, event: tx.update(g, s, p), in_axes=(0, 0, 0, None))
    args = (many(params), many(state), many(params), jnp.bool_(True))
    assert census(given, *args)[0] == 1
    assert census(counted, *args)[0] == 0
    (one, _), (two, _) = tx.update(params, state, params, event=True), given(*args)
    np.testing.assert_allclose(two["w"][1], one["w"], rtol=1e-6)


def test_an_event_may_be_asked_for_where_a_method_has_no_times_of_its_own():
    tx = sparse.set_(optax.sgd(0.1), density=sparse.uniform(0.5), every=0)
    params, state = sparse.init(tx, {"w": matrix((8, 8))})
    moved = lambda event: (tx.update(params, state, params, event=event)[1].masks["w"] != state.masks["w"]).sum()
    assert moved(True) > 0 == moved(False) == moved(None)


def test_scan_and_shard_map_and_a_plain_loop_agree():
    tx = METHODS["set"](optax.adam(0.1))
    first = sparse.init(tx, {"w": matrix((16, 8)), "b": matrix((8,))})
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[gradients_like(first[0], i) for i in range(6)])

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    scanned = jax.jit(lambda carry, g: jax.lax.scan(step, carry, g)[0])(first, stacked)
    looped = first
    one = jax.jit(lambda carry, g: step(carry, g)[0])
    for i in range(6):
        looped = one(looped, jax.tree.map(lambda x, i=i: x[i], stacked))
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()
    whole = lambda carry, g: jax.lax.scan(step, carry, g)[0]
    sharded = jax.jit(jax.shard_map(whole, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(first, stacked)
    for other in (looped, sharded):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), scanned, other)


def test_chains_mixtures_and_injected_hyperparameters():
    params = {"still": {"w": matrix((8, 8))}, "moving": {"w": matrix((8, 8)), "b": matrix((8,))}, "free": matrix((3,))}
    labels = {"still": "still", "moving": "moving", "free": "free"}
    label = lambda tree: {k: jax.tree.map(lambda _, k=k: labels[k], v) for k, v in tree.items()}
    mixture = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {
                "still": METHODS["static"](optax.adam(0.1)),
                "moving": METHODS["rigl"](optax.sgd(0.1)),
                "free": optax.sgd(0.1),
            },
            label,
        ),
    )
    _, state, history = run(mixture, params)
    assert sparse.masks_of(state)["free"] is None
    assert {k: int(v) for k, v in sparse.connections_of(history[-1]).items()} == {"moving/w": 32, "still/w": 32}
    assert (np.asarray(history[0]["still"]["w"]) == np.asarray(history[-1]["still"]["w"])).all()
    assert (np.asarray(history[0]["moving"]["w"]) != np.asarray(history[-1]["moving"]["w"])).any()
    injected = optax.inject_hyperparams(lambda rate: METHODS["rigl"](optax.adam(rate)))(rate=0.1)
    p, state, _ = run(injected, params["moving"])
    moved = lambda state: injected.update(gradients_like(p, 9), state, p, event=False)[0]["w"]
    assert np.asarray(moved(state)).any()
    state.hyperparams["rate"] = jnp.float32(0.0)
    assert not np.asarray(moved(state)).any()
    tx = METHODS["rigl"](optax.adam(0.1))
    _, state = sparse.init(tx, params["moving"])
    nothing = optax.tree_map_params(tx, lambda x: None, state)
    assert len(jax.tree.leaves(state)) == 8
    assert len(jax.tree.leaves(nothing)) == 3, "Adam's counter, ours and the key"


MIXTURES = {
    "by leaf": lambda own: optax.multi_transform(
        {"own": own, "rest": optax.sgd(0.1)}, {"one": {"w": "own", "b": "own"}, "two": {"w": "rest", "b": "rest"}}
    ),
    "by module": lambda own: optax.multi_transform({"own": own, "rest": optax.sgd(0.1)}, {"one": "own", "two": "rest"}),
    "frozen": lambda own: optax.partition({"own": own, "rest": optax.set_to_zero()}, {"one": "own", "two": "rest"}),
    "masked": lambda own: optax.masked(own, {"one": True, "two": False}),
}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("parts", [1, 2])
def test_one_part_of_a_tree_may_be_sparse_and_the_rest_another_optimisers(mixture, parts):
    """As may each of two, which one state holds."""
    params = {name: {"w": matrix((8, 8)), "b": matrix((8,))} for name in ("one", "two")}
    mixed = MIXTURES[mixture](METHODS["rigl"](optax.sgd(0.1)))
    other = optax.masked(METHODS["static"](optax.identity()), {"one": False, "two": True})
    _, state, history = run(optax.chain(mixed, other) if parts == 2 else mixed, params)
    assert {k: int(v) for k, v in sparse.connections_of(history[-1]).items()} == {
        f"{name}/w": 32 for name in ("one", "two")[:parts]
    }
    assert sparse.masks_of(state)["one"]["b"] is None
    assert (np.asarray(history[0]["one"]["w"]) != np.asarray(history[-1]["one"]["w"])).any()


def test_the_masks_of_a_mixture_may_be_rewired():
    params = {"body": {"w": matrix((8, 8)), "b": matrix((8,))}, "head": {"w": matrix((8, 8))}}
    tx = optax.multi_transform(
        {"sparse": METHODS["rigl"](optax.adam(0.1)), "dense": optax.adam(0.1)}, {"body": "sparse", "head": "dense"}
    )
    params, state = sparse.init(tx, params)
    masks = sparse.masks_of(state)
    mine = lambda path, leaf: path == "body/w"
    method = sparse.methods.rigl(density=HALF, until=9, where=mine)
    event = sparse.rewire(method, params, masks, gradients_like(params, 0), key=jax.random.PRNGKey(0), fraction=0.5)
    assert int(event.dropped) == int(event.grown) > 0
    assert sparse.connections_of(event.masks) == {"body/w": 32}
    np.testing.assert_array_equal(event.params["head"]["w"], params["head"]["w"])


def test_a_key_decides_the_first_masks_and_random_growth():
    params = {"w": matrix((16, 16))}
    tx = METHODS["set"](optax.sgd(0.0))
    first = lambda key: np.asarray(sparse.masks_of(sparse.init(tx, params, key)[1])["w"])
    keys = jax.random.split(jax.random.PRNGKey(1), 2)
    assert (first(keys[0]) == first(keys[0])).all()
    assert (first(keys[0]) != first(keys[1])).any()
    masks = jax.vmap(lambda key: sparse.masks_of(sparse.init(tx, params, key)[1])["w"])(keys)
    np.testing.assert_array_equal(masks[1], first(keys[1]))
    params, state = sparse.init(tx, params)
    grown = [np.asarray(sparse.masks_of(tx.update(params, state, params, key=k, event=True)[1])["w"]) for k in keys]
    assert (grown[0] != grown[1]).any()


def saliency(weight, gradient, key):
    """What the loss would change by, to first order, if the connection went."""
    return jnp.abs(weight * gradient)


def test_a_criterion_of_ones_own():
    params = {"w": matrix((8, 8))}
    tx = sparse.rigl(optax.sgd(0.0), density=HALF, until=9, drop=saliency)
    params, state = sparse.init(tx, params)
    gradients = gradients_like(params, 3)
    _, after = tx.update(gradients, state, params, event=True)
    before, masks = np.asarray(state.masks["w"]), np.asarray(after.masks["w"])
    score = np.abs(np.asarray(params["w"]) * np.asarray(gradients["w"]))
    gone = before & ~masks
    assert gone.any()
    assert score[gone].max() <= score[before & masks].max()
    with pytest.raises(sparse.SparseError, match="give one to each entry"):
        sparse.rigl(optax.sgd(0.0), density=HALF, until=9, initial=lambda w, g, k: w[0]).init(params)


def test_parts_are_functions_and_methods_are_frozen():
    method = sparse.methods.rigl(density=HALF, until=100)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.every = 3
    assert list(inspect.signature(sparse.rigl).parameters)[:2] == ["inner", "density"]
    due = [bool(method.due(jnp.int32(step))) for step in (0, 99, 100, 200)]
    assert due == [False, False, False, False]
    due = sparse.methods.gradual(density=HALF, begin=2, end=6, every=2).due
    assert [bool(due(jnp.int32(step))) for step in range(9)] == [
        False,
        False,
        True,
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert float(sparse.cosine(0.4, 100)(jnp.int32(50))) == pytest.approx(0.2)
    assert sparse.cubic(10, 20)(jnp.arange(0, 31, 10)).tolist() == [0, 0, 1, 1]


def test_moments_may_be_kept():
    params = {"w": matrix((8, 8))}
    tx = METHODS["rigl"](optax.sgd(0.1, momentum=0.9), reset_moments=False)
    params, state = sparse.init(tx, params)
    for i in range(4):
        updates, state = tx.update(gradients_like(params, i), state, params)
        params = optax.apply_updates(params, updates)
        assert not np.asarray(params["w"])[~np.asarray(state.masks["w"])].any()
    assert np.asarray(state.inner[0].trace["w"])[~np.asarray(state.masks["w"])].any()


REFUSALS = {
    "no sparse leaf": (
        lambda: sparse.init(METHODS["rigl"](optax.sgd(0.1)), {"b": matrix((3,))}),
        "no leaf is sparse among b",
    ),
    "an empty tree": (lambda: sparse.init(METHODS["rigl"](optax.sgd(0.1)), {}), "no leaf is sparse among nothing"),
    "n of m": (
        lambda: sparse.init(METHODS["n of m"](optax.sgd(0.1)), {"w": matrix((6, 4))}),
        "w has 6 inputs, no multiple of 4",
    ),
    "another sparsity than n of m": (
        lambda: sparse.init(
            sparse.rigl(optax.sgd(0.1), density=sparse.uniform(0.9), until=9, structure=sparse.n_of_m(2, 4)),
            {"w": matrix((8, 4))},
        ),
        "2 of 4 is a sparsity of 0.5, 16 connections; ask for it",
    ),
    "fan in": (
        lambda: sparse.init(
            sparse.constant_fan_in(optax.sgd(0.1), density=sparse.uniform(0.95), until=9), {"w": matrix((4, 8))}
        ),
        "less than half a one each; use a lower sparsity",
    ),
    "a sparsity of 1": (lambda: sparse.uniform(1.0), "use a number in"),
    "too sparse": (
        lambda: sparse.init(sparse.static(optax.sgd(0.1), density=sparse.erdos_renyi(0.99)), {"w": matrix((4, 4))}),
        "use a lower one",
    ),
    "by path, none": (
        lambda: sparse.init(sparse.static(optax.sgd(0.1), density=sparse.by_path({"v": 0.5})), {"w": matrix((4, 4))}),
        "'v' is found in no path",
    ),
    "by path, no default": (
        lambda: sparse.init(
            sparse.static(optax.sgd(0.1), density=sparse.by_path({"v": 0.5})),
            {"v": matrix((4, 4)), "w": matrix((4, 4))},
        ),
        "no expression is found in 'w'",
    ),
    "other paths": (
        lambda: sparse.init(sparse.static(optax.sgd(0.1), density=sparse.connections({})), {"w": matrix((4, 4))}),
        "name the sparse leaves",
    ),
    "too many": (
        lambda: sparse.init(
            sparse.static(optax.sgd(0.1), density=sparse.connections({"w": 17})), {"w": matrix((4, 4))}
        ),
        "use 1 to 16",
    ),
    "a vector": (
        lambda: sparse.init(
            sparse.static(optax.sgd(0.1), density=HALF, where=lambda path, leaf: True), {"w": matrix((4,))}
        ),
        "leave it out by `where`",
    ),
    "equal paths": (
        lambda: sparse.init(
            sparse.static(optax.sgd(0.1), density=HALF), {"a/w": matrix((4, 4)), "a": {"w": matrix((8, 8))}}
        ),
        "two leaves are called a/w: rename one",
    ),
    "nothing in a matrix": (
        lambda: sparse.init(
            sparse.static(optax.sgd(0.1), density=HALF, where=lambda path, leaf: True), {"w": jnp.zeros((0, 4))}
        ),
        "w has the shape .0, 4.: leave it out by `where`",
    ),
    "a density that forgets": (
        lambda: sparse.init(sparse.static(optax.sgd(0.1), density=lambda shapes: {}), {"w": matrix((4, 4))}),
        "the density says nothing of w",
    ),
    "too late": (
        lambda: sparse.rigl(optax.sgd(0.1), density=HALF, until=3_000_000_000),
        "until=3000000000: use at most 2147483647",
    ),
    "a number for a density": (
        lambda: sparse.rigl(optax.sgd(0.1), density=0.9, until=9),  # type: ignore[arg-type]
        "density=0.9: give a function, such as sparse.erdos_renyi",
    ),
    "a number for a share": (lambda: sparse.static(optax.sgd(0.1), density=HALF, fraction=0.3), "sparse.constant"),
    "uneven pruning": (lambda: sparse.gradual(optax.sgd(0.1), density=HALF, end=10, every=3), "no multiple of every=3"),
    "times": (lambda: sparse.rigl(optax.sgd(0.1), density=HALF, until=0), "use a share in"),
    "3 of 2": (lambda: sparse.n_of_m(3, 2), "use 1 <= n <= m"),
    "not sparse": (
        lambda: sparse.masks_of(optax.adam(0.1).init({"w": matrix((4, 4))})),
        "nothing in this state is sparse",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_is_refused_with_the_mend(name):
    attempt, message = REFUSALS[name]
    with pytest.raises(sparse.SparseError, match=message) as refusal:
        attempt()
    assert "\n" not in str(refusal.value)


def test_trees_that_do_not_fit_are_refused():
    tx = METHODS["rigl"](optax.sgd(0.1))
    params, state = sparse.init(tx, {"w": matrix((8, 8))})
    other = {"v": matrix((8, 8))}
    with pytest.raises(sparse.SparseError, match="needs the parameters: call"):
        tx.update(params, state)
    for updates, those in ((other, other), (params, other), (other, params)):
        with pytest.raises(sparse.SparseError, match="not of one tree"):
            tx.update(updates, state, those)
    wide = {"w": matrix((8, 9))}
    with pytest.raises(sparse.SparseError, match="meets a gradient"):
        tx.update(wide, state, wide)
    with pytest.raises(sparse.SparseError, match="not the state of a sparse optimiser"):
        tx.update(params, optax.sgd(0.1).init(params), params)


def test_the_room_needs_jax_and_optax_alone():
    blocked = ("flax", "brax", "chex", "orbax", "absl", "tensorboardX", "rich", "matplotlib", "mujoco", "gymnasium")
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.split('.')[0] in {blocked}: raise ImportError(name)\n"
        "import jax, optax\n"
        "theirs = set(sys.modules)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import rlx2_jax.sparse\n"
        "ours = {m for m in set(sys.modules) - theirs if m.startswith('rlx2_jax')}\n"
        "print(sorted(m for m in ours if not m.startswith('rlx2_jax.sparse')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    loaded = ("rlx2_jax", *(f"rlx2_jax.{name}" for name in ("errors", "runtime", "runtime.limits", "runtime.native")))
    assert done.stdout.strip() == str([*loaded]), done.stderr
