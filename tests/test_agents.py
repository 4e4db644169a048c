"""TD3 and SAC: sparse at every step boundary, and with the targets and losses their papers say."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlx2_jax import networks
from rlx2_jax.agents import base, make_agent, own
from rlx2_jax.agents.td3 import TD3
from rlx2_jax.config import methods, registry, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.replay import buffer
from rlx2_jax.training import programs
from tests.conftest import (
    PAPER_AGENTS,
    assert_finite,
    assert_sparse,
    assert_zero_off_mask,
    links_of,
    operand_axes,
    random_batch,
    small,
)

O, A = 5, 2  # noqa: E741
KEY = jax.random.key(0)
BATCHES = random_batch(0, (4, 16), O, A)
ONE = base.tree_index(BATCHES, 0)


rewire = jax.jit(networks.Masked.evolve, static_argnames="reset_moments")
apply_gradients = jax.jit(networks.Masked.apply_gradients)


class Setup:
    """An agent of a configuration with its compiled functions; hyperparameters stay data."""

    def __init__(self, **changes):
        self.config = resolve(small(**changes))
        self.agent = make_agent(self.config, O, A)
        self.init = jax.jit(self.agent.init)
        self.updates = jax.jit(self.agent.updates)
        self.critic_gradient = jax.jit(functools.partial(self.agent.gradient, "critic"))
        self.actor_gradient = jax.jit(functools.partial(self.agent.gradient, "actor"))

    def hparams(self, **changes):
        """Hyperparameters of another method or sparsity, for the same compiled functions."""
        # Of narrower networks than the paper's: at its sparsities hardly a path would be left.
        changes = {"agent": self.config.agent, "actor_sparsity": 0.6, "critic_sparsity": 0.5} | changes
        return make_hparams(resolve(small(**changes)), O, A)

    def event(self, state, key, hparams, fraction):
        """The state after a topology event of both networks."""
        for name in ("critic", "actor"):
            gradient = getattr(self, f"{name}_gradient")(state, ONE, key, hparams, True)
            network, grow = getattr(state, name), hparams.grow_gradient
            evolved = rewire(network, gradient, key, fraction, grow, reset_moments=self.config.reset_moments)[0]
            state = state.replace(**{name: evolved})
        return state


setup = functools.cache(Setup)


def output_bias_gradient(gradient):
    """Of each critic: twice the mean of Q minus its target, which shows what the target is."""
    return gradient[max(gradient)]["bias"][..., 0]


def q_values(config, params, observation, action):
    """Both critics' values by the plain network."""
    net = networks.Net(networks.MLP((*config.hidden, 1)), twins=True)
    return net.apply(params, observation, action)[..., 0]


def squashed_sample(s, params, observation, key):
    """SAC's action and its log probability by the plain network."""
    head = networks.MLP((*s.config.hidden, 2 * A)).apply({"params": params}, observation)
    noise = jax.random.normal(key, (*observation.shape[:-1], A))
    return networks.sample_squashed(*networks.gaussian_head(head), noise)


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("name", PAPER_AGENTS)
def test_everything_is_zero_off_the_mask_after_init_updates_and_events(name, method):
    s = setup(agent=name)
    hparams = s.hparams(method=method)
    state = s.init(KEY, hparams)

    def check(state):
        assert_sparse(state.actor, hparams.actor_links)
        assert_sparse(state.critic, hparams.critic_links)
        assert_finite(state)

    check(state)
    for key in jax.random.split(KEY, 3):
        learned, metrics = s.updates(state, BATCHES, key, hparams, True)
        check(learned)
        assert_finite(metrics)
        moved = jax.tree.map(lambda a, b: (a != b).any(), learned.critic.params, state.critic.params)
        assert all(jax.tree.leaves(moved))
        state = s.event(learned, key, hparams, hparams.drop_fraction)
        check(state)
        fixed = methods.METHODS[method].topology == "fixed"
        for network in ("actor", "critic"):
            before, after = (masking.kernels(getattr(x, network).mask) for x in (learned, state))
            same = all((a == b).all() for a, b in zip(before, after, strict=True))
            assert same == fixed


@pytest.mark.parametrize("kind", ["magnitude", "random"])
def test_the_first_mask_is_by_magnitude_or_random_as_configured(kind):
    config = resolve(small(initial_mask=kind))
    dense = {"Dense_0": {"kernel": jnp.arange(-5.5, 6).reshape(3, 4), "bias": jnp.zeros(4)}}
    net = networks.Net(networks.MLP((4,)))
    network = base.create(KEY, dense, net, (jnp.int32(4),), jnp.int32(16), config, target=False)
    kernel = np.abs(network.params["Dense_0"]["kernel"])
    assert (kernel > 0).sum() == 4
    assert (set(kernel[kernel > 0]) == {5.5, 4.5}) == (kind == "magnitude")


RELEASE = {"reset_moments": False, "mask_initial_targets": False}


def test_release_keeps_the_moments_of_dropped_links_and_still_no_weight_off_the_mask():
    s = setup(**RELEASE)
    hparams = s.hparams()
    state, _ = s.updates(s.init(KEY, hparams), BATCHES, KEY, hparams, True)
    state = s.event(state, KEY, hparams, 0.5)
    for network in (state.actor, state.critic):
        stale = jax.tree.map(lambda x, m: x[~m], network.adam.mu, network.mask)
        assert any(np.asarray(leaf).any() for leaf in masking.kernels(stale))
    state, _ = s.updates(state, BATCHES, KEY, hparams, True)
    for network in (state.actor, state.critic):
        assert_zero_off_mask((network.params, network.target), (network.mask, network.mask))


def test_release_targets_are_dense_copies_until_the_first_polyak_step():
    s = setup(**RELEASE)
    hparams = s.hparams()
    state = s.init(KEY, hparams)
    for network in (state.actor, state.critic):
        for target, mask, weight in zip(
            *map(masking.kernels, (network.target, network.mask, network.params)), strict=True
        ):
            assert np.asarray(target)[~np.asarray(mask)].all()
            np.testing.assert_allclose(target[mask], weight[mask], rtol=1e-6)
    state, _ = s.updates(state, BATCHES, KEY, hparams, True)
    assert_sparse(state.actor, hparams.actor_links)
    assert_sparse(state.critic, hparams.critic_links)


@pytest.mark.parametrize("name", PAPER_AGENTS)
def test_tiny_is_a_really_narrow_network_within_the_shapes_of_the_full_one(name):
    s = setup(agent=name)
    hparams = s.hparams(method="tiny")
    state = s.init(KEY, hparams)
    state, _ = s.updates(state, BATCHES, KEY, hparams, True)
    observation = BATCHES.observation[0]
    width = int(hparams.critic_width)
    assert width < 16
    live = (O + A, width, width, 1)
    narrow = {
        layer: {
            "kernel": leaf["kernel"][:, : live[i], : live[i + 1]],
            "bias": leaf["bias"][:, : live[i + 1]],
        }
        for i, (layer, leaf) in enumerate(sorted(state.critic.params.items()))
    }
    net = networks.Net(networks.MLP((width, width, 1)), twins=True)
    inputs = jnp.concatenate([observation, BATCHES.action[0]], -1)
    np.testing.assert_allclose(
        net.apply(narrow, inputs)[..., 0],
        q_values(s.config, state.critic.params, observation, BATCHES.action[0]),
        rtol=1e-5,
        atol=1e-6,
    )
    for mask, rows, cols in zip(masking.kernels(state.critic.mask), live, live[1:], strict=False):
        block = np.zeros(mask.shape, bool)
        block[:, :rows, :cols] = True
        np.testing.assert_array_equal(mask, block)


def test_tiny_weights_have_the_spread_of_a_narrow_networks_initialisation():
    of_release, of_lecun = setup(), setup(kernel_init="lecun")
    hparams = of_lecun.hparams(method="tiny", critic_sparsity=0.8)
    width = int(hparams.critic_width)
    kernels = [masking.kernels(s.init(KEY, hparams).critic.params) for s in (of_release, of_lecun)]
    for uniform, normal, fan_in in zip(*kernels, (O + A, width, width), strict=True):
        largest = np.abs(uniform).max()
        assert 0.85 * fan_in**-0.5 < largest <= fan_in**-0.5 * (1 + 1e-6)
        live = np.asarray(normal)[np.asarray(normal) != 0]
        assert np.std(live) == pytest.approx(fan_in**-0.5, rel=0.35)


def test_orthogonal_weights_are_drawn_one_matrix_at_a_time_however_many_runs_there_are():
    """As ranks are (see test_diagnostics)."""
    twins = networks.Net(networks.MLP((4, 2), "orthogonal"), twins=True)
    init = jax.vmap(lambda key: twins.init(key, 3))
    keys = jax.random.split(jax.random.PRNGKey(0), 5)
    assert operand_axes("qr", init, keys) == [2, 2]
    # Those of a narrow network come from these.
    params = jax.eval_shape(init, keys)
    narrow = jax.vmap(lambda params, width: networks.restrict(params, width, "orthogonal"))
    assert operand_axes("svd", narrow, params, jnp.arange(5)) == [2, 2]


def test_tiny_kernels_of_sac_are_orthogonal_like_a_narrow_networks():
    s = setup(agent="sac")
    hparams = s.hparams(method="tiny")
    width = int(hparams.critic_width)
    live = (O + A, width, width, 1)
    for kernel, rows, cols in zip(masking.kernels(s.init(KEY, hparams).critic.params), live, live[1:], strict=False):
        for matrix in np.asarray(kernel)[:, :rows, :cols]:
            gram = matrix.T @ matrix if rows >= cols else matrix @ matrix.T
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_restricting_to_the_full_width_changes_nothing(agent):
    params = setup(agent=agent).init(KEY, setup().hparams(method="dense")).critic.params
    same = networks.restrict(params, jnp.int32(16), registry.find(agent).release_init)
    chex.assert_trees_all_close(same, params, rtol=1e-6, atol=1e-7)


def test_the_full_width_is_left_as_it_is_where_inputs_are_more_than_units():
    params = networks.Net(networks.MLP((8, 8, 1), "orthogonal")).init(KEY, 20)
    chex.assert_trees_all_equal(networks.restrict(params, jnp.int32(8), "orthogonal"), params)


def test_cycles_of_windows_without_steps_between_are_as_many():
    assert base.cycles(jnp.zeros((6, 5, 0, 3)), 2).shape == (3, 2, 5, 0, 3)


def test_descend_is_adam_on_the_masked_gradient():
    hparams = setup().hparams()
    network = setup().init(KEY, hparams).critic
    gradient = jax.tree.map(lambda x: jnp.cos(7 * x) + 0.1, network.params)
    adam = optax.adam(1e-3)
    update, expected, moments = jax.jit(adam.update), network.params, adam.init(network.params)
    for _ in range(3):
        network = apply_gradients(network, gradient, jnp.float32(1e-3))
        step, moments = update(masking.apply(gradient, network.mask), moments)
        expected = optax.apply_updates(expected, step)
    chex.assert_trees_all_close(network.params, expected, rtol=1e-5, atol=1e-7)


def test_polyak_moves_the_target_by_tau_on_the_mask():
    network = setup().init(KEY, setup().hparams()).critic
    target = jax.tree.map(lambda x: x + 1.0, network.target)
    moved = network.replace(target=target).polyak(jnp.float32(0.25)).target
    expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, target, network.params)
    chex.assert_trees_all_close(moved, masking.apply(expected, network.mask), rtol=1e-6)


def test_random_growth_depends_on_the_key_and_gradient_growth_does_not():
    s = setup()
    hparams = s.hparams()
    network = s.init(KEY, hparams).critic
    gradient = jax.tree.map(lambda x: jnp.cos(7 * x), network.params)
    for by_gradient in (False, True):
        one, other = (
            rewire(network, gradient, jax.random.key(seed), 0.5, jnp.asarray(by_gradient), reset_moments=True)
            for seed in (0, 1)
        )
        pairs = list(zip(masking.kernels(one[0].mask), masking.kernels(other[0].mask), strict=True))
        assert all((a == b).all() for a, b in pairs) == by_gradient


def test_evolve_counts_the_links_that_went_and_came():
    network = setup().init(KEY, setup().hparams()).critic
    gradient = jax.tree.map(lambda x: jnp.cos(7 * x), network.params)
    evolved, dropped, grown = rewire(network, gradient, KEY, 0.5, jnp.asarray(True), reset_moments=True)
    pairs = list(zip(masking.kernels(network.mask), masking.kernels(evolved.mask), strict=True))
    assert dropped == grown == sum(int((a & ~b).sum()) for a, b in pairs) > 0


def test_td3_bootstraps_from_the_lesser_critic_at_the_target_actors_action():
    s = setup()
    hparams = s.hparams().replace(target_noise=jnp.float32(0))
    state = s.init(KEY, hparams)
    state = state.replace(actor=state.actor.replace(target=jax.tree.map(lambda x: 2 * x, state.actor.params)))
    action = s.agent.mode(state.actor.replace(params=state.actor.target), ONE.next_observation)
    next_q = q_values(s.config, state.critic.target, ONE.next_observation, action).min(0)
    target = ONE.partial_return + ONE.bootstrap_discount * next_q
    error = q_values(s.config, state.critic.params, ONE.observation, ONE.action) - target
    found = output_bias_gradient(s.critic_gradient(state, ONE, KEY, hparams, True))
    np.testing.assert_allclose(found, (2 * error * ONE.weight).mean(-1), rtol=1e-4, atol=1e-6)


def assert_alike(found, expected):
    """Draws `[draws, ...]` of two samplers have one mean, entry by entry, within five standard errors."""

    def compare(x, y):
        error = np.sqrt((np.var(x, axis=0) + np.var(y, axis=0)) / len(x))
        assert (np.abs(np.mean(x, axis=0) - np.mean(y, axis=0)) <= 5 * error + 1e-6).all()

    jax.tree.map(lambda x, y: compare(np.asarray(x, float), np.asarray(y, float)), found, expected)


DRAWS = jax.random.split(jax.random.key(1), (2, 4000))
"""Keys of two samplers."""


def test_sac_bootstraps_from_the_lesser_critic_and_the_entropy_of_its_own_action():
    s = setup(agent="sac")
    hparams = s.hparams()
    state = s.init(KEY, hparams).replace(log_alpha=jnp.log(0.5))
    state = state.replace(critic=state.critic.replace(target=jax.tree.map(lambda x: 2 * x, state.critic.params)))

    def expected(key):
        action, log_prob = squashed_sample(s, state.actor.params, ONE.next_observation, key)
        next_q = q_values(s.config, state.critic.target, ONE.next_observation, action).min(0)
        target = ONE.partial_return + ONE.bootstrap_discount * (next_q - 0.5 * log_prob)
        error = q_values(s.config, state.critic.params, ONE.observation, ONE.action) - target
        return (2 * error * ONE.weight).mean(-1)

    found = lambda key: output_bias_gradient(s.critic_gradient(state, ONE, key, hparams, False))
    assert_alike(jax.vmap(found)(DRAWS[0]), jax.vmap(expected)(DRAWS[1]))


@pytest.mark.parametrize("name", PAPER_AGENTS)
def test_the_actor_climbs_the_value_of_its_own_action(name):
    """TD3's by the first critic; SAC's by the lesser one, with its entropy."""
    s = setup(agent=name)
    hparams = s.hparams()
    state = s.init(KEY, hparams)
    if name == "sac":
        state = state.replace(log_alpha=jnp.log(0.5))

    def loss(params, key):
        if name == "td3":
            action = s.agent.mode(state.actor.replace(params=params), ONE.observation)
            return -(ONE.weight * q_values(s.config, state.critic.params, ONE.observation, action)[0]).mean()
        action, log_prob = squashed_sample(s, params, ONE.observation, key)
        q = q_values(s.config, state.critic.params, ONE.observation, action).min(0)
        return (ONE.weight * (0.5 * log_prob - q)).mean()

    found = lambda key: s.actor_gradient(state, ONE, key, hparams, True)
    expected = lambda key: jax.grad(loss)(state.actor.params, key)
    if name == "td3":
        chex.assert_trees_all_close(found(KEY), expected(KEY), rtol=1e-4, atol=1e-6)
    else:
        assert_alike(jax.vmap(found)(DRAWS[0]), jax.vmap(expected)(DRAWS[1]))


def test_td3_clips_the_noise_of_its_target_action():
    s = setup()
    noise = lambda size, clip: output_bias_gradient(
        s.critic_gradient(
            state,
            ONE,
            KEY,
            hparams.replace(target_noise=jnp.float32(size), target_noise_clip=jnp.float32(clip)),
            True,
        )
    )
    hparams = s.hparams()
    state = s.init(KEY, hparams)
    np.testing.assert_array_equal(noise(5.0, 0.0), noise(0.0, 0.5))
    assert (noise(0.2, 0.5) != noise(0.0, 0.5)).any()


def test_td3_explores_around_its_mean_within_the_bounds():
    s = setup()
    hparams = s.hparams()
    state = s.init(KEY, hparams)
    observation = jnp.broadcast_to(BATCHES.observation[0, 0], (4000, O))
    quiet = s.agent.explore(state, observation, KEY, hparams.replace(explore_noise=jnp.float32(0)))
    np.testing.assert_array_equal(*quiet)
    action, mean = s.agent.explore(state, observation, KEY, hparams)
    np.testing.assert_allclose((action - mean).std(), 0.1, rtol=0.05)
    loud, _ = s.agent.explore(state, observation, KEY, hparams.replace(explore_noise=jnp.float32(9)))
    assert np.abs(loud).max() == 1


@pytest.mark.parametrize(("kind", "is_mean"), [("sample", False), ("mode", True)])
def test_sac_collects_samples_or_its_mode_as_configured(kind, is_mean):
    s = setup(agent="sac")
    hparams = s.hparams()
    state = s.init(KEY, hparams)
    agent = make_agent(resolve(small(agent="sac", sac_explore=kind)), O, A)
    action, mean = agent.explore(state, BATCHES.observation[0], KEY, hparams)
    np.testing.assert_array_equal(mean, agent.mode(state.actor, BATCHES.observation[0]))
    assert (np.abs(action) < 1).all()
    assert (action == mean).all() == is_mean


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.5)])
def test_the_squashed_gaussian_density_integrates_to_one(mean, log_std):
    # Even steps of the noise; the measure of each is the action it covers.
    noise = np.linspace(-8, 8, 20_001)[:, None].astype(np.float32)
    action, log_prob = networks.sample_squashed(jnp.float32([mean]), jnp.float32([log_std]), noise)
    density = np.exp(np.asarray(log_prob, float))
    raw = mean + np.exp(log_std) * noise.astype(float)[:, 0]
    np.testing.assert_allclose(action[:, 0], np.tanh(raw), atol=1e-6)
    assert np.isclose(np.trapezoid(density, np.tanh(raw)), 1, atol=1e-3)


def test_the_squashed_log_probability_is_the_change_of_variables():
    for seed in range(10):
        mean, log_std, noise = np.random.default_rng(seed).normal(scale=0.5, size=(3, A)).astype(np.float32)
        act = lambda z, mean=mean, log_std=log_std: networks.sample_squashed(mean, log_std, z)[0]
        determinant = jnp.linalg.slogdet(jax.jacfwd(act)(jnp.asarray(noise)))[1]
        gaussian = jax.scipy.stats.norm.logpdf(noise).sum()
        log_prob = networks.sample_squashed(mean, log_std, noise)[1]
        np.testing.assert_allclose(log_prob, gaussian - determinant, rtol=1e-4, atol=1e-4)


def test_the_squashed_log_probability_is_finite_far_out():
    log_prob = networks.sample_squashed(jnp.full(A, 60.0), jnp.full(A, 2.0), jnp.ones(A))[1]
    assert np.isfinite(log_prob)


def test_the_gaussian_heads_log_deviation_stays_within_its_bounds():
    mean, log_std = networks.gaussian_head(jnp.array([[3.0, -3.0, -99.0, 99.0]]))
    np.testing.assert_array_equal(mean, [[3, -3]])
    np.testing.assert_allclose(log_std, [[-5, 2]], atol=1e-5)


def one_step_windows():
    """A batch as replay gives it for windows of one step in a program that could hold three."""
    rows = 12
    step = lambda seed: base.tree_index(random_batch(seed, (1, 4), O, A), 0)
    memory = buffer.init(rows * 4, 4, 10, O, A)
    for seed in range(rows):
        b = step(seed)
        memory = buffer.add(
            memory,
            buffer.Step(
                observation=b.observation,
                action=b.action,
                mean=b.action,
                reward=b.partial_return,
                terminated=b.bootstrap_discount == 0,
                truncated=jnp.zeros(4, bool),
                finite=jnp.ones(4, bool),
                final_observation=step(seed + 1).observation,
            ),
            rows * 4,
        )
    return buffer.sample(memory, KEY, (16,), 1, 3, 0.99)


@pytest.mark.parametrize("name", PAPER_AGENTS)
def test_a_multi_step_target_of_one_step_is_the_one_step_target(name):
    s = setup(agent=name)
    hparams = s.hparams()
    state = s.init(KEY, hparams)
    batch = one_step_windows()
    one, multi = (s.critic_gradient(state, batch, KEY, hparams, m) for m in (False, True))
    chex.assert_trees_all_close(one, multi, rtol=1e-6)


def test_sac_adds_the_discounted_entropy_of_every_state_between_to_its_target():
    s = setup(agent="sac")
    hparams = s.hparams()
    state = s.init(KEY, hparams).replace(log_alpha=jnp.log(0.5))
    B, discount = 20_000, jnp.array([0.9, 0.7])
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (B, *x.shape[1:])), ONE)
    batch = batch.replace(between_discount=jnp.broadcast_to(discount, (B, 2)), weight=jnp.ones(B))
    one, multi = (output_bias_gradient(s.critic_gradient(state, batch, KEY, hparams, m)) for m in (False, True))
    head = networks.MLP((*s.config.hidden, 2 * A)).apply({"params": state.actor.params}, batch.between[0])
    noise = jax.random.normal(jax.random.key(1), (100_000, *batch.between.shape[1:2], A))
    entropy = -networks.sample_squashed(*networks.gaussian_head(head), noise)[1].mean(0)
    bonus = 0.5 * jnp.sum(discount * entropy)
    assert abs(bonus) > 0.1
    np.testing.assert_allclose((one - multi) / 2, [bonus, bonus], atol=0.03)


def test_sacs_temperature_falls_when_entropy_is_above_its_target_and_rises_below():
    s = setup(agent="sac")
    hparams = s.hparams()
    state = s.init(KEY, hparams)

    def alpha_after(log_std):
        """One update with a policy of the given log standard deviation (before its squash)."""
        layer = max(state.actor.params)
        head = {"kernel": 0 * state.actor.params[layer]["kernel"], "bias": jnp.float32([0, 0, log_std, log_std])}
        actor = state.actor.replace(params={**state.actor.params, layer: head})
        metrics = s.updates(state.replace(actor=actor), BATCHES, KEY, hparams, True)[1]
        return metrics["alpha"], metrics["entropy"]

    wide, close, narrow = alpha_after(0.5), alpha_after(-0.2), alpha_after(-2.0)
    assert wide[0] < 1 < narrow[0]
    assert close[0] < 1
    assert wide[1] > -0.5 * A > close[1] > -A > narrow[1]


@pytest.mark.parametrize("name", PAPER_AGENTS)
def test_transitions_of_weight_zero_teach_nothing(name):
    s = setup(agent=name)
    hparams = s.hparams()
    state = s.init(KEY, hparams)
    silent = ONE.weight == 0
    assert silent.any()
    other = ONE.replace(partial_return=jnp.where(silent, 1e3, ONE.partial_return))
    one, same = (s.critic_gradient(state, b, KEY, hparams, True) for b in (ONE, other))
    chex.assert_trees_all_equal(one, same)


def test_the_gradient_of_an_event_is_dense_where_weights_are_absent():
    s = setup()
    hparams = s.hparams()
    state = s.init(KEY, hparams)
    gradient = s.critic_gradient(state, ONE, KEY, hparams, True)
    absent = [g[~m] for g, m in zip(masking.kernels(gradient), masking.kernels(state.critic.mask), strict=True)]
    assert np.asarray(absent[0]).any()
    assert links_of(state.critic.mask)[0][0] < state.critic.params["Dense_0"]["kernel"][0].size


def test_a_loss_whose_shape_would_spread_over_the_batch_is_refused():
    """`[B, 1]` against `[B]` would be `[B, B]` without a word."""
    with pytest.raises(AssertionError, match=r"same shape|rank"):
        base.masked_mean(jnp.ones((4, 1)), jnp.ones(4))


class Alone(base.OffPolicyAgent):
    """An agent that says nothing."""


class Undecided(base.OffPolicyAgent):
    """An agent that has no losses."""

    defaults, passes, release_init = TD3.defaults, TD3.passes, TD3.release_init


class Single(TD3):
    """An agent that asks its first critic alone."""

    def value_of(self, output):
        return output[0, ..., 0]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("small", "is of type function; derive a class from rlx2_jax.agents.OffPolicyAgent"),
        ("Setup", "has no `defaults` of type Defaults"),
        ("Alone", "has no `defaults` of type Defaults"),
        ("Undecided", "lacks act, actor_loss, critic_loss, draw, explore; write what"),
    ],
)
def test_what_is_no_agent_is_refused_in_one_sentence(name, sentence):
    with pytest.raises(ConfigError, match=rf"^agent={__name__}:{name} {sentence}") as refused:
        resolve(small(agent=f"{__name__}:{name}"))
    assert "\n" not in str(refused.value)


def failing(self, *arguments):
    """A loss that cannot be computed."""
    return self.nowhere


def spread(self, *arguments):
    """A loss per transition."""
    return TD3.critic_loss(self, *arguments)[0] * jnp.ones(16), jnp.zeros(())


def alone(self, *arguments):
    """A loss without what else belongs to it."""
    return TD3.critic_loss(self, *arguments)[0]


FAULTS = {
    "fails": ("critic_loss", failing, "critic_loss raised AttributeError ('Made' object has no attribute 'nowhere')"),
    "spreads": ("critic_loss", spread, "critic_loss gives a loss of shape [16], not of shape []; take the mean"),
    "values": (
        "critic_loss",
        lambda *_: (jnp.zeros(()), jnp.zeros(16)),
        "critic_loss gives a mean value of shape [16],",
    ),
    "whole": ("actor_loss", lambda *_: (0, None), "actor_loss gives a loss of type int32; give a float"),
    "alone": ("critic_loss", alone, "critic_loss gives one thing, of shape []; give two, in a tuple"),
    "act": ("act", staticmethod(lambda output: output[..., :1]), "act gives actions of shape [4, 1], not of shape [4,"),
    "explore": ("explore", lambda self, state, seen, key, hparams: (seen, seen), "explore gives actions of shape [4, "),
    "draw": ("draw", lambda self, key, batches: jnp.zeros(3), "draw gives noise of shape [3], not of shape [4]"),
    "state": ("after_actor", lambda self, state, *_: (state.actor, {}), "after_actor gives another kind of state"),
    "metric": ("after_actor", lambda self, state, *_: (state, {"x": jnp.ones(2)}), "after_actor gives a metric x of"),
    "no metrics": ("after_actor", lambda self, state, *_: (state, None), "after_actor gives metrics that are no"),
    "listed": ("after_actor", lambda self, state, *_: (state, [jnp.ones(())]), "after_actor gives metrics that are no"),
    "begun": ("begin", lambda self, actor, critic: {"actor": actor}, "begin gives no AgentState"),
    "worth": ("value_of", lambda self, output: output[..., 0], "value_of gives values of shape [2, 4], not of shape"),
}


@pytest.mark.parametrize(("method", "function", "sentence"), FAULTS.values(), ids=FAULTS)
def test_what_an_agent_gives_amiss_is_told_in_one_sentence_before_anything_compiles(
    method, function, sentence, monkeypatch
):
    monkeypatch.setitem(globals(), "Made", type("Made", (TD3,), {method: function}))
    config = resolve(small(agent=f"{__name__}:Made"))
    with pytest.raises(ConfigError, match=re.escape(f"agent={config.agent}: its {sentence}")) as refused:
        own.check(make_agent(config, O, A), make_hparams(config, O, A))
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_an_agent_of_ones_own_is_looked_at_when_its_program_is_made(monkeypatch):
    monkeypatch.setitem(globals(), "Made", type("Made", (TD3,), {"critic_loss": spread}))
    with pytest.raises(ConfigError, match="take the mean over the batch"):
        programs.make_program(small(agent=f"{__name__}:Made"))


@pytest.mark.parametrize("compute", ["masked", "packed"])
@pytest.mark.parametrize("agent", registry.AGENTS)
def test_the_packages_own_agents_give_what_an_agent_should(agent, compute):
    devices = 1 if agent == "droq" else 2
    config = resolve(small(agent=agent, compute=compute, data_parallel=devices))
    if agent != "droq" or compute == "masked":
        own.check(make_agent(config, O, A), make_hparams(config, O, A))


def test_an_agent_is_looked_at_by_the_usual_rules_of_arithmetic_and_with_keys_of_any_kind():
    config = resolve(small(agent="td3"))
    agent, hparams = make_agent(config, O, A), make_hparams(config, O, A)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.default_prng_impl("rbg"):
        own.check(agent, hparams)


def test_an_agent_says_itself_what_its_critics_find_an_action_worth():
    output = jnp.array([[[2.0], [5.0]], [[3.0], [4.0]]])
    usual, single = (make_agent(resolve(small(agent=name)), O, A) for name in ("td3", f"{__name__}:Single"))
    np.testing.assert_array_equal(usual.value_of(output), [2, 4])
    np.testing.assert_array_equal(single.value_of(output), [2, 5])
