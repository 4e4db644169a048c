"""Scores: how a policy does on fresh episodes, and what can be said of a handful of returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax.envs import Environment, State

Policy = Callable[[jax.Array], jax.Array]
"""Observation `[..., O]` to action `[..., A]`."""


def episode_returns(env: Environment, policy: Policy, state: State, episode_length: int) -> jax.Array:
    """Undiscounted returns of one episode from each of the given initial states, `[episodes]`; jittable.

    All episodes run side by side until the last has ended or reached `episode_length`. An episode in which an action,
    an observation or a reward is not finite returns NaN: some tasks would pay a broken policy in full.
    """
    episodes = state.reward.shape[0]
    start = (jnp.zeros((), jnp.int32), state, jnp.zeros(episodes), jnp.ones(episodes, bool))

    def go_on(carry: tuple) -> jax.Array:
        steps, _, _, alive = carry
        return (steps < episode_length) & alive.any()

    def step(carry: tuple) -> tuple:
        steps, state, returns, alive = carry
        action = policy(state.observation)
        state = jax.vmap(env.step)(state, jnp.clip(action, -1.0, 1.0))
        finite = jnp.isfinite(action).all(-1) & jnp.isfinite(state.observation).all(-1)
        reward = jnp.where(finite, state.reward, jnp.nan)
        returns = jnp.where(alive, returns + reward, returns)
        return steps + 1, state, returns, alive & ~state.terminated & jnp.isfinite(returns)

    return jax.lax.while_loop(go_on, step, start)[2]


class Summary(NamedTuple):
    """A mean with what is needed to judge it."""

    n: int
    mean: float
    std: float
    """Sample standard deviation; 0 for one value."""
    low: float
    """Lower end of the 95 % percentile-bootstrap interval of the mean."""
    high: float
    """Upper end."""


def summarize(values: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Summary:
    """Mean, spread and a 95 % bootstrap interval of the mean of independent values.

    Args:
      values: `[n]`, at least one.
      resamples: bootstrap resamples.
      seed: of the bootstrap, fixed so that the same values give the same interval.
    """
    values = np.asarray(values, np.float64)
    n = values.size
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    std = float(values.std(ddof=1)) if n > 1 else 0.0
    return Summary(n, float(values.mean()), std, float(low), float(high))
