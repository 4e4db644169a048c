"""What the compiled program of a run does, step by step.

    chunk        = iterations
    iteration    = collect:  E environments step, the E transitions enter replay: once, or as often as whole cycles of
                             updates take (with one environment, twice for TD3's delay of 2);
                   learn:    U critic updates (and U / delay actor updates) from replay, once warmed up;
                   evolve:   a topology event of critic or actor, if due (see `evolution`);
                   check:    the buffer's policy distance, if due

Every switch (warm-up, multi-step delay, events, checks) is a `lax.cond` on `Progress`, which no `vmap` over runs ever
batches, so that what is not due costs nothing in a sweep either. It is also equal on all devices of a run over several
(see `runtime.devices`), so that they meet in the same branches.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax import envs, kernels
from rlx2_jax.agents import AgentState, Found
from rlx2_jax.agents.base import Metrics
from rlx2_jax.analysis import diagnostics
from rlx2_jax.config import HParams, Schedule
from rlx2_jax.replay import buffer
from rlx2_jax.replay.buffer import Replay
from rlx2_jax.training import evolution
from rlx2_jax.training.state import MetricSums, Progress, TrainState, agent_masks, empty_tally
from rlx2_jax.training.trainer import Trainer, crossed

OLDEST_BATCHES = 8
"""The policy distance looks at this many batches of oldest transitions (paper: K = 2048 = 8 x 256)."""


def init(trainer: Trainer, key: jax.Array, hparams: HParams, ticket: Found | None = None) -> TrainState:
    """A run before its first step; a ticket is what another run found, to begin with."""
    config, env = trainer.config, trainer.env
    agent_key, run_key = jax.random.split(kernels.fast_key(key))
    zero = jnp.zeros((), jnp.int32)
    agent_state = trainer.agent.init(agent_key, hparams, ticket)
    replay = buffer.init(
        buffer.ring_size(config.buffer_max),
        config.num_envs,
        config.episode_length,
        env.observation_size,
        env.action_size,
    )
    return TrainState(
        agent=agent_state,
        replay=replay,
        envs=trainer.vector.init(),
        key=kernels.key_like(run_key, key),
        progress=Progress(env_steps=zero, critic_calls=zero, actor_calls=zero),
        tally=empty_tally(_no_metrics(trainer, agent_state, replay, run_key, hparams)),
        policy_distance=jnp.zeros(()),
        nonfinite=zero,
        first_masks={name: diagnostics.compress(mask) for name, mask in agent_masks(agent_state).items()},
        apart=None if trainer.devices.count == 1 else zero,
    )


def _no_metrics(trainer: Trainer, *args: object) -> Metrics:
    shapes = jax.eval_shape(lambda *args: learn(trainer, *args)[1], *args, jax.ShapeDtypeStruct((), bool))
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def renew(trainer: Trainer, state: TrainState) -> TrainState:
    """State with fresh initial states for the environments."""
    key, pool_key = jax.random.split(state.key)
    return state.replace(key=key, envs=trainer.vector.renew(state.envs, pool_key))


def chunk(trainer: Trainer, state: TrainState, hparams: HParams, schedule: Schedule) -> TrainState:
    """`config.chunk_steps` environment steps."""
    body = lambda state, _: (iteration(trainer, state, hparams, schedule), None)
    return jax.lax.scan(body, state, length=trainer.config.iterations_per_chunk)[0]


def iteration(trainer: Trainer, state: TrainState, hparams: HParams, schedule: Schedule) -> TrainState:
    """Steps of all environments, one if it can be, and what is learned from them."""
    key, act_key, random_key, env_key, learn_key, critic_key, actor_key = jax.random.split(
        kernels.fast_key(state.key), 7
    )
    before, tally = state.progress, state.tally
    learning = before.env_steps >= schedule.warmup_steps
    env_state, replay, collected = collect(trainer, state, (act_key, random_key, env_key), hparams, learning)

    # Of the iteration as a whole, events included: their scores are of the loss that its updates descended.
    multi_step = before.critic_calls >= schedule.n_step_delay
    agent_state, metrics = jax.lax.cond(
        learning,
        lambda agent_state: learn(trainer, agent_state, replay, learn_key, hparams, multi_step),
        lambda agent_state: (agent_state, jax.tree.map(jnp.zeros_like, tally.learning)),
        state.agent,
    )
    after = advance(trainer, before, learning)
    moment = evolution.Moment(before, after, hparams, schedule, multi_step)
    agent_state, events, differ = evolution.evolve_if_due(
        trainer, agent_state, replay, moment, {"critic": critic_key, "actor": actor_key}
    )
    distance, left = jax.lax.cond(
        crossed(before.env_steps, after.env_steps, schedule.buffer_check_interval),
        lambda: check_buffer(trainer, agent_state, replay, hparams, learning),
        lambda: (state.policy_distance, replay.left),
    )
    return state.replace(
        agent=agent_state,
        replay=replay.replace(left=left),
        envs=env_state,
        key=kernels.key_like(key, state.key),
        progress=after,
        tally=MetricSums(
            iterations=tally.iterations + learning,
            learning=jax.tree.map(jnp.add, tally.learning, metrics),
            episodes=tally.episodes + collected.episodes,
            episode_return=tally.episode_return + collected.episode_return,
            actor=jax.tree.map(jnp.add, tally.actor, events["actor"]),
            critic=jax.tree.map(jnp.add, tally.critic, events["critic"]),
        ),
        policy_distance=distance,
        nonfinite=state.nonfinite + collected.nonfinite,
        apart=jax.tree.map(jnp.add, state.apart, differ),
    )


class Collected(NamedTuple):
    """What the steps of an iteration came to, in all environments together."""

    episodes: jax.Array
    """int32: those that ended."""
    episode_return: jax.Array
    """Sum of their returns."""
    nonfinite: jax.Array
    """int32: transitions that must never be learned from."""


Keys = tuple[jax.Array, jax.Array, jax.Array]
"""Of exploration, of random actions, and of the environments."""


def collect(
    trainer: Trainer, state: TrainState, keys: Keys, hparams: HParams, learning: jax.Array
) -> tuple[envs.VectorState, Replay, Collected]:
    """The iteration's steps of all environments, into replay.

    Args:
      trainer: of the run.
      state: of the run.
      keys: of the iteration.
      hparams: of the run.
      learning: whether the warm-up is over.

    Returns:
      The environments and replay after the steps, and what they came to.
    """

    def once(carry: tuple[envs.VectorState, Replay], keys: Keys) -> tuple[tuple[envs.VectorState, Replay], Collected]:
        env_state, replay = carry
        env_state, step, finished_return = act(trainer, state.agent, env_state, keys, hparams, learning)
        return (env_state, buffer.add(replay, step, hparams.buffer_max)), Collected(
            episodes=(step.terminated | step.truncated).sum(),
            episode_return=finished_return.sum(),
            nonfinite=(~step.finite).sum(),
        )

    count, before = trainer.config.steps_per_iteration // trainer.config.num_envs, (state.envs, state.replay)
    if count == 1:  # The usual one, without a loop, and with the iteration's own keys.
        (env_state, replay), collected = once(before, keys)
    else:
        each = jax.tree.map(lambda key: jax.random.split(key, count), keys)
        (env_state, replay), steps = jax.lax.scan(once, before, each)
        collected = jax.tree.map(lambda x: x.sum(0), steps)
    return env_state, replay, collected


def act(
    trainer: Trainer,
    agent_state: AgentState,
    env_state: envs.VectorState,
    keys: Keys,
    hparams: HParams,
    learning: jax.Array,
) -> tuple[envs.VectorState, buffer.Step, jax.Array]:
    """One step of all environments: of the agent, or at random during the warm-up.

    Args:
      trainer: of the run.
      agent_state: of the run.
      env_state: of the environments.
      keys: of the step.
      hparams: of the run.
      learning: whether the warm-up is over.

    Returns:
      The environments, the step as it enters replay, and the returns `[E]` of the episodes that it ended, else 0.
    """
    act_key, random_key, env_key = keys
    observation = env_state.current.observation
    action, mean = trainer.agent.explore(agent_state, observation, act_key, hparams)
    at_random = jax.random.uniform(random_key, action.shape, minval=-1.0)
    action = jnp.where(learning, action, at_random)
    mean = jnp.where(learning, mean, at_random)
    env_state, result = trainer.vector.step(env_state, action, env_key)
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
    return env_state, step, result.finished_return


def learn(
    trainer: Trainer,
    agent_state: AgentState,
    replay: Replay,
    key: jax.Array,
    hparams: HParams,
    multi_step: jax.Array,
) -> tuple[AgentState, Metrics]:
    """One iteration's updates: all its batches are drawn at once."""
    sample_key, update_key = jax.random.split(key)
    shape = trainer.config.updates_per_iteration, trainer.config.batch_size
    batches = trainer.sample(replay, sample_key, shape, hparams, multi_step)
    return trainer.agent.updates(agent_state, batches, update_key, hparams, multi_step)


def advance(trainer: Trainer, before: Progress, learning: jax.Array) -> Progress:
    """The counters after an iteration."""
    config = trainer.config
    updates = config.updates_per_iteration
    return Progress(
        env_steps=before.env_steps + config.steps_per_iteration,
        critic_calls=before.critic_calls + jnp.where(learning, updates, 0),
        actor_calls=before.actor_calls + jnp.where(learning, updates // config.delay, 0),
    )


def check_buffer(
    trainer: Trainer, agent_state: AgentState, replay: Replay, hparams: HParams, learning: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The policy distance of the oldest transitions, and where the buffer begins after they were judged by it."""
    config = trainer.config
    # An agent that has not learned says nothing about random actions. At the paper's length this cannot be: the
    # warm-up ends before there are more than the fewest transitions to keep.
    return buffer.shrink(
        replay,
        lambda observation: trainer.agent.mode(agent_state.actor, observation),
        OLDEST_BATCHES * config.batch_size,
        config.distance,
        threshold=jnp.where(hparams.dynamic_buffer & learning, hparams.distance_threshold, jnp.inf),
        least=hparams.buffer_min,
        ratio=hparams.drop_ratio,
        until_close=config.drop_rule == "until_close",
    )
