"""One episode, kept: what was seen, done and paid at every step, and where the bodies were.

A simulator's state is whatever it goes on from, so an environment itself says where that has its bodies
(`base.Visible`). A body's frame is a position and a rotation, and its shapes are fixed in it: frames of bodies are all
that a picture of a step needs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax.envs.base import Environment, State, Visible
from rlx2_jax.envs.quiet import quiet
from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import memory, numerics, places

COPIES = 3
"""States held at once, at least, beside any that are kept: before a step, after it, and what it computes with."""


class Episode(NamedTuple):
    """T steps, as NumPy arrays."""

    states: State
    """Leaves `[T + 1, ...]`: the initial state, and what each step reached."""
    actions: np.ndarray
    """`[T, A]`: as the policy gave them, clipped."""
    finite: bool
    """Whether all of it is finite; else it was cut before the step that is not."""

    @property
    def length(self) -> int:
        """T."""
        return len(self.actions)

    @property
    def rewards(self) -> np.ndarray:
        """`[T]`."""
        return np.asarray(self.states.reward[1:])

    @property
    def terminated(self) -> bool:
        """Whether the task itself ended it."""
        return bool(self.states.terminated[-1])


class Frames(NamedTuple):
    """Where the B bodies of a model are, the world's own among them, at F moments."""

    position: np.ndarray
    """`[F, B, 3]`, float32, metres."""
    rotation: np.ndarray
    """`[F, B, 4]`, float32: unit quaternions, the real part first."""


def require_visible(env: Environment, name: str) -> Visible:
    """The environment, as one that can be looked at.

    Raises:
      ConfigError: it has no bodies.
    """
    try:
        model, _, _ = (getattr(env, part) for part in ("mj_model", "dt", "pose"))
    except AttributeError:
        model = None
    with quiet():
        import mujoco
    if not isinstance(model, mujoco.MjModel):
        raise ConfigError(
            f"{name} has no bodies to look at; take a task of Brax or MuJoCo, or give an environment of your own "
            "mj_model, dt and pose (rlx2_jax.envs.Visible)."
        )
    return env  # type: ignore[return-value]


def record(env: Environment, act: Callable[[jax.Array], jax.Array], key: jax.Array, episode_length: int) -> Episode:
    """Play one episode and keep it.

    Args:
      env: the task.
      act: policy, from observations `[1, O]` to actions `[1, A]`.
      key: of the initial state.
      episode_length: steps at most.

    Raises:
      ConfigError: so many states do not fit the device.
    """
    size = memory.tree_bytes(jax.eval_shape(env.reset, key))
    memory.check_fits((episode_length + COPIES) * size, f"{episode_length:,} states", "play fewer steps")
    play = jax.jit(lambda key: _play(env, act, key, episode_length))
    first, (alive, states, actions) = jax.device_get(play(key))
    # The first step that is not finite, if there is one, ends it too, but nothing of it can be shown.
    played = int(alive.sum())
    finite = all(np.isfinite(x[:played]).all() for x in (states.observation, states.reward, actions))
    length = played if finite else played - 1
    kept = jax.tree.map(lambda start, rest: np.concatenate([start, rest[:length, 0]]), first, states)
    return Episode(kept, actions[:length, 0], finite)


@numerics.by_usual_rules
def _play(env: Environment, act: Callable[[jax.Array], jax.Array], key: jax.Array, episode_length: int) -> Any:
    # A batch of one: so evaluations compute, and episodes that begin alike go on alike.
    first = jax.vmap(env.reset)(key[None])

    def step(carry: tuple[State, jax.Array], _: None) -> Any:
        state, alive = carry
        action = act(state.observation)
        clipped = jnp.clip(action, -1.0, 1.0)
        following = jax.lax.cond(alive, lambda: jax.vmap(env.step)(state, clipped), lambda: state)
        finite = [jnp.isfinite(x).all() for x in (action, following.observation, following.reward)]
        going = alive & ~following.terminated[0] & jnp.stack(finite).all()
        return (following, going), (alive, following, jnp.where(jnp.isfinite(action), clipped, jnp.nan))

    return first, jax.lax.scan(step, (first, jnp.asarray(True)), None, episode_length)[1]


def frames(env: Visible, episode: Episode) -> Frames:
    """Where the bodies are in each state of an episode, `F = T + 1`.

    Raises:
      ConfigError: the environment's own function raises an error.
    """
    import mujoco

    model = env.mj_model
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    position = np.zeros((episode.length + 1, model.nbody, 3), np.float32)
    rotation = np.zeros((episode.length + 1, model.nbody, 4), np.float32)
    for i in range(episode.length + 1):
        physics = jax.tree.map(operator.itemgetter(i), episode.states.physics)
        places.tried("pose of the environment", env.pose, physics, data)
        position[i], rotation[i] = data.xpos, data.xquat
    return Frames(position, rotation)
