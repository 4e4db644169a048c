"""TD3 (Fujimoto et al., 2018) on sparse networks, with RLx2's multi-step targets.

One cycle, for a policy delay of d (2):

    repeat d times, on a batch (s, a, R, discount, s'), where R, discount and s' span n steps:
        a' = clip(pi'(s') + clip(noise, -c, c), -1, 1)
        y  = R + discount * min_i Q'_i(s', a')
        each Q_i: one Adam step on mean (Q_i(s, a) - y)^2
    pi: one Adam step on mean -Q_1(s, pi(s))
    targets: theta' <- theta' + tau (theta - theta')

Gradients are dense and used on the mask only; see `base`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx2_jax import kernels
from rlx2_jax.agents import base, networks
from rlx2_jax.agents.masking import Masks
from rlx2_jax.config import Config, HParams
from rlx2_jax.replay.buffer import Batch
from rlx2_jax.runtime.devices import Share


def make_td3(config: Config, observation_size: int, action_size: int, ticket: base.Found | None = None) -> base.Agent:
    """TD3's functions for a resolved configuration and an environment's sizes."""
    sizes = networks.actor_sizes("td3", observation_size, action_size, config.hidden)
    initial = networks.initial_of("td3", config.kernel_init)
    actor_net = networks.MLP(sizes[1:], initial)
    critic_net = networks.TwinMLP(networks.critic_sizes(observation_size, action_size, config.hidden)[1:], initial)
    one_critic_net = networks.MLP(critic_net.features)
    delay = config.delay
    share = Share(config.data_parallel)

    def policy(params: networks.Params, mask: Masks, observation: jax.Array) -> jax.Array:
        output = networks.forward(actor_net, params, mask, observation)
        return networks.deterministic_action("td3", output)

    def mode(actor: base.SparseNetwork, observation: jax.Array) -> jax.Array:
        return policy(actor.params, actor.mask, observation)

    def critic_loss(
        params: networks.Params,
        state: base.AgentState,
        batch: Batch,
        noise: jax.Array,
        hparams: HParams,
    ) -> tuple[jax.Array, jax.Array]:
        bound = hparams.target_noise_clip
        noise = jnp.clip(hparams.target_noise * noise, -bound, bound)
        action = jnp.clip(policy(state.actor.target, state.actor.mask, batch.next_observation) + noise, -1, 1)
        mask = state.critic.mask
        next_q = base.q_values(critic_net, state.critic.target, mask, batch.next_observation, action).min(0)
        target = batch.partial_return + batch.bootstrap_discount * next_q
        q = base.q_values(critic_net, params, mask, batch.observation, batch.action)
        return base.weighted_mean(((q - target) ** 2).sum(0), batch.weight), q.mean()

    def actor_loss(params: networks.Params, state: base.AgentState, batch: Batch, first_mask: Masks) -> jax.Array:
        action = policy(params, state.actor.mask, batch.observation)
        first = base.at(state.critic.params, 0)
        q = base.q_values(one_critic_net, first, first_mask, batch.observation, action)
        return -base.weighted_mean(q, batch.weight)

    def explore(
        state: base.AgentState, observation: jax.Array, key: jax.Array, hparams: HParams
    ) -> tuple[jax.Array, jax.Array]:
        mean = mode(state.actor, observation)
        noise = hparams.explore_noise * jax.random.normal(key, mean.shape)
        return jnp.clip(mean + noise, -1, 1), mean

    def updates(
        state: base.AgentState,
        batches: Batch,
        key: jax.Array,
        hparams: HParams,
        multi_step: jax.Array,
    ) -> tuple[base.AgentState, base.Metrics]:
        del multi_step  # A window's length is in the batch; TD3's target costs the same for any.
        noises = share.normal(kernels.fast_key(key), batches.action.shape, axis=1)
        # Here, not in the loop, which would copy it every time.
        first_mask = base.at(state.critic.mask, 0)

        def cycle(state: base.AgentState, item: tuple[Batch, jax.Array]) -> tuple[base.AgentState, base.Metrics]:
            batches, noises = item
            total_loss = total_q = jnp.zeros(())
            for i in range(delay):
                batch = base.at(batches, i)
                (loss, q), gradient = share.mean(
                    jax.value_and_grad(critic_loss, has_aux=True)(state.critic.params, state, batch, noises[i], hparams)
                )
                state = state.replace(critic=base.descend(state.critic, gradient, hparams.critic_lr))
                total_loss, total_q = total_loss + loss, total_q + q
            loss, gradient = share.mean(jax.value_and_grad(actor_loss)(state.actor.params, state, batch, first_mask))
            state = state.replace(
                actor=base.polyak(base.descend(state.actor, gradient, hparams.actor_lr), hparams.tau),
                critic=base.polyak(state.critic, hparams.tau),
            )
            return state, {
                "critic_loss": total_loss / delay,
                "actor_loss": loss,
                "q_mean": total_q / delay,
            }

        items = base.cycles((batches, noises), delay)
        state, metrics = jax.lax.scan(cycle, state, items)
        return state, jax.tree.map(jnp.mean, metrics)

    def critic_gradient(
        state: base.AgentState,
        batch: Batch,
        key: jax.Array,
        hparams: HParams,
        multi_step: jax.Array,
    ) -> networks.Params:
        del multi_step
        noise = share.normal(key, batch.action.shape)
        return share.mean(jax.grad(critic_loss, has_aux=True)(state.critic.params, state, batch, noise, hparams)[0])

    def actor_gradient(
        state: base.AgentState,
        batch: Batch,
        key: jax.Array,
        hparams: HParams,
        multi_step: jax.Array,
    ) -> networks.Params:
        del key, hparams, multi_step
        first_mask = base.at(state.critic.mask, 0)
        return share.mean(jax.grad(actor_loss)(state.actor.params, state, batch, first_mask))

    init = base.make_init(
        actor_net, critic_net, observation_size, action_size, config, actor_target=True, ticket=ticket
    )
    return base.Agent(init, explore, mode, updates, critic_gradient, actor_gradient)
