"""Topology events of a run: when one is due, and what it does to a network."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax.agents import AgentState
from rlx2_jax.analysis import diagnostics
from rlx2_jax.config import HParams, RunConfig, Schedule, methods
from rlx2_jax.networks import Masked, Params, masking, own
from rlx2_jax.replay.buffer import Replay
from rlx2_jax.sparse import topology
from rlx2_jax.training.state import FURTHER_KEY, Events, Progress, no_events
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

    def calls(self, name: str) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Optimiser calls of a network before and after the updates, and those after which its topology is fixed."""
        counters = (getattr(progress, f"{name}_calls") for progress in (self.before, self.after))
        return *counters, getattr(self.schedule, f"{name}_evolve_end")


def evolve_if_due(
    trainer: Trainer, agent: AgentState, replay: Replay, moment: Moment, keys: Mapping[str, jax.Array]
) -> tuple[AgentState, dict[str, Events], jax.Array | None]:
    """Topology events of the networks that `keys` names, in turn, of those that are due.

    Returns:
      The agent, what the events did, and how many left devices with different masks (see `DataParallel.mismatch`).
    """
    events: dict[str, Events] = {}
    apart = zero = None if trainer.devices.count == 1 else jnp.zeros((), jnp.int32)
    for name, key in keys.items():
        before, after, end = moment.calls(name)
        agent, events[name], differ = jax.lax.cond(
            is_due(trainer.config, before, after, moment.schedule.evolve_interval, end),
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
    """One topology event of one network, by the dense gradient on a fresh batch, or its mean over several.

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
    _, calls, end = moment.calls(name)
    sample_key, gradient_key, grow_key = jax.random.split(key, 3)
    # Losses are means over their batch, so the mean gradient of several batches is that of one as large as all.
    size = trainer.config.score_batches * trainer.config.batch_size
    batch = trainer.sample(replay, sample_key, (size,), hparams, multi_step)
    # Scores are dense gradients, so a packed network is unpacked for the event.
    network = getattr(agent, name)
    masked = network.masked()
    dense = agent.replace(**{name: masked})
    gradient = lambda batch, key: trainer.agent.gradient(name, dense, batch, key, hparams, multi_step)
    evolved, dropped, grown = rewire(
        trainer.config, name, masked, gradient(batch, gradient_key), grow_key, hparams, calls, end
    )
    differ = trainer.devices.mismatch(masking.checksum(evolved.mask))
    parts = diagnostics.split(batch)
    part_keys = jax.random.split(jax.random.fold_in(gradient_key, FURTHER_KEY), parts.weight.shape[0])
    signal_to_noise = diagnostics.signal_to_noise(lambda part: gradient(*part), (parts, part_keys), masked.mask)
    # In a sweep events are due in all runs alike, those of a fixed topology too.
    moves = hparams.drop_fraction > 0
    if _changes(trainer.config):
        moves = masking.sparsity(masked.mask) > 0  # Of a network that is dense yet there are no candidates.
    events = Events(
        count=moves.astype(jnp.int32),
        dropped=dropped,
        grown=grown,
        signal_to_noise=jnp.where(moves, signal_to_noise, 0),
    )
    return agent.replace(**{name: evolved.like(network)}), events, differ


def is_due(config: RunConfig, before: jax.Array, after: jax.Array, interval: jax.Array, end: jax.Array) -> jax.Array:
    """Whether an event is due: the optimiser's counter passes a multiple of the interval, before the end.

    Where the number of links changes, the last event is at the end, which brings it to what is asked for.
    """
    passed = crossed(before, after, interval) & (after < end)
    return passed | ((before < end) & (after >= end)) if _changes(config) else passed


def rewire(
    config: RunConfig,
    name: str,
    network: Masked,
    gradient: Params,
    key: jax.Array,
    hparams: HParams,
    calls: jax.Array,
    end: jax.Array,
) -> tuple[Masked, jax.Array, jax.Array]:
    """Move the links of a network, by the compared methods, which are data, or by a method of one's own.

    Args:
      config: of the run, or its static part.
      name: `actor` or `critic`.
      network: whose links move.
      gradient: dense.
      key: for random growth.
      hparams: of the run.
      calls: optimiser calls made.
      end: T_end in calls.

    Returns:
      The network, and how many links went and came.
    """
    fraction = topology.drop_fraction_at(hparams.drop_fraction, calls, end)
    mechanisms = methods.own(config.method)
    if mechanisms is None:
        return network.evolve(gradient, key, fraction, hparams.grow_gradient, reset_moments=config.reset_moments)
    time = jnp.minimum(calls.astype(jnp.float32) / jnp.maximum(end, 1).astype(jnp.float32), 1)
    if mechanisms.fraction is not None:
        fraction = jnp.where(calls < end, hparams.drop_fraction * mechanisms.fraction(time), 0.0)
    method = own.with_links(mechanisms, config, network.params, getattr(hparams, f"{name}_links"))
    return network.rewire(method, gradient, key, fraction, time, reset_moments=config.reset_moments)


def _changes(config: RunConfig) -> bool:
    """Whether the number of links changes."""
    mechanisms = methods.own(config.method)
    return mechanisms is not None and mechanisms.progress is not None
