"""Many environments at once: time limits, resets from fresh states, and nothing lost at the end of an episode."""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from rlx2_jax.envs.base import Environment, State


class VectorState(flax.struct.PyTreeNode):
    """E environments and P initial states to reset them from."""

    current: State
    """Leaves `[E, ...]`."""
    pool: State
    """Leaves `[P, ...]`: fresh initial states."""
    steps: jax.Array
    """`[E]`, int32: steps in the current episode; -1 before the first."""
    episode_return: jax.Array
    """`[E]`: rewards of the current episode so far."""


class StepResult(NamedTuple):
    """What one step of all environments gave, before any reset."""

    reward: jax.Array
    """`[E]`."""
    terminated: jax.Array
    """`[E]`: the task ended the episode."""
    truncated: jax.Array
    """`[E]`: the time limit cut it."""
    finite: jax.Array
    """`[E]`: false where action, reward or an observation is not finite; such an environment is reset."""
    final_observation: jax.Array
    """`[E, O]`: the observation reached."""
    finished_return: jax.Array
    """`[E]`: return of the episode that ended here, 0 where none did."""


class VectorEnvironment:
    """`num_envs` copies of a task under `vmap`, with a time limit and automatic resets."""

    def __init__(self, env: Environment, num_envs: int, episode_length: int, pool: int):
        """Wrap a task. `pool` is the number of fresh initial states kept for resets, at least `num_envs`."""
        self.env = env
        self.num_envs = num_envs
        self.episode_length = episode_length
        self.pool = pool

    def init(self) -> VectorState:
        """Environments that have not begun: `renew` gives them their first states.

        Resets are the slow part to compile, so that a run has them in one place.
        """
        state = jax.eval_shape(self.env.reset, jax.random.PRNGKey(0))
        many = lambda count: jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), state)
        return VectorState(
            current=many(self.num_envs),
            pool=many(self.pool),
            steps=jnp.full(self.num_envs, -1, jnp.int32),
            episode_return=jnp.zeros(self.num_envs),
        )

    def renew(self, state: VectorState, key: jax.Array) -> VectorState:
        """Draw a new pool of initial states, and begin the environments that have not begun."""
        pool = jax.vmap(self.env.reset)(jax.random.split(key, self.pool))
        first = jax.tree.map(lambda x: x[: self.num_envs], pool)
        waiting = state.steps < 0
        return state.replace(
            current=_select(waiting, first, state.current),
            pool=pool,
            steps=jnp.maximum(state.steps, 0),
        )

    def step(self, state: VectorState, action: jax.Array, key: jax.Array) -> tuple[VectorState, StepResult]:
        """Step all environments with actions `[E, A]`, clipped to [-1, 1] here, and reset those that ended."""
        clipped = jnp.clip(action, -1.0, 1.0)
        reached = jax.vmap(self.env.step)(state.current, clipped)
        steps = state.steps + 1
        whole = lambda x: jnp.isfinite(x).all(-1)
        # The observation left behind, too: a reset may have given one that is not finite.
        seen = whole(state.current.observation) & whole(reached.observation)
        finite = jnp.isfinite(reached.reward) & seen & whole(action)
        terminated = reached.terminated & finite
        truncated = (steps >= self.episode_length) & ~terminated & finite
        ended = terminated | truncated | ~finite
        episode_return = state.episode_return + jnp.where(finite, reached.reward, 0)
        draw = jax.random.randint(key, (self.num_envs,), 0, self.pool)
        following = jax.tree.map(
            lambda fresh, old: jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), fresh[draw].astype(old.dtype), old),
            state.pool,
            reached,
        )
        result = StepResult(
            reward=reached.reward,
            terminated=terminated,
            truncated=truncated,
            finite=finite,
            final_observation=reached.observation,
            finished_return=jnp.where(terminated | truncated, episode_return, 0),
        )
        return VectorState(
            current=following,
            pool=state.pool,
            steps=jnp.where(ended, 0, steps),
            episode_return=jnp.where(ended, 0, episode_return),
        ), result


def _select(condition: jax.Array, yes: State, no: State) -> State:
    """Per environment, one state or the other."""
    return jax.tree.map(
        lambda y, n: jnp.where(condition.reshape(-1, *[1] * (n.ndim - 1)), y.astype(n.dtype), n), yes, no
    )
