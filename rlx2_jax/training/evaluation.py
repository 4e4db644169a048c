"""Scores: what a policy earns on fresh episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax.envs import Environment, State
from rlx2_jax.envs.episodes import COPIES
from rlx2_jax.runtime import memory, numerics

PolicyFunction = Callable[[jax.Array], jax.Array]
"""Observation `[..., O]` to action `[..., A]`."""


class Returns(NamedTuple):
    """What episodes paid, `[episodes]` each."""

    plain: jax.Array
    """Sum of the rewards."""
    discounted: jax.Array
    """sum_t gamma^t r_t."""


@numerics.by_usual_rules
def play(
    env: Environment, policy: PolicyFunction, state: State, episode_length: int, gamma: jax.Array | float = 1.0
) -> Returns:
    """One episode from each of the given initial states; jittable.

    All episodes run side by side until the last has ended or reached `episode_length`. An episode in which an action,
    an observation or a reward is not finite returns NaN: some tasks would pay a broken policy in full.
    """
    episodes = state.reward.shape[0]
    nothing = jnp.zeros(episodes)
    start = (jnp.zeros((), jnp.int32), state, Returns(nothing, nothing), jnp.ones(()), jnp.ones(episodes, bool))

    def go_on(carry: tuple) -> jax.Array:
        steps, *_, alive = carry
        return (steps < episode_length) & alive.any()

    def step(carry: tuple) -> tuple:
        steps, state, returns, discount, alive = carry
        action = policy(state.observation)
        state = jax.vmap(env.step)(state, jnp.clip(action, -1.0, 1.0))
        finite = jnp.isfinite(action).all(-1) & jnp.isfinite(state.observation).all(-1) & jnp.isfinite(state.reward)
        reward = jnp.where(finite, state.reward, jnp.nan)
        returns = Returns(
            plain=jnp.where(alive, returns.plain + reward, returns.plain),
            discounted=jnp.where(alive, returns.discounted + discount * reward, returns.discounted),
        )
        alive &= ~state.terminated & jnp.isfinite(returns.plain)
        return steps + 1, state, returns, gamma * discount, alive

    return jax.lax.while_loop(go_on, step, start)[2]


def episode_returns(env: Environment, policy: PolicyFunction, state: State, episode_length: int) -> jax.Array:
    """Undiscounted returns of one episode from each of the given initial states, `[episodes]`; see `play`."""
    return play(env, policy, state, episode_length).plain


def check_fits(env: Environment, episodes: int) -> None:
    """Refuse to play more episodes at once than the device can hold.

    Raises:
      ConfigError: there are more.
    """
    reset = lambda key: jax.vmap(env.reset)(jax.random.split(key, episodes))
    size = memory.tree_bytes(jax.eval_shape(reset, jax.random.PRNGKey(0)))
    memory.check_fits(COPIES * size, f"{episodes:,} episodes at once", "lower --episodes")
