"""Networks: those by name, one of one's own, and that masks, forms, files and diagnostics follow their parameters."""

import dataclasses
import functools
import re
import types
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rlx2_jax import networks, policies
from rlx2_jax.agents import make_agent
from rlx2_jax.config import registry, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import make_hparams, nets, orders, structure, templates
from rlx2_jax.policies import history, tickets
from rlx2_jax.training import compute, programs, recorded, train
from rlx2_jax.viz import masks, page, rollout
from tests.conftest import TD3_THEN_SAC, assert_sparse, random_batch, small

KEY = jax.random.PRNGKey(0)
SPARSE = {"actor_sparsity": 0.6, "critic_sparsity": 0.5}


class Gated(nn.Module):
    """A network whose layers have names of their own, one inside another."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        *hidden, outputs = self.features
        for i, width in enumerate(hidden):
            gate = nn.sigmoid(nn.Dense(width, name=f"gate_{i}")(x))
            x = gate * nn.Dense(width, name=f"body_{i}")(x)
        return nn.Dense(outputs, name="head")(x)


def gated(features, initial):
    """As a person writes it: the way that weights begin is left to Flax."""
    del initial
    return Gated(features)


OWN = f"{__name__}:gated"


@pytest.mark.parametrize("network", [*registry.NETWORKS, OWN])
@pytest.mark.parametrize("agent", TD3_THEN_SAC)
def test_any_network_is_sparse_after_init_updates_and_events(network, agent):
    config = resolve(small(network=network, agent=agent, **SPARSE))
    made, hparams = make_agent(config, 5, 2), make_hparams(config, 5, 2)
    state = jax.jit(made.init)(KEY, hparams)
    batches = random_batch(0, (2, 16), 5, 2)
    state, metrics = jax.jit(made.updates)(state, batches, KEY, hparams, True)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(metrics))

    @functools.partial(jax.jit, static_argnames="name")
    def event(state, name):
        batch = jax.tree.map(lambda x: x[0], batches)
        gradient = made.gradient(name, state, batch, KEY, hparams, jnp.asarray(True))
        network = getattr(state, name)
        return network.evolve(gradient, KEY, jnp.float32(0.5), jnp.asarray(True), reset_moments=True)

    for name in ("actor", "critic"):
        before = getattr(state, name)
        after, dropped, grown = event(state, name)
        assert dropped == grown > 0
        counts = structure(config, 5, 2)[name].links
        for found in (before, after):
            assert_sparse(found, counts)


def test_paths_decide_the_order_of_matrices_not_the_order_of_letters():
    tree = {f"Dense_{i}": {"kernel": jnp.full((2, 2), i), "bias": jnp.zeros(2)} for i in range(12)}
    assert [int(kernel[0, 0]) for kernel in masking.kernels(tree)] == list(range(12))
    assert masking.paths({"b": {"kernel": 0}, "a": {"c": {"kernel": 0}, "kernel_2": 0}}) == ["a/c/kernel", "b/kernel"]


@pytest.mark.parametrize("network", ["mlp", "layernorm", "simba", OWN])
@pytest.mark.parametrize("twins", [False, True])
def test_activations_are_what_each_later_matrix_reads(network, twins):
    net = networks.Net(networks.make(network, (8, 8, 3), "uniform"), twins=twins)
    params, x = jax.jit(net.init, static_argnums=1)(KEY, 5), jax.random.normal(KEY, (7, 5))
    hidden, output = jax.jit(net.activations)(params, x)
    np.testing.assert_allclose(output, jax.jit(net.apply)(params, x), rtol=1e-5, atol=1e-6)
    read = [kernel.shape[-2] for kernel in masking.kernels(params)]
    assert sorted(layer.shape[-1] for layer in hidden) == sorted(read[1:])
    assert all(layer.shape[:-1] == ((2, 7) if twins else (7,)) for layer in hidden)


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "which"), [("td3", "critic_network"), ("td3", "network"), ("sac", "network")])
def test_normalised_networks_learn_packed_what_they_learn_masked(agent, which):
    config = small(**{which: "layernorm"}, agent=agent, **SPARSE)
    states = []
    for way in ("masked", "packed"):
        program = programs.make_program(dataclasses.replace(config, compute=way))
        state = jax.jit(program.init)(KEY, program.hparams)
        chunk, renew = jax.jit(program.chunk), jax.jit(program.renew)
        for _ in range(2):
            state = chunk(renew(state), program.hparams, program.schedule)
        states.append(jax.jit(programs.unpack)(state))
    masked, packed = states
    assert masked.tally.links_grown > 0
    for name in ("actor", "critic"):
        ours, theirs = getattr(packed.agent, name), getattr(masked.agent, name)
        chex.assert_trees_all_equal(ours.mask, theirs.mask)
        chex.assert_trees_all_close(ours.params, theirs.params, rtol=2e-3, atol=5e-4)


def test_critics_may_be_another_network_than_the_actor():
    shapes = templates(resolve(small(critic_network="layernorm")), 5, 2)
    assert "LayerNorm_0" in shapes["critic"] and "LayerNorm_0" not in shapes["actor"]
    same = templates(resolve(small(network="layernorm")), 5, 2)
    assert jax.tree.structure(shapes["critic"]) == jax.tree.structure(same["critic"])
    assert resolve(small(critic_network="layernorm")).critic_network == "layernorm"
    assert resolve(small(network="layernorm")).networks == "layernorm"


def test_what_has_no_packed_form_is_computed_masked_and_says_so():
    lines = []
    assert compute.choose(resolve(small(critic_network="simba", compute="auto")), lines.append).compute == "masked"
    assert "no packed form of td3 with mlp and simba networks" in lines.pop()
    config = resolve(small(network="simba", compute="auto"))
    assert compute.choose(config, lines.append).compute == "masked"
    assert "no packed form of td3 with simba networks" in lines[0]


def test_packed_compute_of_what_has_no_packed_form_is_refused():
    with pytest.raises(ConfigError, match=r"compute=packed has no form of td3 with network=simba; use compute=masked"):
        programs.make_program(small(network="simba", compute="packed"))


@pytest.mark.slow
def test_a_run_with_a_network_of_ones_own_leaves_files_that_load(tmp_path):
    config = small(network=OWN, **SPARSE)
    result = train(config, tmp_path / "run", show_progress=False)
    policy = policies.load(tmp_path / "run")
    chex.assert_trees_all_equal(policy.params, jax.device_get(result.policy.params))
    assert set(policy.params) == {"gate_0", "body_0", "gate_1", "body_1", "head"}
    assert policy.act(np.zeros((3, 1), np.float32)).shape == (3, 1)
    found = tickets.load(tmp_path / "run")
    assert masking.paths(found.final["critic"]) == masking.paths(nets(resolve(config), 1)["critic"].init(KEY, 2))
    begun = train(small(network=OWN, ticket=str(tmp_path / "run"), seed=1, **SPARSE), show_progress=False)
    assert begun.finished and begun.rows[0]["actor_sparsity"] == pytest.approx(0.6, abs=0.02)
    assert all(np.isfinite([row["critic_dormant"], row["critic_rank"]]).all() for row in result.rows)


def test_accounting_counts_the_scales_of_normalisation_among_what_is_dense():
    plain, normalised = (structure(resolve(small(network=n)), 5, 2)["critic"] for n in ("mlp", "layernorm"))
    assert normalised.links == plain.links
    assert normalised.others - plain.others == 2 * (16 + 16)


class Tanh(networks.MLP):
    """A perceptron that computes something else."""

    @nn.compact
    def __call__(self, x):
        for width in self.features[:-1]:
            x = jnp.tanh(nn.Dense(width)(x))
        return nn.Dense(self.features[-1])(x)


def tanh(features, initial):
    """As a person writes it who begins with what is there."""
    return Tanh(features, initial)


def test_what_derives_from_a_perceptron_is_not_taken_for_one(tmp_path):
    config = resolve(small(network=f"{__name__}:tanh", compute="auto", **SPARSE))
    for net in nets(config, 2).values():
        assert not (net.packable or net.plain or net.normalised)
    assert compute.choose(config, lambda line: None, tmp_path / "compute.json").compute == "masked"
    with pytest.raises(ConfigError, match="method=tiny is a narrower mlp"):
        programs.make_program(small(network=f"{__name__}:tanh", method="tiny"))


class General(nn.Module):
    """Layers that are no `nn.Dense`."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.features[:-1]:
            x = nn.relu(nn.DenseGeneral(width)(x))
        return nn.DenseGeneral(self.features[-1])(x)


def test_what_a_matrix_reads_is_seen_whatever_layer_it_is_of():
    net, plain = networks.Net(General((8, 6, 1))), networks.Net(networks.MLP((8, 6, 1)))
    params, x = net.init(KEY, 4), jax.random.normal(KEY, (3, 4))
    renamed = {name.replace("DenseGeneral", "Dense"): leaves for name, leaves in params.items()}
    chex.assert_trees_all_close(net.activations(params, x), plain.activations(renamed, x))


class Backwards(nn.Module):
    """Layers whose names do not stand in their order, each of which reads the observation."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        h = x
        for i, width in enumerate(self.features[:-1]):
            h = jnp.concatenate([nn.relu(nn.Dense(width, name=f"layer_{9 - i}")(h)), x], -1)
        return nn.Dense(self.features[-1], name="end")(h)


def backwards(features, initial):
    """As a person writes it."""
    del initial
    return Backwards(features)


def test_layers_in_any_order_are_trained_reported_and_drawn(tmp_path):
    result = train(small(network=f"{__name__}:backwards", **SPARSE), tmp_path, show_progress=False)
    assert result.finished and 0 <= result.rows[-1]["critic_dead"] <= 1
    found = history.load(tmp_path)
    for figure in (masks.draw_inputs(found, result.policy), masks.draw_layers(found), masks.draw_strip(found, "actor")):
        assert figure.axes


def alone(features, initial):
    """A matrix without a hidden layer."""
    del initial
    return nn.Dense(features[-1])


class Tied(nn.Module):
    """A matrix that is used twice."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        again = nn.Dense(self.features[0])
        return nn.Dense(self.features[-1])(again(again(nn.Dense(self.features[0])(x))))


def tied(features, initial):
    """As a person writes it."""
    del initial
    return Tied(features)


def flat(features, initial):
    """No matrix in it."""
    del initial
    return nn.LayerNorm()


class Named(nn.Module):
    """A perceptron whose last layer has the first name."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width, name in zip(self.features[:-1], ("torso", "middle"), strict=True):
            x = nn.relu(nn.Dense(width, name=name)(x))
        return nn.Dense(self.features[-1], name="head")(x)


def named(features, initial):
    """As a person writes it."""
    del initial
    return Named(features)


def test_layers_are_told_in_the_order_of_their_calls_whatever_their_names(tmp_path):
    """In columns, in masks over training and in pictures; files keep the order of names."""
    c = small(network=f"{__name__}:named", hidden=(16, 12), **SPARSE)
    result = train(c, tmp_path, show_progress=False)
    assert orders(c, *result.policy.sizes) == {"actor": (2, 1, 0), "critic": (2, 1, 0)}
    found = history.load(tmp_path)
    observations, actions = result.policy.sizes
    first, middle, last = found.masks(-1, "actor")
    assert [mask.shape for mask in (first, middle, last)] == [(observations, 16), (16, 12), (12, actions)]
    into = np.concatenate([first.sum(0), middle.sum(0)])
    assert (result.rows[-1]["actor_fan_in_min"], result.rows[-1]["actor_fan_in_max"]) == (into.min(), into.max())
    weights = result.policy.params["torso"]["kernel"]
    np.testing.assert_array_equal(np.asarray(weights) != 0, first)
    figure = masks.draw_inputs(found, result.policy)
    (bars,) = [axis for axis in figure.axes if axis.get_title() == "sum of |w|, actor"]
    assert sum(bar.get_width() for bar in bars.patches) == pytest.approx(np.abs(weights).sum(), rel=1e-5)
    html = page.page(recorded.read(tmp_path)).decode()
    rows = re.findall(r"<th[^>]*>actor, layer (\d)</th><td[^>]*>(\d+) → (\d+)</td>", html)
    assert rows == [("1", f"{observations}", "16"), ("2", "16", "12"), ("3", "12", f"{actions}")]
    assert [shape for shape, _ in rollout.links_per_matrix(result.policy)] == [
        (observations, 16),
        (16, 12),
        (12, actions),
    ]
    layers = masks.draw_strip(found, "actor")
    assert f"layer 3 of 3, 12 x {actions}" in " ".join(axis.get_title() for axis in layers.axes)


class Holding(nn.Module):
    """A layer that holds a matrix, and another layer."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features[0]))
        return nn.Dense(self.features[-1])(nn.relu(x @ kernel))


class Twice(nn.Module):
    """A layer that is called twice where parameters are made."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features[-1])(nn.relu(nn.WeightNorm(nn.Dense(self.features[0], name="first"))(x)))


class Remade(nn.Module):
    """Layers that are computed again on the way back."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(nn.Dense)
        return layer(self.features[-1], name="a")(nn.relu(layer(self.features[0], name="b")(x)))


@pytest.mark.parametrize(
    ("module", "calls"), [(Holding, ["", "Dense_0"]), (Twice, ["first", "Dense_0"]), (Remade, ["b", "a"])]
)
def test_calls_are_in_their_order_and_each_once(module, calls):
    net = networks.Net(module((8, 2)))
    assert net.calls(net.init(KEY, 4), 4) == calls


class Loose(nn.Module):
    """A matrix that is no kernel."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.features[0])(x))
        x = x @ self.param("mixing", nn.initializers.lecun_normal(), (self.features[0], self.features[0]))
        return nn.Dense(self.features[-1])(nn.relu(nn.Dense(self.features[0])(x)))


class Counting(nn.Module):
    """Statistics of batches."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        hidden = nn.BatchNorm(use_running_average=False)(nn.Dense(self.features[0])(x))
        return nn.Dense(self.features[-1])(nn.relu(hidden))


class Dropping(nn.Module):
    """Dropout without a key."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dropout(0.5, deterministic=False)(nn.Dense(self.features[0])(x))
        return nn.Dense(self.features[-1])(nn.relu(hidden))


class Wide(nn.Module):
    """One output more than there should be."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features[-1] + 1)(nn.relu(nn.Dense(self.features[0])(x)))


def loose(features, initial):
    """As a person writes it."""
    del initial
    return Loose(features)


def counting(features, initial):
    """As a person writes it."""
    del initial
    return Counting(features)


def dropping(features, initial):
    """As a person writes it."""
    del initial
    return Dropping(features)


def wide(features, initial):
    """As a person writes it."""
    del initial
    return Wide(features)


def listed(features, initial):
    """With a list for a field."""
    del initial
    return nn.Sequential([nn.Dense(features[0]), nn.relu, nn.Dense(features[-1])])


class Half(nn.Module):
    """In half precision: what it computes, or what it keeps as well."""

    features: tuple[int, ...]
    kept: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.features[0], dtype=jnp.bfloat16, param_dtype=self.kept)(x))
        return nn.Dense(self.features[-1], dtype=jnp.bfloat16, param_dtype=self.kept)(x)


def rounded(features, initial):
    """With parameters in half precision."""
    del initial
    return Half(features, jnp.bfloat16)


@pytest.mark.parametrize("twins", [False, True])
def test_what_a_network_in_half_precision_computes_is_handed_on_in_single(twins):
    net = networks.Net(Half((8, 2)), twins)
    params = net.init(jax.random.PRNGKey(0), 3)
    x = jax.random.normal(jax.random.PRNGKey(1), (4, 3))
    hidden, output = net.activations(params, x)
    assert net.apply(params, x).dtype == output.dtype == jnp.float32
    assert [layer.dtype for layer in hidden] == [jnp.float32]


def broken(features, initial):
    """With a fault of its own."""
    del initial
    return Wide(features + 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": f"{__name__}:loose"}, r"matrix mixing of shape \[16, 16\] would stay dense; call it `kernel`"),
        ({"network": f"{__name__}:counting"}, "Counting raised ScopeCollectionNotFound .*without statistics"),
        ({"network": f"{__name__}:dropping"}, "Dropping raised InvalidRngError"),
        ({"network": f"{__name__}:rounded"}, "parameter Dense_0/bias is bfloat16; keep parameters in float32"),
        ({"network": f"{__name__}:wide"}, "gives the actor 2 outputs, not 1"),
        ({"network": f"{__name__}:listed"}, "has a list or an array among the fields of its Sequential"),
        ({"network": f"{__name__}:broken"}, "making it raised TypeError"),
        ({"network": "resnet"}, "unknown network 'resnet'; valid: layernorm, mlp, simba, or package.module:function"),
        ({"network": "nowhere:at_all"}, r"No module named 'nowhere'\); write package\.module:function"),
        ({"network": f"{__name__}:absent"}, r"cannot be imported: .*; write package\.module:function"),
        ({"network": f"{__name__}:small"}, "too many positional arguments; write a function of"),
        ({"network": f"{__name__}:flat"}, "give it matrices"),
        ({"network": f"{__name__}:alone"}, "1 matrices, of which 0 read hidden units; give it at least one"),
        ({"network": f"{__name__}:tied"}, "3 matrices, of which 3 read hidden units; give it at least one"),
        ({"network": "simba", "hidden": (16, 8)}, "name one width for all"),
        ({"network": "layernorm", "method": "tiny"}, "method=tiny is a narrower mlp"),
        ({"critic_network": "layernorm", "method": "tiny"}, "which the critic of agent=td3 with network=layernorm"),
        ({"critic_network": "resnet"}, "unknown critic_network 'resnet'; valid: layernorm, mlp, simba, or"),
        ({"agent": "droq", "network": "simba"}, "use --network=mlp or layernorm"),
        ({"agent": "nowhere:Agent"}, r"cannot be imported: .*; write package\.module:Class"),
    ],
)
def test_networks_that_cannot_be_are_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as refused:
        programs.make_program(small(**changes))
    assert "\n" not in str(refused.value)


def none(features, initial):
    """No network."""
    return types.SimpleNamespace(features=features, initial=initial)


def test_a_module_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"made a SimpleNamespace; return a flax\.linen module"):
        networks.make(f"{__name__}:none", (4, 1), "uniform")
