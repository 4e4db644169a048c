"""An agent of a person's own, looked at before anything compiles: what it raises or gives amiss, in one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlx2_jax.agents.base import AgentState, Now, OffPolicyAgent
from rlx2_jax.config import HParams
from rlx2_jax.errors import ConfigError
from rlx2_jax.replay import buffer
from rlx2_jax.replay.buffer import Batch
from rlx2_jax.runtime import numerics, places


@numerics.by_usual_rules
def check(agent: OffPolicyAgent, hparams: HParams) -> None:
    """See that what an agent says of its own can be called, and gives arrays of the shapes it should.

    Raises:
      ConfigError: one does not.
    """
    # Over several devices it would ask which of them it is on.
    agent = dataclasses.replace(agent, config=dataclasses.replace(agent.config, data_parallel=1))
    key, updates, batch_size = jax.random.PRNGKey(0), agent.config.updates_per_iteration, agent.config.batch_size
    state = _tried(agent, "init", key, hparams)
    if not isinstance(state, AgentState):
        raise ConfigError(f"{_named(agent)} begin gives no AgentState, but {_kind(state)}; give one.")
    _check_actions(agent, state, key, hparams)
    for leaf in jax.tree.leaves(_tried(agent, "draw", key, _batches(agent, (updates, batch_size), hparams))):
        _require(agent, "draw gives noise", leaf, (updates, *leaf.shape[1:]), "give it the batches' leading axes")
    batch = _batches(agent, (batch_size,), hparams)
    noise = _tried(agent, "draw", key, batch)
    now = Now(hparams, jnp.asarray(True), _tried(agent, "unchanging", state))
    asides = {}
    for name in ("critic", "actor"):
        params = getattr(state, name).params
        loss, asides[name] = _pair(agent, f"{name}_loss", params, state, batch, noise, now)
        _require(agent, f"{name}_loss gives a loss", loss, (), "take the mean over the batch")
        if not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ConfigError(f"{_named(agent)} {name}_loss gives a loss of type {loss.dtype}; give a float.")
    _require(agent, "critic_loss gives a mean value", asides["critic"], (), "take the mean over the batch")
    after, metrics = _pair(agent, "after_actor", state, asides["actor"], now)
    if _signature(after) != _signature(state):
        raise ConfigError(f"{_named(agent)} after_actor gives another kind of state; give back the one it gets.")
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"{_named(agent)} after_actor gives metrics that are no mapping; give numbers by name.")
    for name, value in metrics.items():
        _require(agent, f"after_actor gives a metric {name}", value, (), "give a number")


def _check_actions(agent: OffPolicyAgent, state: AgentState, key: jax.Array, hparams: HParams) -> None:
    c = agent.config
    observation = jax.ShapeDtypeStruct((c.num_envs, agent.observation_size), jnp.float32)
    shape = c.num_envs, agent.action_size
    mend = "give one action per observation"
    _require(agent, "act gives actions", _tried(agent, "mode", state.actor, observation), shape, mend)
    taken, mean = _pair(agent, "explore", state, observation, key, hparams)
    _require(agent, "explore gives actions", taken, shape, mend)
    _require(agent, "explore gives means", mean, shape, mend)
    critic = state.critic
    output = jax.eval_shape(lambda *inputs: critic.apply(*inputs), critic.params, observation, mean)
    _require(agent, "value_of gives values", _tried(agent, "value_of", output), shape[:1], "give one per action")


def _batches(agent: OffPolicyAgent, shape: tuple[int, ...], hparams: HParams) -> Batch:
    """Shapes of batches with these leading axes."""
    c, one = agent.config, jnp.ones((), jnp.int32)
    sizes = c.batch_size, c.num_envs, c.episode_length, agent.observation_size, agent.action_size
    sample = lambda key: buffer.sample(buffer.init(*sizes), key, shape, one, c.n_max, hparams.gamma)
    return jax.eval_shape(sample, jax.random.PRNGKey(0))


def _tried(agent: OffPolicyAgent, method: str, *arguments: Any) -> Any:
    """Shapes of what a method gives.

    Raises:
      ConfigError: an error of a person's own code.
    """
    look = lambda *arguments: jax.eval_shape(lambda *inputs: getattr(agent, method)(*inputs), *arguments)
    return places.tried(f"{_named(agent)} {method}", look, *arguments)


def _pair(agent: OffPolicyAgent, method: str, *arguments: Any) -> tuple[Any, Any]:
    """The same of a method that gives two things."""
    given = _tried(agent, method, *arguments)
    if not isinstance(given, tuple) or len(given) != 2:
        raise ConfigError(f"{_named(agent)} {method} gives one thing, {_kind(given)}; give two, in a tuple.")
    return given


def _require(agent: OffPolicyAgent, what: str, given: Any, shape: tuple[int, ...], mend: str) -> None:
    """See that an array has a shape."""
    if getattr(given, "shape", None) != shape:
        raise ConfigError(f"{_named(agent)} {what} {_kind(given)}, not of shape {list(shape)}; {mend}.")


def _named(agent: OffPolicyAgent) -> str:
    return f"agent={agent.config.agent}: its"


def _kind(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return f"of type {type(given).__name__}" if shape is None else f"of shape {list(shape)}"


def _signature(tree: Any) -> str:
    return str(jax.tree.map(lambda x: (x.shape, x.dtype), tree))
