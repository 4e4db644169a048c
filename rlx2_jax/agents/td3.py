"""TD3 (Fujimoto et al., 2018) on sparse networks, with RLx2's multi-step targets.

One cycle, for a policy delay of d (2):

    repeat d times, on a batch (s, a, R, discount, s'), where R, discount and s' span n steps:
        a' = clip(pi'(s') + clip(noise, -c, c), -1, 1)
        y  = R + discount * min_i Q'_i(s', a')
        each Q_i: one Adam step on mean (Q_i(s, a) - y)^2
    pi: one Adam step on mean -Q_1(s, pi(s))
    targets: theta' <- theta' + tau (theta - theta')
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx2_jax import kernels, networks
from rlx2_jax.agents import base
from rlx2_jax.config import HParams
from rlx2_jax.config.registry import Defaults, Passes
from rlx2_jax.networks import SparseNetwork
from rlx2_jax.replay.buffer import Batch


class TD3(base.OffPolicyAgent):
    """Twin delayed deep deterministic policy gradient."""

    defaults = Defaults(policy_delay=2, quick_steps=25_000, buffer_max=1_000_000, buffer_min=100_000)
    passes = Passes(actor_target=True, critics_of_actor_loss=1, entropy_between=False)
    release_init = "uniform"

    @staticmethod
    def act(output: jax.Array) -> jax.Array:
        """The output, squashed."""
        return jnp.tanh(output)

    def draw(self, key: jax.Array, batches: Batch) -> jax.Array:
        """Standard normal noise of the target actions, `[..., B, A]`."""
        return self.devices.normal(kernels.fast_key(key), batches.action.shape, axis=batches.action.ndim - 2)

    def unchanging(self, state: base.AgentState) -> SparseNetwork:
        """The first critic, for its links."""
        return state.critic.first()

    def critic_loss(
        self, params: networks.Params, state: base.AgentState, batch: Batch, noise: jax.Array, now: base.Now
    ) -> tuple[jax.Array, jax.Array]:
        """`mean (Q_i(s, a) - y)^2`, summed over both critics."""
        actor, critic, h = state.actor, state.critic, now.hparams
        noise = jnp.clip(h.target_noise * noise, -h.target_noise_clip, h.target_noise_clip)
        action = jnp.clip(self.act(actor.apply(actor.target, batch.next_observation)) + noise, -1, 1)
        next_q = critic.apply(critic.target, batch.next_observation, action)[..., 0].min(0)
        target = batch.partial_return + batch.bootstrap_discount * next_q
        q = critic.apply(params, batch.observation, batch.action)[..., 0]
        return base.masked_mean(((q - target) ** 2).sum(0), batch.weight), q.mean()

    def actor_loss(
        self, params: networks.Params, state: base.AgentState, batch: Batch, noise: jax.Array, now: base.Now
    ) -> tuple[jax.Array, None]:
        """`mean -Q_1(s, pi(s))`."""
        action = self.act(state.actor.apply(params, batch.observation))
        first = base.tree_index(state.critic.params, 0)
        q = now.unchanging.apply(first, batch.observation, action)[..., 0]
        return -base.masked_mean(q, batch.weight), None

    def explore(
        self, state: base.AgentState, observation: jax.Array, key: jax.Array, hparams: HParams
    ) -> tuple[jax.Array, jax.Array]:
        """The action with Gaussian noise, and without."""
        mean = self.mode(state.actor, observation)
        noise = hparams.explore_noise * jax.random.normal(key, mean.shape)
        return jnp.clip(mean + noise, -1, 1), mean


agent = TD3
"""What a configuration calls `td3`."""
