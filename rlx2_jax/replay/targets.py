"""Multi-step TD targets (paper section 4.2.1): pure arithmetic on windows of consecutive steps."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def n_step_window(
    reward: jax.Array, terminated: jax.Array, truncated: jax.Array, gamma: jax.Array | float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a window of `n` consecutive steps contributes to a TD target.

    With `m` the first step of the window that ends an episode, or `n - 1` when none does:

        partial_return     = sum_{k=0..m} gamma^k r_{t+k}
        bootstrap_discount = gamma^(m+1), or 0 when step m terminated
        last               = m

    and the target is `partial_return + bootstrap_discount * Q(next_observation[last])`. Rewards after an end belong to
    another episode and are left out. A truncation (time limit) is an end with a bootstrap, from the observation
    reached there; there is no off-policy correction.

    Args:
      reward: `[batch, n]`, r_t .. r_{t+n-1}.
      terminated: `[batch, n]`, 1 where the environment ended the episode.
      truncated: `[batch, n]`, 1 where a limit cut it.
      gamma: discount per step.

    Returns:
      partial_return `[batch]`, bootstrap_discount `[batch]`, last `[batch]` (int32).
    """
    chex.assert_equal_shape([reward, terminated, truncated])
    n = reward.shape[-1]
    terminated = jnp.asarray(terminated).astype(bool)
    ended = terminated | jnp.asarray(truncated).astype(bool)
    reward = jnp.asarray(reward, jnp.result_type(reward, jnp.float32))  # Whole ones would make the discount whole.
    steps = jnp.arange(n)
    last = jnp.where(ended.any(-1), jnp.argmax(ended, axis=-1), n - 1).astype(jnp.int32)
    included = steps <= last[..., None]
    discount = jnp.asarray(gamma, reward.dtype) ** steps
    partial_return = jnp.sum(jnp.where(included, discount * reward, 0), axis=-1)
    died = jnp.take_along_axis(terminated, last[..., None], axis=-1)[..., 0]
    bootstrap_discount = jnp.where(died, 0, gamma * discount[last])
    return partial_return, bootstrap_discount.astype(reward.dtype), last
