"""A run as pure functions, put together.

    run    = init, then evaluations x (chunks, report), with fresh initial states (renew) before each
    chunk  = iterations (see `steps`)
    report = evaluation, diagnostics, means since the last one (see `reports`)

What each does stands in `steps`, `evolution` and `reports`, as functions of a `Trainer`, the static parts of a run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax import envs
from rlx2_jax.agents import AgentState, Found, OffPolicyAgent, make_agent
from rlx2_jax.agents import own as own_agents
from rlx2_jax.agents.base import Metrics
from rlx2_jax.config import (
    METHOD,
    TIMES,
    UNSEEN,
    VALUES,
    Config,
    HParams,
    RunConfig,
    Schedule,
    make_schedule,
    methods,
    resolve,
)
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks.structure import make_hparams, packable
from rlx2_jax.policies import tickets
from rlx2_jax.replay import buffer
from rlx2_jax.replay.buffer import Replay
from rlx2_jax.runtime import numerics, places
from rlx2_jax.runtime.devices import DataParallel
from rlx2_jax.training import reports, steps
from rlx2_jax.training.state import Report, TrainState, agent_masks, finite, unpack
from rlx2_jax.training.trainer import Trainer

__all__ = [
    "Program",
    "Report",
    "TrainState",
    "agent_masks",
    "finite",
    "make_program",
    "make_train",
    "static_part",
    "unpack",
]


class Program(NamedTuple):
    """A run's pure functions. All take traced hyperparameters; nothing recompiles when those change."""

    config: RunConfig
    """Of the run, with nothing left open."""
    trainer: Trainer
    """What the functions are made of."""
    hparams: HParams
    """Values of the configuration; the functions take any others of the same structure."""
    schedule: Schedule
    """Points in time of the configuration."""
    init: Callable[[jax.Array, HParams], TrainState]
    """(key, hparams) -> state."""
    renew: Callable[[TrainState], TrainState]
    """State with fresh initial states for the environments: call it before every chunk and report."""
    chunk: Callable[[TrainState, HParams, Schedule], TrainState]
    """(state, hparams, schedule) -> state, `config.chunk_steps` environment steps later."""
    learn: Callable[[AgentState, Replay, jax.Array, HParams, jax.Array], tuple[AgentState, Metrics]]
    """(agent state, replay, key, hparams, multi_step) -> (agent state, metrics): one iteration's updates alone."""
    report: Callable[[TrainState, HParams, Schedule], tuple[TrainState, Report]]
    """(state, hparams, schedule) -> (state with an empty tally, report)."""
    ticket: Found | None
    """Masks of another run that it begins with."""
    pack: Callable[[TrainState], TrainState]
    """The state of a masked run on one device as one of this program, packed if that is; inverse of `unpack`."""

    @property
    def env(self) -> envs.Environment:
        """The task."""
        return self.trainer.env

    @property
    def agent(self) -> OffPolicyAgent:
        """Agent of the static part of the configuration."""
        return self.trainer.agent

    @property
    def devices(self) -> DataParallel:
        """The devices it runs on."""
        return self.trainer.devices


def make_program(config: Config) -> Program:
    """Build the functions of a run; compiles nothing.

    Configurations that differ in data alone share their functions, and so what JAX has traced and compiled of them.

    Raises:
      ConfigError: a configuration that cannot be, here.
      CheckpointError: masks to begin with that cannot be read.
    """
    config = resolve(config)
    devices = DataParallel(config.data_parallel)
    devices.check()
    env = envs.make(config.env, config.backend)
    functions = _make_functions(static_part(config), env, _own_parts(config))
    trainer = functions["trainer"]
    ticket = tickets.load_for(config, env.observation_size, env.action_size)
    if ticket is not None:
        # Its masks are constants of the first state alone, and its file may be another by now.
        functions = functions | {"init": _placed(trainer, steps.init, ticket=ticket)}
    hparams = make_hparams(config, env.observation_size, env.action_size)
    if ":" in config.agent:
        own_agents.check(trainer.agent, hparams)
    return Program(
        config=config,
        hparams=hparams,
        schedule=make_schedule(config),
        ticket=ticket,
        **functions,
    )


def static_part(config: RunConfig) -> RunConfig:
    """What of a configuration makes another program; all else is emptied."""
    # How many links there may be is a shape where networks are packed.
    data = {*VALUES, *TIMES, *UNSEEN, *(() if config.compute == "packed" else METHOD)}
    if methods.own(config.method) is not None:
        data -= {*methods.STATIC}
    empty = {name: type(getattr(config, name))() for name in data}
    return dataclasses.replace(config, **empty | {"ticket": None, "buffer_max": buffer.ring_size(config.buffer_max)})


def _own_parts(config: RunConfig) -> tuple[Any, ...]:
    """Agent, networks and method of a person's own, who may define them anew under the same names, as in a notebook."""
    kinds = {
        config.agent: "Class",
        config.network: "function",
        config.network_of("critic"): "function",
        config.method: "name",
    }
    return tuple(places.imported(name, kind) for name, kind in kinds.items() if ":" in name)


PROGRAMS_KEPT = 16
"""Programs whose functions a process keeps."""


@functools.lru_cache(PROGRAMS_KEPT)
def _make_functions(config: RunConfig, env: envs.Environment, own: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Functions of `Program`, by name, and the trainer that they are made of.

    Args:
      config: the static part of it.
      env: its task.
      own: as of `_own_parts`, by which other functions are made where other parts have the same names.
    """
    del own
    pool = max(config.reset_pool, config.num_envs, config.eval_episodes)
    if config.compute == "packed" and not packable(config):
        raise ConfigError(
            f"compute=packed has no form of {config.agent} with network={config.networks}; use compute=masked."
        )
    trainer = Trainer(
        config=config,
        env=env,
        vector=envs.VectorEnvironment(env, config.num_envs, config.episode_length, pool),
        agent=make_agent(config, env.observation_size, env.action_size),
        devices=DataParallel(config.data_parallel),
    )
    functions: dict[str, Callable[..., Any]] = {
        "init": steps.init,
        "renew": steps.renew,
        "chunk": steps.chunk,
        "learn": steps.learn,
        "report": reports.report,
        "pack": pack,
    }
    placed = {name: _placed(trainer, function) for name, function in functions.items()}
    return {"trainer": trainer, **placed}


def _placed(trainer: Trainer, function: Callable[..., Any], **known: Any) -> Callable[..., Any]:
    """A step of a run as a function of what is traced, over the run's devices."""
    return numerics.by_usual_rules(trainer.devices.over_devices(functools.partial(function, trainer, **known)))


def pack(trainer: Trainer, state: TrainState) -> TrainState:
    """The state of a masked run on one device as one of this trainer's, packed if that is; inverse of `unpack`."""
    agent = state.agent
    if trainer.config.compute == "packed":
        agent = agent.replace(**trainer.agent.packed({"actor": agent.actor.masked(), "critic": agent.critic.masked()}))
    return state.replace(agent=agent, apart=None if trainer.devices.count == 1 else jnp.zeros((), jnp.int32))


def make_train(
    config: Config,
) -> Callable[..., tuple[TrainState, Report]]:
    """A whole run as one pure function, for `jit`, `vmap` and `pmap`.

    Returns:
      `train(key, hparams=None, schedule=None) -> (state, reports)`: the final state, and every report with a leading
      axis over evaluations. `hparams` and `schedule` default to the configuration's. Map over keys and
      hyperparameters, not over the schedule: it is shared, so that events stay real branches. With `data_parallel` it
      lies over devices by itself: `jit` and `vmap` it, without `pmap`, and look that `state.apart` is 0.

    Raises:
      ConfigError: a configuration that cannot be.
      CheckpointError: masks to begin with that cannot be read.
    """
    program = make_program(config)
    config = program.config

    def train(
        key: jax.Array, hparams: HParams | None = None, schedule: Schedule | None = None
    ) -> tuple[TrainState, Report]:
        hparams = program.hparams if hparams is None else hparams
        schedule = program.schedule if schedule is None else schedule

        def chunk(state: TrainState, _: None) -> tuple[TrainState, None]:
            return program.chunk(program.renew(state), hparams, schedule), None

        def evaluation_period(state: TrainState, _: None) -> tuple[TrainState, Report]:
            state, _ = jax.lax.scan(chunk, state, length=config.chunks_per_evaluation)
            return program.report(program.renew(state), hparams, schedule)

        state = program.init(key, hparams)
        return jax.lax.scan(evaluation_period, state, length=config.num_evaluations)

    return train
