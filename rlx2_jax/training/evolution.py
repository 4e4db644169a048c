"""Topology events of a run: when one is due, and what it does to a network."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax.agents import AgentState
from rlx2_jax.analysis import diagnostics
from rlx2_jax.config import HParams, Schedule
from rlx2_jax.networks import masking
from rlx2_jax.replay.buffer import Replay
from rlx2_jax.sparse import topology
from rlx2_jax.training.state import ASIDE, Events, Progress, no_events
from rlx2_jax.training.trainer import Trainer, crossed


class Moment(NamedTuple):
    """When an iteration is, and what holds in it."""

    before: Progress
    """The counters before its updates."""
    after: Progress
    hparams: HParams
    schedule: Schedule
    multi_step: jax.Array
    """Whether windows span several steps."""


def evolve_if_due(
    trainer: Trainer, agent: AgentState, replay: Replay, moment: Moment, keys: Mapping[str, jax.Array]
) -> tuple[AgentState, dict[str, Events], jax.Array | None]:
    """Topology events of the networks that `keys` names, in turn, of those that are due.

    An event is due when the optimiser's counter passes a multiple of the interval, before the end.

    Returns:
      The agent, what the events did, and how many left devices with different masks (see `Share.differ`).
    """
    events: dict[str, Events] = {}
    apart = zero = None if trainer.share.count == 1 else jnp.zeros((), jnp.int32)
    for name, key in keys.items():
        calls = getattr(moment.after, f"{name}_calls")
        end = getattr(moment.schedule, f"{name}_evolve_end")
        passed = crossed(getattr(moment.before, f"{name}_calls"), calls, moment.schedule.evolve_interval)
        agent, events[name], differ = jax.lax.cond(
            passed & (calls < end),
            functools.partial(evolve, trainer, name, replay=replay, moment=moment, key=key),
            lambda agent: (agent, no_events(), zero),
            agent,
        )
        apart = jax.tree.map(jnp.add, apart, differ)
    return agent, events, apart


def evolve(
    trainer: Trainer,
    name: str,
    agent: AgentState,
    replay: Replay,
    moment: Moment,
    key: jax.Array,
) -> tuple[AgentState, Events, jax.Array | None]:
    """One topology event of one network, by the dense gradient on a fresh batch.

    Args:
      trainer: of the run.
      name: `actor` or `critic`.
      agent: whose network it is.
      replay: where the batch comes from.
      moment: of the iteration.
      key: of the batch, of the loss's noise, and of random growth.

    Returns:
      The agent, what happened, and whether devices now have different masks.
    """
    hparams, multi_step = moment.hparams, moment.multi_step
    calls, end = getattr(moment.after, f"{name}_calls"), getattr(moment.schedule, f"{name}_evolve_end")
    sample_key, gradient_key, grow_key = jax.random.split(key, 3)
    batch = trainer.sample(replay, sample_key, (trainer.config.batch_size,), hparams, multi_step)
    # Scores are dense gradients, so a packed network is unpacked for the event.
    network = getattr(agent, name)
    masked = network.masked()
    dense = agent.replace(**{name: masked})
    gradient = lambda batch, key: trainer.agent.gradient(name, dense, batch, key, hparams, multi_step)
    evolved, dropped, grown = masked.evolve(
        gradient(batch, gradient_key),
        grow_key,
        topology.drop_fraction_at(hparams.drop_fraction, calls, end),
        hparams.grow_gradient,
        reset_moments=trainer.config.reset_moments,
    )
    differ = trainer.share.differ(masking.checksum(evolved.mask))
    parts = diagnostics.split(batch)
    part_keys = jax.random.split(jax.random.fold_in(gradient_key, ASIDE), parts.weight.shape[0])
    signal_to_noise = diagnostics.signal_to_noise(lambda part: gradient(*part), (parts, part_keys), masked.mask)
    # In a sweep events are due in all runs alike, those of a fixed topology too.
    moves = hparams.drop_fraction > 0
    events = Events(
        count=moves.astype(jnp.int32),
        dropped=dropped,
        grown=grown,
        signal_to_noise=jnp.where(moves, signal_to_noise, 0),
    )
    return agent.replace(**{name: evolved.like(network)}), events, differ
