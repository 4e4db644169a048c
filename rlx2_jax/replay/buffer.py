"""Replay on the device: a ring of columns, one per environment, with dynamic capacity.

Each of the E columns holds consecutive steps of one environment, so that a window of n steps runs down a column:

    row      observation   action   reward   outcome
    left ->  s_t           a_t      r_t      CONTINUES           oldest row kept
             s_t+1         a_t+1    r_t+1    slot + 1            truncated: s_t+2 stands in final[slot]
             s'_0          a'_0     r'_0     TERMINATED          the next row starts another episode
    head ->                                                      next row to be written

Every observation is stored once; the next observation of a row is the next row's, save where an episode was truncated:
its final observation stands in a small side ring. A row can be sampled as soon as the rows of its window and the one
after them are written, so no window crosses the write head. Capacity shrinks by moving `left`, which costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import chex
import flax.struct
import jax
import jax.numpy as jnp

from rlx2_jax import kernels
from rlx2_jax.replay.targets import n_step_window
from rlx2_jax.runtime.devices import ONE_DEVICE, DataParallel
from rlx2_jax.runtime.memory import tree_bytes

CONTINUES, TERMINATED, INVALID = 0, -1, -2
"""Values of `Replay.outcome` other than the positive `slot + 1` of a truncated step."""


class Replay(flax.struct.PyTreeNode):
    """The ring. R rows, E columns, F final observations per column."""

    observation: jax.Array
    """`[R, E, O]`."""
    action: jax.Array
    """`[R, E, A]`: the action taken."""
    mean: jax.Array
    """`[R, E, A]`: the noise-free action of the policy that took it, for the policy distance."""
    reward: jax.Array
    """`[R, E]`."""
    outcome: jax.Array
    """`[R, E]`, int32: how the step ended."""
    final: jax.Array
    """`[F, E, O]`: final observations of truncated episodes."""
    truncations: jax.Array
    """`[E]`, int32: truncations ever seen in each column."""
    head: jax.Array
    """int32: rows ever written."""
    left: jax.Array
    """int32: oldest row kept, counted like `head`."""


class Step(flax.struct.PyTreeNode):
    """One step of all environments, as it enters replay."""

    observation: jax.Array
    """`[E, O]`: where the action was taken."""
    action: jax.Array
    """`[E, A]`."""
    mean: jax.Array
    """`[E, A]`."""
    reward: jax.Array
    """`[E]`."""
    terminated: jax.Array
    """`[E]`, boolean."""
    truncated: jax.Array
    """`[E]`, boolean."""
    finite: jax.Array
    """`[E]`, boolean: false marks a transition that must never be learned from."""
    final_observation: jax.Array
    """`[E, O]`: the observation reached, before any reset."""


class Batch(flax.struct.PyTreeNode):
    """Windows reduced to what a TD target needs. Leading axes as asked of `sample`."""

    observation: jax.Array
    """`[..., O]`: s_t."""
    action: jax.Array
    """`[..., A]`: a_t."""
    partial_return: jax.Array
    """`[...]`: see `targets.n_step_window`."""
    bootstrap_discount: jax.Array
    """`[...]`."""
    next_observation: jax.Array
    """`[..., O]`: where the target bootstraps."""
    between: jax.Array
    """`[..., n_max - 1, O]`: the states s_{t+1} .. s_{t+n_max-1} inside the window (SAC's entropy terms)."""
    between_discount: jax.Array
    """`[..., n_max - 1]`: gamma^(k+1) for those before the bootstrap, else 0."""
    weight: jax.Array
    """`[...]`: 1, or 0 for a transition that is not to be learned from."""


SHORT = 1 << 18
"""Transitions up to which a ring's size is a power of two."""


def ring_size(capacity: int) -> int:
    """Transitions that a run's ring has room for: short runs of other lengths are then one program, compiled once."""
    return 1 << (capacity - 1).bit_length() if capacity <= SHORT else capacity


def rows_for(capacity: int, num_envs: int) -> int:
    """Rows R of a ring that holds at least `capacity` transitions."""
    return math.ceil(capacity / num_envs)


def final_slots(rows: int, episode_length: int) -> int:
    """Final observations per column: truncations are at least an episode apart."""
    return math.ceil(rows / episode_length) + 1


def num_bytes(capacity: int, num_envs: int, episode_length: int, observation_size: int, action_size: int) -> int:
    """Bytes of the ring, known before it is allocated."""
    shapes = jax.eval_shape(lambda: init(capacity, num_envs, episode_length, observation_size, action_size))
    return tree_bytes(shapes)


def init(capacity: int, num_envs: int, episode_length: int, observation_size: int, action_size: int) -> Replay:
    """An empty ring for `capacity` transitions, rounded up to whole rows."""
    R, E = rows_for(capacity, num_envs), num_envs
    count = jnp.zeros((), jnp.int32)
    return Replay(
        observation=jnp.zeros((R, E, observation_size)),
        action=jnp.zeros((R, E, action_size)),
        mean=jnp.zeros((R, E, action_size)),
        reward=jnp.zeros((R, E)),
        outcome=jnp.zeros((R, E), jnp.int32),
        final=jnp.zeros((final_slots(R, episode_length), E, observation_size)),
        truncations=jnp.zeros(E, jnp.int32),
        head=count,
        left=count,
    )


def size(replay: Replay) -> jax.Array:
    """Transitions kept."""
    return (replay.head - replay.left) * replay.reward.shape[1]


def add(replay: Replay, step: Step, capacity: jax.Array) -> Replay:
    """Write one row, overwriting the oldest one beyond `capacity` transitions (traced, at most the ring's).

    A non-finite step is stored as zeros and marked, so that nothing non-finite is ever in the ring.
    """
    R, E = replay.reward.shape
    chex.assert_shape([step.reward, step.terminated, step.truncated, step.finite], (E,))
    chex.assert_equal_shape([step.action, step.mean])
    chex.assert_equal_shape([step.observation, step.final_observation])
    row = replay.head % R
    slot = replay.truncations % replay.final.shape[0]
    outcome = jnp.where(step.truncated, slot + 1, CONTINUES)
    outcome = jnp.where(step.terminated, TERMINATED, outcome)
    outcome = jnp.where(step.finite, outcome, INVALID)
    truncated = outcome > 0
    columns = jnp.arange(E)
    clean = lambda x: jnp.where(step.finite.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
    seen = jnp.isfinite(step.observation).all(-1)
    final = jnp.where(truncated[:, None], step.final_observation, replay.final[slot, columns])
    head = replay.head + 1
    most = jnp.clip(capacity // E, 1, R)
    put = lambda ring, value: jax.lax.dynamic_update_index_in_dim(ring, value, row, 0)
    return replay.replace(
        # A reset may have given an observation that is not finite. Of other invalid steps it is kept: the window before
        # such a step bootstraps from it.
        observation=put(replay.observation, jnp.where(seen[:, None], step.observation, 0)),
        action=put(replay.action, clean(step.action)),
        mean=put(replay.mean, clean(step.mean)),
        reward=put(replay.reward, clean(step.reward)),
        outcome=put(replay.outcome, outcome),
        final=replay.final.at[slot, columns].set(final),
        truncations=replay.truncations + truncated,
        head=head,
        left=jnp.maximum(replay.left, head - most),
    )


def sample(
    replay: Replay,
    key: jax.Array,
    shape: tuple[int, ...],
    n_step: jax.Array,
    n_max: int,
    gamma: jax.Array,
    devices: DataParallel = ONE_DEVICE,
) -> Batch:
    """Uniform samples of windows of `n_step` consecutive steps, never across the write head.

    Args:
      replay: with more than `n_step` rows.
      key: random key.
      shape: leading axes of the batch, for instance `(updates, batch_size)`.
      n_step: steps per window in use, traced, at most `n_max`.
      n_max: static length of the arrays gathered.
      gamma: discount per step.
      devices: which divide the last of the leading axes; all of it is drawn, and only this one's slice is gathered.
    """
    E = replay.reward.shape[1]
    starts = replay.head - replay.left - n_step
    drawn = jax.random.randint(kernels.fast_key(key), shape, 0, jnp.maximum(starts, 1) * E)
    drawn = devices.local_shard(drawn, len(shape) - 1)
    row, column = replay.left + drawn // E, drawn % E
    return window(replay, row, column, n_step, n_max, gamma)


def window(
    replay: Replay,
    row: jax.Array,
    column: jax.Array,
    n_step: jax.Array,
    n_max: int,
    gamma: jax.Array,
) -> Batch:
    """The windows starting at the given rows (counted like `head`) and columns. See `sample`."""
    take = kernels.take_windows if kernels.native_available() else take_windows
    ring = (replay.observation, replay.action, replay.reward, replay.outcome, replay.final)
    windows = take(ring, row, column, n_step, n_max, gamma)
    steps = jnp.arange(1, n_max)
    return Batch(
        observation=windows.observation,
        action=windows.action,
        partial_return=windows.partial_return,
        bootstrap_discount=windows.bootstrap_discount,
        next_observation=windows.next_observation,
        between=_take(replay.observation, row[..., None] + steps, column[..., None]),
        between_discount=jnp.where(steps <= windows.last[..., None], gamma**steps, 0.0),
        weight=windows.weight,
    )


def take_windows(
    ring: Sequence[jax.Array],
    row: jax.Array,
    column: jax.Array,
    n_step: jax.Array,
    n_max: int,
    gamma: jax.Array,
) -> kernels.Windows:
    """Portable form of `kernels.take_windows`."""
    observation, action, reward, outcome, final = ring
    steps = jnp.arange(n_max + 1)
    rows, columns = row[..., None] + steps, column[..., None]
    outcome = _take(outcome, rows, columns)
    # A window ends where its steps are used up, where an episode is cut, and before a step that is not valid.
    cut = (outcome[..., :-1] > 0) | (outcome[..., 1:] == INVALID) | (steps[:-1] == n_step - 1)
    terminated = outcome[..., :-1] == TERMINATED
    rewards = _take(reward, rows[..., :-1], columns)
    partial_return, bootstrap_discount, last = n_step_window(rewards, terminated, cut, gamma)
    slot = jnp.take_along_axis(outcome, last[..., None], axis=-1)[..., 0] - 1
    following = _take(observation, row + last + 1, column)
    return kernels.Windows(
        observation=_take(observation, row, column),
        action=_take(action, row, column),
        partial_return=partial_return,
        bootstrap_discount=bootstrap_discount,
        next_observation=jnp.where((slot >= 0)[..., None], _take(final, jnp.maximum(slot, 0), column), following),
        last=last,
        weight=(outcome[..., 0] != INVALID).astype(jnp.float32),
    )


def _take(ring: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Places of a ring of whole rows, its rows counted on beyond its end."""
    rows, columns = ring.shape[:2]
    return kernels.take_rows(ring.reshape(rows * columns, *ring.shape[2:]), row % rows * columns + column)


def oldest(replay: Replay, count: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The `count` oldest transitions kept, for the policy distance (paper section 4.2.2).

    Returns:
      observation `[rows, E, O]`, action `[rows, E, A]`, mean `[rows, E, A]`, and weight `[rows, E]`: 1 for the
      `count` oldest valid places, 0 for those beyond, or not yet written, or not valid.
    """
    R, E = replay.reward.shape
    place = jnp.arange(min(math.ceil(count / E), R))
    row = (replay.left + place) % R
    order = place[:, None] * E + jnp.arange(E)
    written = (replay.left + place < replay.head)[:, None]
    weight = (order < count) & written & (replay.outcome[row] != INVALID)
    return (
        replay.observation[row],
        replay.action[row],
        replay.mean[row],
        weight.astype(jnp.float32),
    )


def drop_oldest(replay: Replay, transitions: jax.Array, least: jax.Array) -> Replay:
    """Forget the oldest transitions, in whole rows, but keep at least `least` transitions (all traced)."""
    E = replay.reward.shape[1]
    keep = -(-least // E)
    rows = jnp.clip(transitions // E, 0, jnp.maximum(replay.head - replay.left - keep, 0))
    return replay.replace(left=replay.left + rows)


def policy_distance(replay: Replay, policy: Callable[[jax.Array], jax.Array], count: int, kind: str) -> jax.Array:
    """How far the current policy is from the one that took the oldest actions (paper section 4.2.2).

    Args:
      replay: any.
      policy: deterministic, observation `[..., O]` to action `[..., A]` in [-1, 1].
      count: number of oldest transitions looked at, K.
      kind: `half_mse`, half the squared error per dimension to the noise-free action stored (the release), or `l2`,
        the mean Euclidean distance to the action taken (the paper's text).
    """
    observation, action, mean, weight = oldest(replay, count)
    now = policy(observation)
    if kind == "half_mse":
        distance = 0.5 * jnp.mean((now - mean) ** 2, axis=-1)
    else:
        distance = jnp.linalg.norm(now - action, axis=-1)
    return jnp.sum(distance * weight) / jnp.maximum(jnp.sum(weight), 1)


def shrink(
    replay: Replay,
    policy: Callable[[jax.Array], jax.Array],
    count: int,
    kind: str,
    *,
    threshold: jax.Array,
    least: jax.Array,
    ratio: jax.Array,
    until_close: bool,
) -> tuple[jax.Array, jax.Array]:
    """One buffer check of the dynamic-capacity replay: drop old data that is too far from the policy.

    Args:
      replay: any.
      policy: as in `policy_distance`.
      count: as in `policy_distance`.
      kind: as in `policy_distance`.
      threshold: distance above which data is dropped, traced; infinity for a fixed buffer.
      least: transitions never dropped, traced.
      ratio: share of the transitions dropped at once, traced.
      until_close: drop `count` at a time until the distance is below the threshold (the paper's text), instead of the
        given share once (the release).

    Returns:
      The distance measured first, and the new left pointer.
    """
    measure = lambda left: policy_distance(replay.replace(left=left), policy, count, kind)
    before = measure(replay.left)

    def too_far(distance: jax.Array, left: jax.Array) -> jax.Array:
        return (distance > threshold) & (size(replay.replace(left=left)) > least)

    if until_close:

        def drop(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            left = drop_oldest(replay.replace(left=carry[1]), jnp.asarray(count), least).left
            # What cannot be dropped in whole rows is as good as close.
            return jnp.where(left > carry[1], measure(left), -jnp.inf), left

        _, left = jax.lax.while_loop(lambda c: too_far(*c), drop, (before, replay.left))
        return before, left
    share = jnp.floor(ratio * size(replay)).astype(jnp.int32)
    left = drop_oldest(replay, share, least).left
    return before, jnp.where(too_far(before, replay.left), left, replay.left)
