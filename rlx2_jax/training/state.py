"""What a run is at any moment: all that an exact resume needs, as one pytree."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from rlx2_jax import envs
from rlx2_jax.agents import AgentState
from rlx2_jax.agents.base import Metrics
from rlx2_jax.networks.masking import Masks
from rlx2_jax.replay.buffer import Replay

Report = dict[str, jax.Array]
"""Scalars of one evaluation and of the training since the one before."""

FURTHER_KEY = 0x7FFFFFFF
"""Folded into a key for a further one beside those it is split into, which are the keys folded with 0, 1, 2, ..."""


class Progress(flax.struct.PyTreeNode):
    """How far a run is: the same for all runs of a program, never batched."""

    env_steps: jax.Array
    """int32."""
    critic_calls: jax.Array
    """int32: optimiser calls."""
    actor_calls: jax.Array
    """int32."""


class Events(flax.struct.PyTreeNode):
    """What topology events did to one network: sums since the last report."""

    count: jax.Array
    """int32: events that could move links."""
    dropped: jax.Array
    """int32: links."""
    grown: jax.Array
    """int32: links."""
    signal_to_noise: jax.Array
    """Signal to noise of the events' gradients, see `diagnostics.signal_to_noise`."""


class MetricSums(flax.struct.PyTreeNode):
    """Sums of what a report tells, since the last one: the tally of a state."""

    iterations: jax.Array
    """Iterations that learned."""
    learning: Metrics
    """Sums over those iterations."""
    episodes: jax.Array
    """Training episodes finished."""
    episode_return: jax.Array
    """Sum of their returns."""
    actor: Events
    """Topology events of the actor."""
    critic: Events
    """Topology events of the critics."""

    @property
    def links_dropped(self) -> jax.Array:
        """Links dropped by all events."""
        return self.actor.dropped + self.critic.dropped

    @property
    def links_grown(self) -> jax.Array:
        """Links grown by all events."""
        return self.actor.grown + self.critic.grown


class TrainState(flax.struct.PyTreeNode):
    """All that an exact resume needs."""

    agent: AgentState
    """Networks and their optimisers."""
    replay: Replay
    """The ring of transitions."""
    envs: envs.VectorState
    """The environments."""
    key: jax.Array
    """Random key of what comes next."""
    progress: Progress
    """Counts of steps and updates, never batched."""
    tally: MetricSums
    """Sums for the next report."""
    policy_distance: jax.Array
    """At the last buffer check."""
    nonfinite: jax.Array
    """int32: transitions kept out of replay because they were not finite."""
    first_masks: dict[str, tuple[jax.Array, ...]]
    """Masks that the run began with, one bit per weight, of `actor` and `critic`."""
    apart: jax.Array | None = None
    """int32: topology events after which devices had different masks, which is none or the run is lost. No leaf for a
    run on one device, nor in a checkpoint."""


def empty_tally(learning: Metrics) -> MetricSums:
    """Sums over nothing, with the given zeros for the agent's metrics."""
    zero, count = jnp.zeros(()), jnp.zeros((), jnp.int32)
    return MetricSums(
        iterations=count,
        learning=learning,
        episodes=count,
        episode_return=zero,
        actor=no_events(),
        critic=no_events(),
    )


def no_events() -> Events:
    """No event."""
    count = jnp.zeros((), jnp.int32)
    return Events(count=count, dropped=count, grown=count, signal_to_noise=jnp.zeros(()))


def unpack(state: TrainState) -> TrainState:
    """The state of any run as one of a masked run on one device, exactly: what checkpoints hold."""
    agent = state.agent.replace(actor=state.agent.actor.masked(), critic=state.agent.critic.masked())
    return state.replace(agent=agent, apart=None)


def agent_masks(agent: AgentState) -> dict[str, Masks]:
    """The boolean masks of both networks, by name, masked or packed."""
    return {"actor": agent.actor.masked().mask, "critic": agent.critic.masked().mask}


def finite(state: TrainState) -> jax.Array:
    """Whether all parameters and targets, and some experience, are finite; false for a diverged run."""
    learned = state.agent.learned()
    good = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(learned)]).all()
    return good & (state.nonfinite < jnp.maximum(state.progress.env_steps, 1))
