"""The compiled parts of a run.

    run          = init, then evaluations x (chunks, report), with fresh initial states (renew) before each
    chunk        = iterations
    iteration    = E environments step once; the E transitions enter replay;
                   U critic updates (and U / delay actor updates) from replay;
                   a topology event of critic or actor if due; a buffer check if due
    report       = evaluation from fresh initial states, diagnostics, and the means since the last one

Every switch (warm-up, multi-step delay, events, checks) is a `lax.cond` on `Progress`, which no `vmap` over runs ever
batches, so that what is not due costs nothing in a sweep either. It is also equal on all devices of a run over several
(see `devices`), so that they meet in the same branches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from rlx2_jax import envs, kernels
from rlx2_jax.agents import Agent, AgentState, base, make_agent, masking
from rlx2_jax.agents.structure import link_counts, make_hparams
from rlx2_jax.analysis import diagnostics
from rlx2_jax.config import METHOD, TIMES, UNSEEN, VALUES, Config, HParams, RunConfig, Schedule, make_schedule, resolve
from rlx2_jax.policies import tickets
from rlx2_jax.replay import buffer
from rlx2_jax.replay.buffer import Replay
from rlx2_jax.runtime import numerics
from rlx2_jax.runtime.devices import Share
from rlx2_jax.sparse import topology
from rlx2_jax.training import evaluation

Report = dict[str, jax.Array]
"""Scalars of one evaluation and of the training since the one before."""

OLDEST_BATCHES = 8
"""The policy distance looks at this many batches of oldest transitions (paper: K = 2048 = 8 x 256)."""

ASIDE = 0x7FFFFFFF
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
    """Of the events' gradients, see `diagnostics.signal_to_noise`."""


class Tally(flax.struct.PyTreeNode):
    """Sums since the last report."""

    iterations: jax.Array
    """Iterations that learned."""
    learning: base.Metrics
    """Sums over those iterations."""
    episodes: jax.Array
    """Training episodes finished."""
    episode_return: jax.Array
    """Sum of their returns."""
    actor: Events
    critic: Events

    @property
    def links_dropped(self) -> jax.Array:
        """By all events."""
        return self.actor.dropped + self.critic.dropped

    @property
    def links_grown(self) -> jax.Array:
        """By all events."""
        return self.actor.grown + self.critic.grown


class TrainState(flax.struct.PyTreeNode):
    """All that an exact resume needs."""

    agent: AgentState
    replay: Replay
    envs: envs.VectorState
    key: jax.Array
    progress: Progress
    tally: Tally
    policy_distance: jax.Array
    """At the last buffer check."""
    nonfinite: jax.Array
    """int32: transitions kept out of replay because they were not finite."""
    first_masks: dict[str, tuple[jax.Array, ...]]
    """Those that the run began with, one bit per weight, of `actor` and `critic`."""
    apart: jax.Array | None = None
    """int32: topology events after which devices had different masks, which is none or the run is lost. No leaf for a
    run on one device, nor in a checkpoint."""


class Program(NamedTuple):
    """A run's pure functions. All take traced hyperparameters; nothing recompiles when those change."""

    config: RunConfig
    env: envs.Environment
    agent: Agent
    hparams: HParams
    """Of the configuration; the functions take any others of the same structure."""
    schedule: Schedule
    init: Callable[[jax.Array, HParams], TrainState]
    """(key, hparams) -> state."""
    renew: Callable[[TrainState], TrainState]
    """State with fresh initial states for the environments: call it before every chunk and report."""
    chunk: Callable[[TrainState, HParams, Schedule], TrainState]
    """(state, hparams, schedule) -> state, `config.chunk_steps` environment steps later."""
    learn: Callable[[AgentState, Replay, jax.Array, HParams, jax.Array], tuple[AgentState, base.Metrics]]
    """(agent state, replay, key, hparams, multi_step) -> (agent state, metrics): one iteration's updates alone."""
    report: Callable[[TrainState, HParams, Schedule], tuple[TrainState, Report]]
    """(state, hparams, schedule) -> (state with an empty tally, report)."""
    pack: Callable[[TrainState], TrainState]
    """The state of a masked run on one device as one of this program, packed if that is; inverse of `unpack`."""
    share: Share
    """The devices it runs on."""


def make_program(config: Config) -> Program:
    """Build the functions of a run; compiles nothing.

    Configurations that differ in data alone share their functions, and so what JAX has traced and compiled of them.

    Raises:
      ConfigError: a configuration that cannot be, here.
      CheckpointError: masks to begin with that cannot be read.
    """
    config = resolve(config)
    share = Share(config.data_parallel)
    share.check()
    env = envs.make(config.env, config.backend)
    functions = _make_functions(static_part(config), env)
    if config.ticket is not None:
        # Its masks are constants of the first state alone, and its file may be another by now.
        own = _make_functions.__wrapped__(config, env)
        functions = functions | {name: own[name] for name in ("agent", "init")}
    return Program(
        config=config,
        env=env,
        hparams=make_hparams(config, env.observation_size, env.action_size),
        schedule=make_schedule(config),
        share=share,
        **functions,
    )


def static_part(config: RunConfig) -> RunConfig:
    """What of a configuration makes another program; all else is emptied."""
    # Numbers of links are shapes where networks are packed.
    data = {*VALUES, *TIMES, *UNSEEN, *(() if config.compute == "packed" else METHOD)}
    empty = {name: type(getattr(config, name))() for name in data}
    return dataclasses.replace(config, **empty | {"ticket": None, "buffer_max": buffer.ring_size(config.buffer_max)})


PROGRAMS_KEPT = 16
"""Programs whose functions a process keeps."""


@functools.lru_cache(PROGRAMS_KEPT)
def _make_functions(config: RunConfig, env: envs.Environment) -> dict[str, Any]:
    """Functions of `Program`, by name."""
    share = Share(config.data_parallel)
    pool = max(config.reset_pool, config.num_envs, config.eval_episodes)
    vector = envs.VectorEnvironment(env, config.num_envs, config.episode_length, pool)
    ticket = tickets.load_for(config, env.observation_size, env.action_size)
    agent = make_agent(config, env.observation_size, env.action_size, ticket)
    U, B = config.updates_per_iteration, config.batch_size
    n_max = config.n_max or 1

    def init(key: jax.Array, hparams: HParams) -> TrainState:
        agent_key, run_key = jax.random.split(kernels.fast_key(key))
        zero = jnp.zeros((), jnp.int32)
        agent_state = agent.init(agent_key, hparams)
        replay = buffer.init(
            buffer.ring_size(config.buffer_max or 1),
            config.num_envs,
            config.episode_length,
            env.observation_size,
            env.action_size,
        )
        return TrainState(
            agent=agent_state,
            replay=replay,
            envs=vector.init(),
            key=kernels.key_like(run_key, key),
            progress=Progress(env_steps=zero, critic_calls=zero, actor_calls=zero),
            tally=empty_tally(learning_zeros(agent_state, replay, run_key, hparams)),
            policy_distance=jnp.zeros(()),
            nonfinite=zero,
            first_masks={name: diagnostics.compress(mask) for name, mask in agent_masks(agent_state).items()},
            apart=None if share.count == 1 else zero,
        )

    def n_step_now(hparams: HParams, multi_step: jax.Array) -> jax.Array:
        return jnp.where(multi_step, hparams.n_step, 1)

    def sample(
        replay: Replay, key: jax.Array, shape: tuple[int, ...], hparams: HParams, multi_step: jax.Array
    ) -> buffer.Batch:
        return buffer.sample(replay, key, shape, n_step_now(hparams, multi_step), n_max, hparams.gamma, share)

    def learn(
        agent_state: AgentState,
        replay: Replay,
        key: jax.Array,
        hparams: HParams,
        multi_step: jax.Array,
    ) -> tuple[AgentState, base.Metrics]:
        sample_key, update_key = jax.random.split(key)
        batches = sample(replay, sample_key, (U, B), hparams, multi_step)
        return agent.updates(agent_state, batches, update_key, hparams, multi_step)

    def learning_zeros(*args: Any) -> base.Metrics:
        shapes = jax.eval_shape(learn, *args, jax.ShapeDtypeStruct((), bool))[1]
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def evolve(
        name: str,
        gradient: Callable[..., Any],
        state: AgentState,
        replay: Replay,
        key: jax.Array,
        hparams: HParams,
        multi_step: jax.Array,
        call: jax.Array,
        end: jax.Array,
    ) -> tuple[AgentState, Events, jax.Array | None]:
        sample_key, gradient_key, grow_key = jax.random.split(key, 3)
        batch = sample(replay, sample_key, (B,), hparams, multi_step)
        # Scores are dense gradients, so a packed network is unpacked for the event.
        before = getattr(state, name)
        unpacked = base.unpack(before)
        dense = state.replace(**{name: unpacked})
        network, dropped, grown = base.evolve(
            unpacked,
            gradient(dense, batch, gradient_key, hparams, multi_step),
            grow_key,
            topology.drop_fraction_at(hparams.drop_fraction, call, end),
            hparams.grow_gradient,
            reset_moments=config.reset_moments,
        )
        differ = share.differ(masking.checksum(network.mask))
        network = base.pack_like(network, before)
        parts = diagnostics.split(batch)
        part_keys = jax.random.split(jax.random.fold_in(gradient_key, ASIDE), parts.weight.shape[0])
        signal_to_noise = diagnostics.signal_to_noise(
            lambda part: gradient(dense, *part, hparams, multi_step), (parts, part_keys), unpacked.mask
        )
        # In a sweep events are due in all runs alike, those of a fixed topology too.
        moves = hparams.drop_fraction > 0
        events = Events(
            count=moves.astype(jnp.int32),
            dropped=dropped,
            grown=grown,
            signal_to_noise=jnp.where(moves, signal_to_noise, 0),
        )
        return state.replace(**{name: network}), events, differ

    def check_buffer(
        agent_state: AgentState, replay: Replay, hparams: HParams, learning: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # An agent that has not learned says nothing about random actions. At the paper's length this cannot be: the
        # warm-up ends before there are more than the fewest transitions to keep.
        return buffer.shrink(
            replay,
            lambda observation: agent.mode(agent_state.actor, observation),
            OLDEST_BATCHES * B,
            config.distance,
            threshold=jnp.where(hparams.dynamic_buffer & learning, hparams.distance_threshold, jnp.inf),
            least=hparams.buffer_min,
            ratio=hparams.drop_ratio,
            until_close=config.drop_rule == "until_close",
        )

    def iteration(state: TrainState, hparams: HParams, schedule: Schedule) -> TrainState:
        key, act_key, random_key, env_key, learn_key, critic_key, actor_key = jax.random.split(
            kernels.fast_key(state.key), 7
        )
        before, tally = state.progress, state.tally
        learning = before.env_steps >= schedule.warmup_steps
        observation = state.envs.current.observation

        action, mean = agent.explore(state.agent, observation, act_key, hparams)
        at_random = jax.random.uniform(random_key, action.shape, minval=-1.0)
        action = jnp.where(learning, action, at_random)
        mean = jnp.where(learning, mean, at_random)

        env_state, result = vector.step(state.envs, action, env_key)
        step = buffer.Step(
            observation=observation,
            action=action,
            mean=mean,
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated,
            finite=result.finite,
            final_observation=result.final_observation,
        )
        replay = buffer.add(state.replay, step, hparams.buffer_max)

        # Of the iteration as a whole, events included: their scores are of the loss that its updates descended.
        multi_step = before.critic_calls >= schedule.n_step_delay
        agent_state, metrics = jax.lax.cond(
            learning,
            lambda agent_state: learn(agent_state, replay, learn_key, hparams, multi_step),
            lambda agent_state: (agent_state, jax.tree.map(jnp.zeros_like, tally.learning)),
            state.agent,
        )
        after = Progress(
            env_steps=before.env_steps + config.num_envs,
            critic_calls=before.critic_calls + jnp.where(learning, U, 0),
            actor_calls=before.actor_calls + jnp.where(learning, U // config.delay, 0),
        )

        events, apart = {}, state.apart
        for name, gradient, event_key in (
            ("critic", agent.critic_gradient, critic_key),
            ("actor", agent.actor_gradient, actor_key),
        ):
            call = getattr(after, f"{name}_calls")
            end = getattr(schedule, f"{name}_evolve_end")
            agent_state, event, differ = jax.lax.cond(
                crossed(getattr(before, f"{name}_calls"), call, schedule.evolve_interval) & (call < end),
                lambda s, name=name, gradient=gradient, event_key=event_key, call=call, end=end: evolve(
                    name, gradient, s, replay, event_key, hparams, multi_step, call, end
                ),
                lambda s: (s, no_events(), jax.tree.map(jnp.zeros_like, state.apart)),
                agent_state,
            )
            events[name] = jax.tree.map(jnp.add, getattr(tally, name), event)
            apart = jax.tree.map(jnp.add, apart, differ)

        distance, left = jax.lax.cond(
            crossed(before.env_steps, after.env_steps, schedule.buffer_check_interval),
            lambda: check_buffer(agent_state, replay, hparams, learning),
            lambda: (state.policy_distance, replay.left),
        )
        ended = result.terminated | result.truncated
        return state.replace(
            agent=agent_state,
            replay=replay.replace(left=left),
            envs=env_state,
            key=kernels.key_like(key, state.key),
            progress=after,
            tally=Tally(
                iterations=tally.iterations + learning,
                learning=jax.tree.map(jnp.add, tally.learning, metrics),
                episodes=tally.episodes + ended.sum(),
                episode_return=tally.episode_return + result.finished_return.sum(),
                **events,
            ),
            policy_distance=distance,
            nonfinite=state.nonfinite + (~result.finite).sum(),
            apart=apart,
        )

    def renew(state: TrainState) -> TrainState:
        key, pool_key = jax.random.split(state.key)
        return state.replace(key=key, envs=vector.renew(state.envs, pool_key))

    def chunk(state: TrainState, hparams: HParams, schedule: Schedule) -> TrainState:
        body = lambda state, _: (iteration(state, hparams, schedule), None)
        return jax.lax.scan(body, state, length=config.iterations_per_chunk)[0]

    def report(state: TrainState, hparams: HParams, schedule: Schedule) -> tuple[TrainState, Report]:
        policy = lambda observation: agent.mode(state.agent.actor, observation)
        first = jax.tree.map(lambda x: x[: config.eval_episodes], state.envs.pool)
        returns = evaluation.play(env, policy, first, config.episode_length, hparams.gamma)
        pairs = jnp.concatenate([first.observation, policy(first.observation)], -1)
        q = diagnostics.activations(base.unpack(state.agent.critic).params, pairs)[1][..., 0].min(0)
        tally, progress = state.tally, state.progress
        multi_step = progress.critic_calls >= schedule.n_step_delay
        values = {
            "env_steps": progress.env_steps,
            "updates": progress.critic_calls,
            "return_mean": returns.plain.mean(),
            "return_std": returns.plain.std(),
            "train_return": tally.episode_return / tally.episodes,
            **jax.tree.map(lambda s: s / tally.iterations, tally.learning),
            "actor_sparsity": masking.sparsity(state.agent.actor.mask),
            "critic_sparsity": masking.sparsity(state.agent.critic.mask),
            "links_dropped": tally.links_dropped,
            "links_grown": tally.links_grown,
            "policy_distance": state.policy_distance,
            "replay_size": buffer.size(state.replay),
            "n_step": n_step_now(hparams, multi_step),
            "nonfinite": state.nonfinite,
            "return_discounted": returns.discounted.mean(),
            "value_bias": jnp.mean(q - returns.discounted),
            **diagnose(state, hparams),
        }
        emptied = empty_tally(jax.tree.map(jnp.zeros_like, tally.learning))
        return state.replace(tally=emptied), values

    def diagnose(state: TrainState, hparams: HParams) -> Report:
        # A key of its own: diagnostics leave no trace in a run.
        sample_key = jax.random.fold_in(kernels.fast_key(state.key), ASIDE)
        batch = buffer.sample(state.replay, sample_key, (diagnostics.SAMPLES,), jnp.asarray(1), n_max, hparams.gamma)
        pairs = jnp.concatenate([batch.observation, batch.action], -1)
        values: Report = {}
        for name, inputs in (("actor", batch.observation), ("critic", pairs)):
            network = base.unpack(getattr(state.agent, name))
            width, events = getattr(hparams, f"{name}_width"), getattr(state.tally, name)
            hidden, _ = diagnostics.activations(network.params, inputs)
            found = diagnostics.wiring(network.mask, width) | {
                "churn": events.grown / masking.count(network.mask),
                "overlap": diagnostics.overlap(network.mask, state.first_masks[name]),
                "dormant": diagnostics.dormant(hidden, width),
                "gradient_snr": events.signal_to_noise / events.count,
            }
            if name == "critic":
                found["rank"] = diagnostics.effective_rank(hidden[-1]).mean()
            values |= {f"{name}_{what}": value for what, value in found.items()}
        return values

    def pack(state: TrainState) -> TrainState:
        agent = state.agent
        if config.compute == "packed":
            counts = link_counts(config, env.observation_size, env.action_size)
            actor, critic = base.pack(agent.actor, counts["actor"]), base.pack(agent.critic, counts["critic"])
            agent = agent.replace(actor=actor, critic=critic)
        return state.replace(agent=agent, apart=None if share.count == 1 else jnp.zeros((), jnp.int32))

    placed = lambda function: numerics.by_usual_rules(share.over_devices(function))
    functions = {"init": init, "renew": renew, "chunk": chunk, "learn": learn, "report": report, "pack": pack}
    return {"agent": agent} | {name: placed(function) for name, function in functions.items()}


def unpack(state: TrainState) -> TrainState:
    """The state of any run as one of a masked run on one device, exactly: what checkpoints hold."""
    agent = state.agent.replace(actor=base.unpack(state.agent.actor), critic=base.unpack(state.agent.critic))
    return state.replace(agent=agent, apart=None)


def agent_masks(agent: AgentState) -> dict[str, masking.Masks]:
    """The boolean masks of both networks, by name, masked or packed."""
    return {"actor": base.unpack(agent.actor).mask, "critic": base.unpack(agent.critic).mask}


def crossed(before: jax.Array, after: jax.Array, interval: jax.Array) -> jax.Array:
    """Whether a counter passed a multiple of `interval` on its way from `before` to `after`."""
    return after // interval > before // interval


def empty_tally(learning: base.Metrics) -> Tally:
    """A tally of nothing, with the given zeros for the agent's metrics."""
    zero, count = jnp.zeros(()), jnp.zeros((), jnp.int32)
    return Tally(
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


def finite(state: TrainState) -> jax.Array:
    """Whether all parameters and targets, and some experience, are finite; false for a diverged run."""
    actor, critic = state.agent.actor, state.agent.critic
    learned = (actor.params, actor.target, critic.params, critic.target, state.agent.log_alpha)
    good = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(learned)]).all()
    return good & (state.nonfinite < jnp.maximum(state.progress.env_steps, 1))


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
