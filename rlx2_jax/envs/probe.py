"""Probe environments: tiny tasks in plain JAX whose values are known, so that a learning bug shows in seconds.

| name | episode | reward | known |
|---|---|---|---|
| `probe/constant` | 1 step | 1 | Q = 1 |
| `probe/observed` | 1 step | the observation, -1 or 1 | Q(s) = s |
| `probe/chain` | 2 steps, observations 0 then 1 | 1 at the second | Q = gamma, then 1 |
| `probe/action` | 1 step | 1 - (a - s/2)^2, s uniform in [-1, 1] | best action s/2, best return 1 |
| `probe/forever` | never ends by itself | 1 | Q = 1 / (1 - gamma), only if truncation bootstraps |
| `probe/fragile` | never ends by itself | 1, but NaN where the action is over 0.9 | non-finite steps are dropped |
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rlx2_jax.envs.base import State
from rlx2_jax.runtime import numerics

TASKS = ("action", "chain", "constant", "forever", "fragile", "observed")
"""Names after `probe/`."""


class Probe:
    """One of the tasks in the table above: one observation, one action."""

    observation_size = 1
    """Entries of an observation."""
    action_size = 1
    """Entries of an action."""

    def __init__(self, task: str):
        """Choose the task by its name after `probe/`."""
        self._task = task

    @numerics.by_usual_rules
    def reset(self, key: jax.Array) -> State:
        """A fresh initial state."""
        if self._task == "observed":
            start = jax.random.rademacher(key, (1,), jnp.float32)
        elif self._task == "action":
            start = jax.random.uniform(key, (1,), minval=-1.0)
        else:
            start = jnp.zeros(1)
        return State((), start, jnp.zeros(()), jnp.asarray(False))

    @numerics.by_usual_rules
    def step(self, state: State, action: jax.Array) -> State:
        """Apply an action `[1]`."""
        s, a = state.observation[0], action[0]
        one, last = jnp.ones(()), jnp.asarray(True)
        following = state.observation
        match self._task:
            case "constant":
                reward = one
            case "observed":
                reward = s
            case "chain":
                reward, last, following = s, s > 0.5, jnp.ones(1)
            case "action":
                reward = 1 - (a - s / 2) ** 2
            case "forever":
                reward, last = one, ~last
            case _:
                reward, last = jnp.where(a > 0.9, jnp.nan, one), ~last
        return State((), following, reward, last)


@functools.cache
def load(task: str) -> Probe:
    """The task, made once per process: it holds no state."""
    return Probe(task)
