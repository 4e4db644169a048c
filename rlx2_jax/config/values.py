"""What programs see of a configuration as data: `HParams`, each run's own, and `Schedule`, when things happen.

A setting is one of four things, and which one follows from where it is declared:

* data: `HParams` holds it, or holds something that is made of it. Runs that differ in it may share a program under a
  `vmap`.
* a time: the same of `Schedule`, which is traced too, but never batched, so that every `lax.cond` reading it stays a
  branch.
* the host's: `Config` declares who reads it there, and no program sees it.
* static: all others, shapes and names. Another value makes another program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlx2_jax.config.config import Config, RunConfig
from rlx2_jax.config.fields import NEVER, Host


def _made_of(*settings: str) -> dict[str, Any]:
    """Declare the settings that a program sees as this value, where that is not the setting of the same name."""
    return {"made_of": settings}


class HParams(flax.struct.PyTreeNode):
    """What may differ between the runs of one compiled program: a pytree of scalars, `vmap` over it freely."""

    actor_lr: jax.Array
    """Adam step size of the actor."""
    critic_lr: jax.Array
    """Adam step size of the critics."""
    alpha_lr: jax.Array
    """Adam step size of SAC's temperature."""
    gamma: jax.Array
    """Discount per step."""
    tau: jax.Array
    """Polyak step of the targets."""
    explore_noise: jax.Array
    """TD3: standard deviation of the exploration noise."""
    target_noise: jax.Array
    """TD3: standard deviation of the target action's noise."""
    target_noise_clip: jax.Array
    """TD3: bound of the target action's noise."""
    actor_links: tuple[jax.Array, ...] = flax.struct.field(metadata=_made_of("method", "actor_sparsity"))
    """Number of active links of each actor matrix, in the order of `masking.kernels`; where it changes, at the end."""
    critic_links: tuple[jax.Array, ...] = flax.struct.field(metadata=_made_of("method", "critic_sparsity"))
    """The same for each matrix of one critic."""
    actor_width: jax.Array = flax.struct.field(metadata=_made_of("method", "actor_sparsity"))
    """Live hidden units per layer of the actor; less than the width for the method `tiny` only."""
    critic_width: jax.Array = flax.struct.field(metadata=_made_of("method", "critic_sparsity"))
    """The same of the critics."""
    drop_fraction: jax.Array
    """zeta_0: share of links moved by the first event; 0 where the topology is fixed."""
    grow_gradient: jax.Array = flax.struct.field(metadata=_made_of("topology"))
    """Whether links grow where the gradient is largest (RigL) or at random (SET)."""
    n_step: jax.Array
    """Steps in a TD target, once the delay is over."""
    dynamic_buffer: jax.Array
    """Whether old off-policy data is dropped."""
    buffer_max: jax.Array
    """Transitions, at most what the program's ring holds."""
    buffer_min: jax.Array
    """Fewest transitions kept."""
    distance_threshold: jax.Array
    """Policy distance above which old data is dropped."""
    drop_ratio: jax.Array
    """Share of the buffer dropped at once."""


class Schedule(flax.struct.PyTreeNode):
    """When things happen: traced int32 scalars shared by all runs of a program, so that conditions stay branches."""

    warmup_steps: jax.Array
    """Environment steps."""
    evolve_interval: jax.Array
    """Optimiser calls of the network in question."""
    critic_evolve_end: jax.Array = flax.struct.field(metadata=_made_of("evolve_until"))
    """T_end in critic optimiser calls."""
    actor_evolve_end: jax.Array = flax.struct.field(metadata=_made_of("evolve_until"))
    """T_end in actor optimiser calls."""
    n_step_delay: jax.Array
    """Critic optimiser calls."""
    buffer_check_interval: jax.Array
    """Environment steps."""


def _same(values: type[HParams | Schedule]) -> tuple[str, ...]:
    """Settings that traced values hold by the same name."""
    return tuple(field.name for field in dataclasses.fields(values) if "made_of" not in field.metadata)


def _behind(values: type[HParams | Schedule]) -> tuple[str, ...]:
    """Settings that the other traced values are made of."""
    made_of = (field.metadata.get("made_of", ()) for field in dataclasses.fields(values))
    return tuple(dict.fromkeys(name for names in made_of for name in names))


def _read_by(*hosts: Host) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(Config) if field.metadata["host"] in hosts)


VALUES = _same(HParams)
"""Settings that are data of every program, each run's own."""

METHOD = _behind(HParams)
"""Settings that are data of masked programs: numbers of links, and what moves them. Packed ones have them as shapes."""

TIMES = (*_same(Schedule), *_behind(Schedule))
"""Settings that are data of every program, one schedule for all runs of a batch."""

UNSEEN = _read_by(Host.RUN, Host.LOOP)
"""Settings that no program sees, but whoever calls it."""

OWN = _read_by(Host.RUN)
"""Those of them that each run of a batch has for itself."""

_DTYPES = {"float": jnp.float32, "int": jnp.int32, "bool": jnp.bool_}


def traced(config: RunConfig, settings: Iterable[str]) -> dict[str, jax.Array]:
    """Settings as scalars of the types that they are declared with."""
    dtypes = {field.name: _DTYPES.get(str(field.type)) for field in dataclasses.fields(config)}
    return {name: jnp.asarray(getattr(config, name), dtypes[name]) for name in settings}


def make_schedule(config: RunConfig) -> Schedule:
    """The points in time of a configuration. What a run never does is put beyond its end."""
    c = dataclasses.replace(
        config,
        evolve_interval=NEVER if config.topology == "fixed" else config.evolve_interval,
        n_step_delay=NEVER if config.n_step == 1 else config.n_step_delay,
    )
    calls = int(c.updates * c.evolve_until)
    return Schedule(
        **traced(c, _same(Schedule)),
        critic_evolve_end=jnp.asarray(calls, jnp.int32),
        actor_evolve_end=jnp.asarray(calls // c.delay, jnp.int32),
    )
