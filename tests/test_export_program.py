"""Programs of policies: read off jaxprs, and made smaller without a loss."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rlx2_jax import policies
from rlx2_jax.config import Config, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.export import compaction, program, tracing
from rlx2_jax.networks.modules import Net, make
from rlx2_jax.networks.structure import nets

INPUTS, OUTPUTS = 11, 3


def sparse_network(name: str, seed: int, density: float, hidden: tuple[int, ...] = (24, 24)):
    """A function `[11]` to `[3]`: a network with random weights, most of them zero."""
    rng = np.random.default_rng(seed)
    net = Net(make(name, (*hidden, OUTPUTS), "uniform"))
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * (rng.random(x.shape) < (density if x.ndim == 2 else 1)), "f4"),
        net.init(jax.random.PRNGKey(0), INPUTS),
    )
    return lambda x: jnp.tanh(0.3 * net.apply(params, x))


def mixed(x: jax.Array) -> jax.Array:
    """Of about everything that a network may be made of; some of its units are constant, some are read by nothing."""
    weight = jnp.asarray([[1, 0, 0, 0, -1.0], [0, 0, 0, 0, 1], [0, 2, 0, 0, 0], [0, 0, 0, 0, 0]])
    y = jax.nn.elu(x @ weight + jnp.arange(5.0))
    z = jax.nn.silu(jax.nn.gelu(y)) * jax.nn.softmax(y)
    z = jnp.where(z > 0.1, z, -(z**3))
    z = jnp.where((z <= 0.2) & (z != 0.5) | ~(z < 3), z, jnp.sin(z) + jnp.cos(z[0]))
    parts = [z[::-1], jnp.clip(y[1:4], -1, 1), jax.nn.softplus(z[1:2]), jnp.minimum(x.mean(), 3.0)[None]]
    return jnp.concatenate([*parts, jax.nn.leaky_relu(x[::2]), jnp.sqrt(jnp.abs(y)), jnp.min(y)[None], jnp.sign(x)])


def deviation(program_: program.Program, function, seed: int = 0, samples: int = 20) -> float:
    xs = np.random.default_rng(seed).normal(size=(samples, program_[0].size)).astype(np.float32) * 3
    expected = np.asarray(jax.vmap(function)(xs))
    return max(float(np.abs(program.run(program_, x) - y).max()) for x, y in zip(xs, expected, strict=True))


@pytest.mark.parametrize(
    ("agent", "network"), [("td3", "mlp"), ("td3", "simba"), ("sac", "layernorm"), ("sac", "mlp"), ("droq", "mlp")]
)
def test_a_policys_program_acts_as_it_does(agent, network):
    config = resolve(Config(env="Hopper-v4", agent=agent, network=network, hidden=(16, 16)))
    params = nets(config, OUTPUTS)["actor"].init(jax.random.PRNGKey(0), INPUTS)
    policy = policies.Policy(params, policies.describe(config, 0, None, (INPUTS, OUTPUTS)))
    traced = tracing.trace(policy)
    assert traced[-1].size == OUTPUTS
    assert deviation(traced, policy.act) < 1e-6
    assert deviation(compaction.compact(traced), policy.act) < 1e-6


def test_a_perceptron_is_its_matrices_with_biases_and_what_lies_between():
    traced = tracing.program_of(sparse_network("mlp", 0, 0.5), INPUTS)
    assert [o.name for o in traced] == [
        *("input", "linear", "relu", "linear", "relu", "linear"),
        *("constant", "multiply", "tanh"),
    ]


def test_usual_operations_are_all_there():
    traced = tracing.program_of(mixed, 4)
    assert deviation(traced, mixed) < 2e-6
    assert deviation(compaction.compact(traced), mixed) < 2e-6


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    name=st.sampled_from(("mlp", "layernorm", "simba")),
    seed=st.integers(0, 2**31),
    density=st.sampled_from((0.0, 0.02, 0.05, 0.1, 0.3, 1.0)),
)
def test_compaction_changes_no_action_and_leaves_nothing_to_take(name, seed, density):
    function = sparse_network(name, seed, density)
    before = tracing.program_of(function, INPUTS)
    after = compaction.compact(before)
    assert deviation(after, function, seed) < 1e-5
    report = compaction.compare(before, after)
    assert report.after.connections <= report.before.connections
    assert all(small <= large for small, large in zip(report.after.widths, report.before.widths, strict=False))
    again = compaction.compact(after)
    assert program.connections(again) == program.connections(after)
    assert program.widths(again) == program.widths(after)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**31))
def test_no_unit_of_a_compact_perceptron_is_idle(seed):
    after = compaction.compact(tracing.program_of(sparse_network("mlp", seed, 0.08), INPUTS))
    linear = [o for o in after if o.name == "linear"]
    for operation in linear:
        assert (operation.weight != 0).any(0).all(), "a unit without connections into it"
    for operation in linear[1:]:
        assert (operation.weight != 0).any(1).all(), "a unit that nothing reads"


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**31), name=st.sampled_from(("mlp", "layernorm")))
def test_what_is_said_to_be_unread_changes_nothing(seed, name):
    function = sparse_network(name, seed, 0.06)
    before = tracing.program_of(function, INPUTS)
    unread = list(compaction.compare(before, compaction.compact(before)).unread)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, INPUTS)).astype(np.float32)
    other = x.copy()
    other[:, unread] = rng.normal(size=(20, len(unread))) * 100
    assert np.array_equal(function(x), function(other))


def test_units_go_for_each_reason_there_is():
    """Exact: one unit has nothing into it, one nothing out of it, and one a ReLU that cannot be reached."""
    first = jnp.asarray([[1.0, 0, 1, 1], [0, 0, 1, -1]])
    bias = jnp.asarray([0.0, 2, 0, 0])
    second = jnp.asarray([[1.0, -1], [3, 0], [0, 0], [1, -2]])
    third = jnp.asarray([[1.0], [5.0]])

    def function(x):
        hidden = jax.nn.relu(x @ first + bias)
        return jax.nn.relu(hidden @ second + jnp.asarray([0.5, -1.0])) @ third

    before = tracing.program_of(function, 2)
    after = compaction.compact(before)
    assert program.widths(after) == (2, 2, 1, 1)
    linear = [o for o in after if o.name == "linear"]
    np.testing.assert_array_equal(linear[0].weight, [[1, 1], [0, -1]])
    np.testing.assert_array_equal(linear[1].weight, [[1], [1]])
    np.testing.assert_array_equal(linear[1].bias, [0.5 + 3 * 2])
    report = compaction.compare(before, after)
    assert (report.before.connections, report.after.connections) == (12, 6)


def test_a_policy_that_always_does_the_same_is_a_constant():
    before = tracing.program_of(sparse_network("mlp", 0, 0.0), INPUTS)
    after = compaction.compact(before)
    assert [o.name for o in after] == ["input", "constant"]
    assert compaction.compare(before, after).unread == tuple(range(INPUTS))
    assert deviation(after, sparse_network("mlp", 0, 0.0)) < 1e-6


def test_actions_that_are_read_off_the_observation_are_a_program_too():
    swapped = tracing.program_of(lambda x: x[::-1], 4)
    np.testing.assert_array_equal(program.run(compaction.compact(swapped), np.arange(4)), [3, 2, 1, 0])
    same = tracing.program_of(lambda x: x, 4)
    np.testing.assert_array_equal(program.run(compaction.compact(same), np.arange(4)), np.arange(4))


def test_a_product_of_one_unit_may_have_an_offset_for_each_action():
    weight, offset = jnp.arange(3.0)[:, None], jnp.arange(4.0)
    function = lambda x: jnp.tanh(x @ weight + offset)
    found = tracing.program_of(function, 3)
    np.testing.assert_allclose(program.run(found, np.ones(3)), function(jnp.ones(3)), rtol=1e-6)


def test_a_number_as_a_boolean_is_whether_it_is_not_zero():
    function = lambda x: jnp.where(x.astype(bool), 2.0, x.astype(bool).astype(jnp.float32))
    found = tracing.program_of(function, 3)
    np.testing.assert_array_equal(program.run(found, np.array([0.5, 0.0, -1.7])), [2, 0, 2])


def test_what_is_computed_again_in_training_is_computed_once():
    function = jax.checkpoint(lambda x: jnp.tanh(x) + jnp.arange(3.0))
    found = tracing.program_of(function, 3)
    np.testing.assert_allclose(program.run(found, np.ones(3)), function(jnp.ones(3)), rtol=1e-6)


def test_a_constant_that_is_no_number_stays():
    function = lambda x: jnp.minimum(x, jnp.asarray([jnp.inf, 1.0, -jnp.inf, jnp.nan]))
    after = compaction.compact(tracing.program_of(function, 4))
    np.testing.assert_array_equal(program.run(after, np.arange(4)), function(jnp.arange(4.0)))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x[:3] * jnp.vdot(x, jnp.sin(x)), "both depend on the observation"),
        (lambda x: jnp.sort(x), "sort"),
        (lambda x: x.astype(jnp.int32).astype(jnp.float32), "a conversion from float32 to int32"),
        (lambda x: jnp.outer(x, x).sum(0), "repeating a vector"),
    ],
)
def test_what_no_program_can_hold_is_refused_in_a_sentence(function, said):
    with pytest.raises(ConfigError, match=said) as raised:
        tracing.program_of(function, INPUTS)
    assert "--format=jax" in str(raised.value)
    assert str(raised.value).count(".") <= 2
