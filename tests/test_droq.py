"""DroQ: SAC whose critics leave out units, learn many times per step, and whose targets follow every time."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import networks
from rlx2_jax.agents import base, make_agent
from rlx2_jax.agents.droq import DROPOUT
from rlx2_jax.config import resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks.structure import make_hparams
from rlx2_jax.training import train
from tests.conftest import assert_finite, assert_sparse, random_batch, small

O, A = 5, 2  # noqa: E741
KEY = jax.random.PRNGKey(0)
TRUE = jnp.asarray(True)


def setup(**changes):
    """An agent, hyperparameters and a fresh state."""
    config = resolve(small(**({"agent": "droq", "actor_sparsity": 0.6, "critic_sparsity": 0.5} | changes)))
    agent, hparams = make_agent(config, O, A), make_hparams(config, O, A)
    return agent, hparams, jax.jit(agent.init)(KEY, hparams)


def test_it_updates_twenty_times_per_step_and_its_actor_once():
    config = resolve(small(agent="droq"))
    assert (config.update_ratio, config.policy_delay) == (20, 20)
    assert config.updates_per_iteration == 20 * config.num_envs


@pytest.mark.parametrize("delay", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_targets_follow_after_every_critic_update(delay):
    """A loop of updates, and updates written out one after the other."""
    agent, hparams, state = setup(policy_delay=delay, update_ratio=2.0)
    batches = random_batch(0, (delay, 16), O, A)
    done, metrics = jax.jit(agent.updates)(state, batches, KEY, hparams, TRUE)
    noises, critic, tau = agent.draw(KEY, batches), state.critic, hparams.tau
    now = base.Now(hparams, TRUE, None)

    @jax.jit
    def one_update(critic, inputs):
        loss = lambda params: agent.critic_loss(params, state.replace(critic=critic), *inputs, now)
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(critic.params)
        return critic.apply_gradients(gradient, hparams.critic_lr).polyak(tau), value

    losses = []
    for i in range(delay):
        critic, value = one_update(critic, base.tree_index((batches, noises), i))
        losses.append(float(value))
    for ours, plain in zip(*map(jax.tree.leaves, (done.critic.target, critic.target)), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-6)
    assert float(metrics["critic_loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    for network, links in ((done.actor, hparams.actor_links), (done.critic, hparams.critic_links)):
        assert_sparse(network, links)
    assert_finite(done)


def test_units_are_left_out_where_critics_learn_and_nowhere_else():
    agent, _, state = setup(hidden=(256, 256))
    batch = random_batch(0, (64,), O, A)
    values = [
        agent.q(state.critic.params, state, batch, agent.draw(jax.random.PRNGKey(seed), batch)) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).mean() > 0.9
    same = [agent.mode(state.actor, batch.observation) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    net = state.critic.net
    assert net.module.dropout == DROPOUT and net.module.normalised and not net.packable
    plain = networks.Net(networks.MLP((256, 256, 1), "orthogonal", normalised=True), twins=True)
    whole = plain.apply(state.critic.params, batch.observation, batch.action)[..., 0]
    np.testing.assert_allclose(state.critic.apply(state.critic.params, batch.observation, batch.action)[..., 0], whole)
    # A hundredth of the units is left out, and others are stretched: small changes, of both signs.
    assert np.abs(np.mean(values[0] - whole)) < 0.3 * np.std(whole)


def test_units_are_left_out_alike_whatever_kind_of_key_a_process_makes():
    agent, _, state = setup()
    batch = random_batch(0, (64,), O, A)
    noise = agent.draw(KEY, batch)
    usual = agent.q(state.critic.params, state, batch, noise)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(agent.q(state.critic.params, state, batch, noise), usual)


def test_the_actor_climbs_the_mean_of_both_critics():
    agent, hparams, state = setup()
    batch = random_batch(0, (16,), O, A)
    noise = agent.draw(KEY, batch)

    def loss(params):
        head = networks.gaussian_head(state.actor.apply(params, batch.observation))
        action, log_prob = networks.sample_squashed(*head, noise.policy)
        q = state.critic.apply(state.critic.params, batch.observation, action)[..., 0].mean(0)
        return base.masked_mean(log_prob - q, batch.weight)

    expected = jax.jit(jax.grad(loss))(state.actor.params)
    found = jax.jit(functools.partial(agent.gradient, "actor"))(state, batch, KEY, hparams, TRUE)
    for ours, plain in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-6)


def test_several_devices_are_refused():
    with pytest.raises(ConfigError, match="droq trains on one device"):
        setup(data_parallel=2)


@pytest.mark.slow
def test_droq_learns_inverted_pendulum(tmp_path):
    """With four updates of each network per step; most often within two thousand steps, where the run then ends."""
    config = small(
        env="InvertedPendulum-v4",
        agent="droq",
        hidden=(64, 64),
        batch_size=32,
        num_envs=5,
        episode_length=1000,
        total_steps=6000,
        warmup_steps=500,
        update_ratio=4.0,
        policy_delay=1,
        actor_lr=3e-3,
        critic_lr=3e-3,
        alpha_lr=1e-2,
        tau=0.02,
        gamma=0.98,
        evolve_interval=250,
        eval_every=500,
        eval_episodes=10,
        chunk_steps=500,
        buffer_max=6000,
        buffer_min=1000,
    )

    def stop_once_learned(rows):
        if rows[-1]["return_mean"] >= 950:
            signal.raise_signal(signal.SIGTERM)

    result = train(config, tmp_path, show_progress=False, on_report=stop_once_learned)
    assert result.summary["best"] >= 950
    assert result.rows[-1]["critic_sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert all(row["links_grown"] > 0 for row in result.rows[1:])
