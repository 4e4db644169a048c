"""DroQ (Hiraoka et al., 2022): SAC with many critic updates per step, which dropout and layer normalisation stand.

What differs from SAC (see there), for G critic updates per environment step (20):

    each critic, also as a target: dropout, then layer normalisation, before each ReLU
    repeat G times: y and one Adam step on each Q_i as there; targets: theta' <- theta' + tau (theta - theta')
    pi: one Adam step on mean alpha log pi(a | s) - (Q_1 + Q_2)(s, a) / 2
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlx2_jax import networks
from rlx2_jax.agents import base, sac
from rlx2_jax.config.registry import Defaults
from rlx2_jax.errors import ConfigError
from rlx2_jax.replay.buffer import Batch

DROPOUT = 0.01
"""Share of the units left out, the paper's for Ant; it chooses 0.0001 to 0.1 by task."""


class Noise(sac.Noise):
    """SAC's noise, and keys for the units that dropout leaves out."""

    dropout: jax.Array
    """`[..., 2, 2]`: keys of each update, for the critics and for their targets."""


class DroQ(sac.SAC):
    """SAC with dropout critics."""

    defaults = Defaults(
        policy_delay=20, quick_steps=10_000, buffer_max=1_000_000, buffer_min=100_000, update_ratio=20.0
    )
    polyak_every_update = True

    def check(self) -> None:
        """Refuse what would leave out other units on each device.

        Raises:
          ConfigError: several devices.
        """
        if self.config.data_parallel > 1:
            raise ConfigError(f"agent=droq trains on one device, not data_parallel={self.config.data_parallel}.")

    @classmethod
    def critic_module(cls, module: nn.Module) -> nn.Module:
        """The perceptron with dropout and layer normalisation.

        Raises:
          ConfigError: another network was asked for.
        """
        if type(module) is not networks.MLP:
            raise ConfigError("agent=droq has critics of its own; use --network=mlp or layernorm.")
        return module.clone(normalised=True, dropout=DROPOUT)

    def draw(self, key: jax.Array, batches: Batch) -> Noise:
        """Noise of all actions, and keys of each update."""
        dropout_key, action_key = jax.random.split(key)
        words = jax.random.bits(dropout_key, (*batches.action.shape[:-2], 2, 2), jnp.uint32)
        return Noise(**vars(super().draw(action_key, batches)), dropout=words)

    def q(self, params: networks.Params, state: base.AgentState, batch: Batch, noise: sac.Noise) -> jax.Array:
        """Values by both critics, `[2, B]`, each without some of its units."""
        return self._without_some(state, params, noise, 0, batch.observation, batch.action)

    def target_q(
        self, state: base.AgentState, observation: jax.Array, action: jax.Array, noise: sac.Noise
    ) -> jax.Array:
        """Values by both target critics, each without some of its units."""
        return self._without_some(state, state.critic.target, noise, 1, observation, action)

    def _without_some(
        self, state: base.AgentState, params: networks.Params, noise: sac.Noise, which: int, *inputs: jax.Array
    ) -> jax.Array:
        assert isinstance(noise, Noise)
        key = jax.random.wrap_key_data(noise.dropout[which], impl="threefry2x32")  # Of two words, as `draw` has them.
        return state.critic.net.apply_training(params, key, *inputs)[..., 0]

    def value(self, q: jax.Array) -> jax.Array:
        """Their mean."""
        return jnp.mean(q, 0)


agent = DroQ
"""What a configuration calls `droq`."""
