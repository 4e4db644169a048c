"""Behaviour cloning as pure functions: what `cloning` drives, and says in full.

collect: the teacher acts with exploration noise; kept are observations and the actions it would take without noise
learn  = updates
update : one Adam step on the mean squared error of the actor's noise-free actions, on a batch of those;
a topology event if due, its grow score the dense gradient of the same error
report : evaluation from fresh initial states, and the means since the last one
"""

from __future__ import annotations

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp

from rlx2_jax import envs, networks, policies
from rlx2_jax.config import Config, RunConfig, methods
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import SparseNetwork, masking
from rlx2_jax.policies import tickets
from rlx2_jax.training import evaluation, evolution
from rlx2_jax.training.programs import Program, make_program
from rlx2_jax.training.state import FURTHER_KEY, agent_masks


class Examples(flax.struct.PyTreeNode):
    """What the teacher does, and where."""

    observation: jax.Array
    """`[N, O]`."""
    action: jax.Array
    """`[N, A]`, without noise."""


class CloningState(flax.struct.PyTreeNode):
    """All that learning changes."""

    actor: SparseNetwork
    key: jax.Array
    updates: jax.Array
    """int32."""
    loss: jax.Array
    """Sum since the last report, as the two below."""
    links_dropped: jax.Array
    links_grown: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Cloning:
    """A clone's pure functions."""

    program: Program
    """Program of the run with the same configuration."""
    teacher: policies.Policy

    @property
    def config(self) -> RunConfig:
        """What the clone is."""
        return self.program.config

    @property
    def evolve_end(self) -> jax.Array:
        """Updates after which the topology is fixed, int32."""
        return jnp.asarray(int(self.config.total_steps * self.config.evolve_until), jnp.int32)

    def collect(self, params: networks.Params, key: jax.Array) -> Examples:
        """Let the teacher, with these parameters, show what it does: `config.buffer_max` examples."""
        config, act = self.config, self.teacher._replace(params=params).act
        E, N = config.num_envs, config.buffer_max
        vector = envs.VectorEnvironment(self.program.env, E, config.episode_length, max(config.reset_pool, E))

        def step(state: envs.VectorState, key: jax.Array) -> tuple[envs.VectorState, Examples]:
            noise_key, env_key = jax.random.split(key)
            observation = state.current.observation
            action = act(observation)
            noise = config.explore_noise * jax.random.normal(noise_key, action.shape)
            return vector.step(state, action + noise, env_key)[0], Examples(observation, action)

        def chunk(state: envs.VectorState, key: jax.Array) -> tuple[envs.VectorState, Examples]:
            pool_key, step_key = jax.random.split(key)
            keys = jax.random.split(step_key, config.iterations_per_chunk)
            return jax.lax.scan(step, vector.renew(state, pool_key), keys)

        keys = jax.random.split(jax.random.fold_in(key, FURTHER_KEY), math.ceil(N / (E * config.iterations_per_chunk)))
        examples = jax.lax.scan(chunk, vector.init(), keys)[1]
        return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[:N], examples)

    def init(self, key: jax.Array) -> tuple[CloningState, tickets.Networks]:
        """The state before the first update, and the first masks of both networks."""
        # As `steps.init` splits it, so that the actor is that of the run with this configuration.
        agent_key, run_key = jax.random.split(key)
        agent_state = self.program.agent.init(agent_key, self.program.hparams, self.program.ticket)
        count = jnp.zeros((), jnp.int32)
        state = CloningState(
            actor=agent_state.actor,
            key=run_key,
            updates=count,
            loss=jnp.zeros(()),
            links_dropped=count,
            links_grown=count,
        )
        return state, agent_masks(agent_state)

    def learn(self, state: CloningState, examples: Examples) -> CloningState:
        """`config.eval_every` updates."""
        body = lambda state, _: (self.update(state, examples), None)
        return jax.lax.scan(body, state, length=self.config.eval_every)[0]

    def update(self, state: CloningState, examples: Examples) -> CloningState:
        """One update, and a topology event if due."""
        key, batch_key, event_key = jax.random.split(state.key, 3)
        batch = self._sample(examples, batch_key)
        loss, gradient = jax.value_and_grad(self._error)(state.actor.params, state.actor, batch)
        call, schedule = state.updates + 1, self.program.schedule
        nothing = jnp.zeros((), jnp.int32)
        actor, dropped, grown = jax.lax.cond(
            evolution.is_due(self.config, state.updates, call, schedule.evolve_interval, self.evolve_end),
            lambda actor: self._evolve(actor, examples, event_key, call),
            lambda actor: (actor, nothing, nothing),
            state.actor.apply_gradients(gradient, self.program.hparams.actor_lr),
        )
        return CloningState(
            actor=actor,
            key=key,
            updates=call,
            loss=state.loss + loss,
            links_dropped=state.links_dropped + dropped,
            links_grown=state.links_grown + grown,
        )

    def report(self, state: CloningState) -> tuple[CloningState, dict[str, jax.Array]]:
        """One row, and the state with empty sums."""
        config, env = self.config, self.program.env
        key, reset_key = jax.random.split(state.key)
        returns = evaluation.episode_returns(
            env,
            lambda observation: self.program.agent.mode(state.actor, observation),
            jax.vmap(env.reset)(jax.random.split(reset_key, config.eval_episodes)),
            config.episode_length,
        )
        row = {
            "updates": state.updates,
            "return_mean": returns.mean(),
            "return_std": returns.std(),
            "loss": state.loss / config.eval_every,
            "actor_sparsity": masking.sparsity(state.actor.masked().mask),
            "links_dropped": state.links_dropped,
            "links_grown": state.links_grown,
        }
        zero = jnp.zeros((), jnp.int32)
        return state.replace(key=key, loss=jnp.zeros(()), links_dropped=zero, links_grown=zero), row

    def _error(self, params: networks.Params, actor: SparseNetwork, batch: Examples) -> jax.Array:
        mode = self.program.agent.mode(actor.replace(params=params), batch.observation)
        return jnp.mean((mode - batch.action) ** 2)

    def _sample(self, examples: Examples, key: jax.Array) -> Examples:
        chosen = jax.random.randint(key, (self.config.batch_size,), 0, self.config.buffer_max)
        return jax.tree.map(lambda x: x[chosen], examples)

    def _evolve(
        self, actor: SparseNetwork, examples: Examples, key: jax.Array, call: jax.Array
    ) -> tuple[SparseNetwork, jax.Array, jax.Array]:
        sample_key, grow_key = jax.random.split(key)
        masked = actor.masked()
        gradient = jax.grad(self._error)(masked.params, masked, self._sample(examples, sample_key))
        evolved, dropped, grown = evolution.rewire(
            self.config, "actor", masked, gradient, grow_key, self.program.hparams, call, self.evolve_end
        )
        return evolved.like(actor), dropped, grown


def make_cloning(config: Config, teacher: policies.Policy) -> Cloning:
    """Build the functions of a clone; compiles nothing.

    Args:
      config: need not be resolved.
      teacher: whose shapes and kind of agent to expect.

    Raises:
      ConfigError: a configuration that cannot be, a method that changes the number of links, or a teacher of another
        task.
      CheckpointError: a ticket that cannot be read.
    """
    if config.data_parallel > 1:
        raise ConfigError(f"data_parallel={config.data_parallel}: a clone is made on one device; leave it out.")
    if methods.find(config.method).progress is not None:
        raise ConfigError(
            f"method={config.method} changes the number of links, which a clone's critics, as they do not learn, would "
            "keep; use another method."
        )
    program = make_program(config)
    _check_teacher(teacher, program.config, program.env)
    return Cloning(program, teacher)


def _check_teacher(teacher: policies.Policy, config: Config, env: envs.Environment) -> None:
    if teacher.sizes != (env.observation_size, env.action_size):
        raise ConfigError(
            f"the teacher takes {teacher.sizes[0]} numbers and gives {teacher.sizes[1]}, but env={config.env} has "
            f"observations of {env.observation_size} and actions of {env.action_size}; name a policy that was trained "
            "on this task."
        )
