"""SAC (Haarnoja et al., 2018) on sparse networks, with RLx2's multi-step targets and a learned temperature.

One update, on a batch (s, a, R, discount, s') spanning n steps, with the states s_k inside the window:

    a' ~ pi(s'),  a_k ~ pi(s_k)
    y  = R + sum_k gamma^(k+1) (-alpha log pi(a_k | s_k)) + discount * (min_i Q'_i(s', a') - alpha log pi(a' | s'))
    each Q_i: one Adam step on mean (Q_i(s, a) - y)^2
    pi: one Adam step on mean alpha log pi(a | s) - min_i Q_i(s, a),  a ~ pi(s)
    log alpha: one Adam step on mean -log_alpha (log pi(a | s) + target entropy), target entropy -dim A
    targets: theta' <- theta' + tau (theta - theta')

The release multiplies mean and log standard deviation of the Gaussian by the action bound; here the bound is 1, so
there is nothing to choose.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlx2_jax import kernels, networks
from rlx2_jax.agents import base
from rlx2_jax.config import HParams
from rlx2_jax.config.registry import Defaults, Passes
from rlx2_jax.networks import SparseNetwork
from rlx2_jax.replay.buffer import Batch


class Noise(flax.struct.PyTreeNode):
    """Standard normal noise of the actions that an update draws."""

    next: jax.Array
    """`[..., B, A]`, after the window."""
    between: jax.Array
    """`[..., B, n - 1, A]`, inside it."""
    policy: jax.Array
    """`[..., B, A]`, of the actor's own step."""


class SACState(base.AgentState):
    """Actor, critics and the temperature."""

    log_alpha: jax.Array
    """Logarithm of the temperature, scalar."""
    alpha_adam: optax.ScaleByAdamState
    """Adam's moments of `log_alpha`."""

    def learned(self) -> tuple[Any, ...]:
        """All that is learned, the temperature too."""
        return *super().learned(), self.log_alpha


class SAC(base.OffPolicyAgent):
    """Soft actor-critic."""

    defaults = Defaults(policy_delay=1, quick_steps=40_000, buffer_max=3_000_000, buffer_min=200_000)
    passes = Passes(actor_target=False, critics_of_actor_loss=2, entropy_between=True, own_scalars=4)
    release_init = "orthogonal"

    @staticmethod
    def actor_outputs(action_size: int) -> int:
        """Mean and log standard deviation of each entry of an action."""
        return 2 * action_size

    def begin(self, actor: SparseNetwork, critic: SparseNetwork) -> SACState:
        """The state with these networks, the temperature at 1."""
        log_alpha = jnp.zeros(())
        return SACState(actor=actor, critic=critic, log_alpha=log_alpha, alpha_adam=kernels.ADAM.init(log_alpha))

    @staticmethod
    def act(output: jax.Array) -> jax.Array:
        """The mean, squashed."""
        return jnp.tanh(networks.gaussian_head(output)[0])

    @staticmethod
    def sample_action(output: jax.Array, key: jax.Array) -> jax.Array:
        """A sample of the squashed Gaussian."""
        mean, log_std = networks.gaussian_head(output)
        return networks.sample_squashed(mean, log_std, jax.random.normal(key, mean.shape))[0]

    def draw(self, key: jax.Array, batches: Batch) -> Noise:
        """Noise of all actions that the updates draw."""
        shape, between = batches.action.shape, batches.between.shape
        keys = jax.random.split(kernels.fast_key(key), 3)
        shapes = shape, (*between[:-1], self.action_size), shape
        axis = len(shape) - 2
        drawn = (self.devices.normal(k, s, axis) for k, s in zip(keys, shapes, strict=True))
        return Noise(**dict(zip(("next", "between", "policy"), drawn, strict=True)))

    def critic_loss(
        self, params: networks.Params, state: base.AgentState, batch: Batch, noise: Noise, now: base.Now
    ) -> tuple[jax.Array, jax.Array]:
        """`mean (Q_i(s, a) - y)^2`, summed over both critics."""
        target = self.target(state, batch, noise, now)
        q = self.q(params, state, batch, noise)
        return base.masked_mean(((q - target) ** 2).sum(0), batch.weight), q.mean()

    def target(self, state: base.AgentState, batch: Batch, noise: Noise, now: base.Now) -> jax.Array:
        """The soft multi-step target y, `[B]`, without a gradient."""
        assert isinstance(state, SACState)
        alpha, actor = jnp.exp(state.log_alpha), state.actor
        action, log_prob = sample(actor, actor.params, batch.next_observation, noise.next)
        next_q = self.target_q(state, batch.next_observation, action, noise).min(0)
        # One-step windows hold no states in between; the branch saves the actor's passes over them.
        bonus = jax.lax.cond(
            now.multi_step,
            lambda: (
                -alpha
                * jnp.sum(
                    batch.between_discount * sample(actor, actor.params, batch.between, noise.between)[1],
                    axis=-1,
                )
            ),
            lambda: jnp.zeros_like(batch.partial_return),
        )
        soft_value = next_q - alpha * log_prob
        return jax.lax.stop_gradient(batch.partial_return + bonus + batch.bootstrap_discount * soft_value)

    def q(self, params: networks.Params, state: base.AgentState, batch: Batch, noise: Noise) -> jax.Array:
        """Values by both critics, `[2, B]`, of these parameters, where they are learned."""
        del noise
        return state.critic.apply(params, batch.observation, batch.action)[..., 0]

    def target_q(self, state: base.AgentState, observation: jax.Array, action: jax.Array, noise: Noise) -> jax.Array:
        """Values by both target critics, `[2, B]`."""
        del noise
        return state.critic.apply(state.critic.target, observation, action)[..., 0]

    def actor_loss(
        self, params: networks.Params, state: base.AgentState, batch: Batch, noise: Noise, now: base.Now
    ) -> tuple[jax.Array, jax.Array]:
        """`mean alpha log pi(a | s) - min_i Q_i(s, a)`, and the mean of `log pi(a | s) + target entropy`."""
        assert isinstance(state, SACState)
        action, log_prob = sample(state.actor, params, batch.observation, noise.policy)
        q = self.value(state.critic.apply(state.critic.params, batch.observation, action)[..., 0])
        loss = base.masked_mean(jnp.exp(state.log_alpha) * log_prob - q, batch.weight)
        return loss, base.masked_mean(log_prob + self.target_entropy, batch.weight)

    def value(self, q: jax.Array) -> jax.Array:
        """What the actor ascends, `[B]`, of both critics' values `[2, B]`."""
        return q.min(0)

    def after_actor(
        self, state: base.AgentState, aside: jax.Array, now: base.Now
    ) -> tuple[base.AgentState, base.Metrics]:
        """The temperature's step: d/d(log alpha) of `-log_alpha * excess` is `-excess`."""
        assert isinstance(state, SACState)
        alpha_step, alpha_adam = kernels.ADAM.update(-aside, state.alpha_adam)
        log_alpha = state.log_alpha - now.hparams.alpha_lr * alpha_step
        state = state.replace(log_alpha=log_alpha, alpha_adam=alpha_adam)
        return state, {"alpha": jnp.exp(log_alpha), "entropy": self.target_entropy - aside}

    def explore(
        self, state: base.AgentState, observation: jax.Array, key: jax.Array, hparams: HParams
    ) -> tuple[jax.Array, jax.Array]:
        """A sample, or the mode if so configured, and the mode."""
        output = state.actor.apply(state.actor.params, observation)
        mean = self.act(output)
        if self.config.sac_explore == "mode":
            return mean, mean
        # Environments are not shared out over devices, so neither is their noise.
        return self.sample_action(output, key), mean

    @property
    def target_entropy(self) -> float:
        """Entropy in nats that the temperature aims at."""
        return -float(self.action_size)


def sample(
    actor: SparseNetwork, params: networks.Params, observation: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """An action at observations `[..., O]` by standard normal noise `[..., A]`, and its log density `[...]`."""
    return networks.sample_squashed(*networks.gaussian_head(actor.apply(params, observation)), noise)


agent = SAC
"""What a configuration calls `sac`."""
