"""SAC (Haarnoja et al., 2018) on sparse networks, with RLx2's multi-step targets and a learned temperature.

One update, on a batch (s, a, R, discount, s') spanning n steps, with the states s_k inside the window:

    a' ~ pi(s'),  a_k ~ pi(s_k)
    y  = R + sum_k gamma^(k+1) (-alpha log pi(a_k | s_k)) + discount * (min_i Q'_i(s', a') - alpha log pi(a' | s'))
    each Q_i: one Adam step on mean (Q_i(s, a) - y)^2
    pi: one Adam step on mean alpha log pi(a | s) - min_i Q_i(s, a),  a ~ pi(s)
    log alpha: one Adam step on mean -log_alpha (log pi(a | s) + target entropy), target entropy -dim A
    targets: theta' <- theta' + tau (theta - theta')

Gradients are dense and used on the mask only; see `base`. The release multiplies mean and log standard deviation of
the Gaussian by the action bound; here the bound is 1, so there is nothing to choose.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax import kernels
from rlx2_jax.agents import base, networks
from rlx2_jax.config import Config, HParams
from rlx2_jax.replay.buffer import Batch
from rlx2_jax.runtime.devices import Share


class Noise(NamedTuple):
    """Standard normal noise of the actions that an update draws."""

    next: jax.Array
    """`[..., B, A]`, after the window."""
    between: jax.Array
    """`[..., B, n - 1, A]`, inside it."""
    policy: jax.Array
    """`[..., B, A]`, of the actor's own step."""


def make_sac(config: Config, observation_size: int, action_size: int, ticket: base.Found | None = None) -> base.Agent:
    """SAC's functions for a resolved configuration and an environment's sizes."""
    sizes = networks.actor_sizes("sac", observation_size, action_size, config.hidden)
    initial = networks.initial_of("sac", config.kernel_init)
    actor_net = networks.MLP(sizes[1:], initial)
    critic_net = networks.TwinMLP(networks.critic_sizes(observation_size, action_size, config.hidden)[1:], initial)
    target_entropy = -float(action_size)
    delay = config.delay
    share = Share(config.data_parallel)

    def outputs(actor: base.SparseNetwork, observation: jax.Array) -> jax.Array:
        return networks.forward(actor_net, actor.params, actor.mask, observation)

    def mode(actor: base.SparseNetwork, observation: jax.Array) -> jax.Array:
        return networks.deterministic_action("sac", outputs(actor, observation))

    def draw(key: jax.Array, batches: Batch) -> Noise:
        shape, between = batches.action.shape, batches.between.shape
        keys = jax.random.split(kernels.fast_key(key), 3)
        shapes = shape, (*between[:-1], action_size), shape
        axis = len(shape) - 2
        return Noise(*(share.normal(k, s, axis) for k, s in zip(keys, shapes, strict=True)))

    def sample(actor: base.SparseNetwork, observation: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        return networks.sample_squashed(*networks.gaussian_head(outputs(actor, observation)), noise)

    def critic_loss(
        params: networks.Params,
        state: base.AgentState,
        batch: Batch,
        noise: Noise,
        multi_step: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        alpha = jnp.exp(state.log_alpha)
        action, log_prob = sample(state.actor, batch.next_observation, noise.next)
        mask = state.critic.mask
        next_q = base.q_values(critic_net, state.critic.target, mask, batch.next_observation, action).min(0)
        # One-step windows hold no states in between; the branch saves the actor's passes over them.
        bonus = jax.lax.cond(
            multi_step,
            lambda: (
                -alpha
                * jnp.sum(
                    batch.between_discount * sample(state.actor, batch.between, noise.between)[1],
                    axis=-1,
                )
            ),
            lambda: jnp.zeros_like(batch.partial_return),
        )
        soft_value = next_q - alpha * log_prob
        target = batch.partial_return + bonus + batch.bootstrap_discount * soft_value
        target = jax.lax.stop_gradient(target)
        q = base.q_values(critic_net, params, mask, batch.observation, batch.action)
        return base.weighted_mean(((q - target) ** 2).sum(0), batch.weight), q.mean()

    def actor_loss(
        params: networks.Params, state: base.AgentState, batch: Batch, noise: Noise
    ) -> tuple[jax.Array, jax.Array]:
        action, log_prob = sample(state.actor.replace(params=params), batch.observation, noise.policy)
        critic = state.critic
        q = base.q_values(critic_net, critic.params, critic.mask, batch.observation, action).min(0)
        loss = base.weighted_mean(jnp.exp(state.log_alpha) * log_prob - q, batch.weight)
        return loss, base.weighted_mean(log_prob + target_entropy, batch.weight)

    def explore(
        state: base.AgentState, observation: jax.Array, key: jax.Array, hparams: HParams
    ) -> tuple[jax.Array, jax.Array]:
        del hparams
        output = outputs(state.actor, observation)
        mean = networks.deterministic_action("sac", output)
        if config.sac_explore == "mode":
            return mean, mean
        # Environments are not shared out.
        noise = jax.random.normal(key, mean.shape)
        return networks.sample_squashed(*networks.gaussian_head(output), noise)[0], mean

    def updates(
        state: base.AgentState,
        batches: Batch,
        key: jax.Array,
        hparams: HParams,
        multi_step: jax.Array,
    ) -> tuple[base.AgentState, base.Metrics]:
        def cycle(state: base.AgentState, item: tuple[Batch, Noise]) -> tuple[base.AgentState, base.Metrics]:
            batches, noises = item
            total_loss = total_q = jnp.zeros(())
            for i in range(delay):
                batch, noise = base.at(batches, i), base.at(noises, i)
                (loss, q), gradient = share.mean(
                    jax.value_and_grad(critic_loss, has_aux=True)(state.critic.params, state, batch, noise, multi_step)
                )
                state = state.replace(critic=base.descend(state.critic, gradient, hparams.critic_lr))
                total_loss, total_q = total_loss + loss, total_q + q
            (loss, excess), gradient = share.mean(
                jax.value_and_grad(actor_loss, has_aux=True)(state.actor.params, state, batch, noise)
            )
            # d/d(log alpha) of -log_alpha * excess, where excess = mean log pi + target entropy.
            alpha_step, alpha_adam = kernels.ADAM.update(-excess, state.alpha_adam)
            state = state.replace(
                actor=base.descend(state.actor, gradient, hparams.actor_lr),
                critic=base.polyak(state.critic, hparams.tau),
                log_alpha=state.log_alpha - hparams.alpha_lr * alpha_step,
                alpha_adam=alpha_adam,
            )
            return state, {
                "critic_loss": total_loss / delay,
                "actor_loss": loss,
                "q_mean": total_q / delay,
                "alpha": jnp.exp(state.log_alpha),
                "entropy": target_entropy - excess,
            }

        # All at once: drawn in the loop, they would be computed again in every operation that takes them.
        items = base.cycles((batches, draw(key, batches)), delay)
        state, metrics = jax.lax.scan(cycle, state, items)
        return state, jax.tree.map(jnp.mean, metrics)

    def critic_gradient(
        state: base.AgentState,
        batch: Batch,
        key: jax.Array,
        hparams: HParams,
        multi_step: jax.Array,
    ) -> networks.Params:
        del hparams
        noise = draw(key, batch)
        return share.mean(jax.grad(critic_loss, has_aux=True)(state.critic.params, state, batch, noise, multi_step)[0])

    def actor_gradient(
        state: base.AgentState,
        batch: Batch,
        key: jax.Array,
        hparams: HParams,
        multi_step: jax.Array,
    ) -> networks.Params:
        del hparams, multi_step
        return share.mean(jax.grad(actor_loss, has_aux=True)(state.actor.params, state, batch, draw(key, batch))[0])

    init = base.make_init(
        actor_net, critic_net, observation_size, action_size, config, actor_target=False, ticket=ticket
    )
    return base.Agent(init, explore, mode, updates, critic_gradient, actor_gradient)
