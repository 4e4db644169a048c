"""Behaviour cloning: a sparse actor that imitates a trained policy, with a topology that is fixed or evolves.

    clone  = collect, then evaluations x (updates, report)
    collect: the teacher acts in the environments with exploration noise; kept are the observations, and beside each
             the action that the teacher would have taken there without noise
    update : one Adam step on the mean squared error of the actor's noise-free actions, on a batch of those;
             a topology event if due, its grow score the dense gradient of the same error

A clone is described by a `Config`, and its actor begins as that of the reinforcement learning run of the same `Config`
does: with the same weights, and with the same mask or ticket. What the fields mean here:

| field | here |
|---|---|
| `total_steps`, `eval_every`, `evolve_interval` | in updates |
| `buffer_max` | observations collected |
| `explore_noise` | standard deviation of the noise while collecting |
| `batch_size`, `actor_lr` | of an update |
| `method`, `topology`, `drop_fraction`, `evolve_until`, `actor_sparsity`, `ticket` | of the actor, as ever |

There is no critic, and what concerns one, targets or replay has no effect. Of a SAC actor the mean is trained; nothing
teaches its standard deviation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax import envs, networks, policies
from rlx2_jax.config import Config, RunConfig
from rlx2_jax.errors import ConfigError, DivergedError
from rlx2_jax.io import files, provenance
from rlx2_jax.networks import SparseNetwork, masking
from rlx2_jax.policies import tickets
from rlx2_jax.runtime import memory, numerics
from rlx2_jax.training import compute, evaluation, evolution, loop, workdirs
from rlx2_jax.training.programs import make_program
from rlx2_jax.training.record import Row, plain_row
from rlx2_jax.training.state import ASIDE, agent_masks


class Clone(NamedTuple):
    """What imitation gave."""

    rows: list[Row]
    """One per evaluation: `updates`, `return_mean`, `return_std`, `loss` (mean since the row before), `actor_sparsity`,
    `links_dropped`, `links_grown`."""
    policy: policies.Policy
    """At the end."""
    masks: tickets.Ticket
    """At the beginning and at the end. The critics' are those that a run of this configuration begins with."""


class Examples(flax.struct.PyTreeNode):
    """What the teacher does, and where."""

    observation: jax.Array
    """`[N, O]`."""
    action: jax.Array
    """`[N, A]`, without noise."""


class State(flax.struct.PyTreeNode):
    """All that learning changes."""

    actor: SparseNetwork
    key: jax.Array
    updates: jax.Array
    """int32."""
    loss: jax.Array
    """Sum since the last report, as the two below."""
    links_dropped: jax.Array
    links_grown: jax.Array


class Cloning(NamedTuple):
    """A clone's pure functions."""

    config: RunConfig
    collect: Callable[[networks.Params, jax.Array], Examples]
    """(teacher's parameters, key) -> examples."""
    init: Callable[[jax.Array], tuple[State, tickets.Networks]]
    """(key) -> (state, first masks)."""
    update: Callable[[State, Examples], State]
    """(state, examples) -> state after one update, and a topology event if due."""
    learn: Callable[[State, Examples], State]
    """(state, examples) -> state, `config.eval_every` updates later."""
    report: Callable[[State], tuple[State, dict[str, jax.Array]]]
    """(state) -> (state with empty sums, one row)."""


@numerics.by_usual_rules
@numerics.one_blas_thread()
def clone(
    config: Config,
    teacher: policies.Policy,
    workdir: str | Path | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Clone:
    """Train an actor to act as a teacher does. The same configuration and teacher give the same clone.

    Args:
      config: need not be resolved; see the table above.
      teacher: of the same task, sparse or not, of any agent.
      workdir: where to leave config.json, after each evaluation metrics.jsonl and summary.json, and at the end
        policy.npz, masks.npz and, last, a summary.json that says finished; None keeps nothing. A clone that was stopped
        begins anew.
      overwrite: replace whatever run or clone `workdir` holds.
      say: takes a line per evaluation.

    Raises:
      ConfigError: an impossible configuration, or a teacher of another task.
      CheckpointError: a ticket that cannot be read.
      WorkdirError: a workdir that cannot be used.
      DivergedError: the error stopped being finite.
    """
    cloning = make_cloning(config, teacher)
    memory.check_fits(
        memory.tree_bytes(jax.eval_shape(cloning.collect, teacher.params, jax.random.PRNGKey(0))),
        "examples",
        "lower --buffer_max",
    )
    directory = None if workdir is None else Path(workdir)
    if directory is None:
        return _clone(cloning, teacher, None, say)
    with workdirs.held(directory, cloning.config, resume=False, overwrite=overwrite):
        return _clone(cloning, teacher, directory, say)


def _clone(cloning: Cloning, teacher: policies.Policy, directory: Path | None, say: Callable[[str], None]) -> Clone:
    clock = loop.Clock()
    chosen = compute.choose(cloning.config, say)
    if chosen != cloning.config:
        cloning = make_cloning(chosen, teacher)
    run = _Run(cloning, teacher, directory, say, clock)
    # A chunk is what is learned between two evaluations.
    loop.go(run, clock, dataclasses.replace(chosen, chunk_steps=chosen.eval_every))
    return run.result


class _Run:
    """One clone's host side: what the loop drives (see `loop.Executor`)."""

    result: Clone
    """Once it is finished."""

    def __init__(
        self,
        cloning: Cloning,
        teacher: policies.Policy,
        directory: Path | None,
        say: Callable[[str], None],
        clock: loop.Clock,
    ):
        self.config = cloning.config
        self.directory = directory
        self.say = say
        self.clock = clock
        self.sizes = teacher.sizes
        self.rows: list[Row] = []
        key = jax.random.PRNGKey(self.config.seed)
        self.state, first = jax.jit(cloning.init)(key)
        self.first = jax.device_get(first)
        self.examples = jax.jit(cloning.collect)(teacher.params, key)
        self.learn, self.report = (jax.jit(f, donate_argnums=0) for f in (cloning.learn, cloning.report))

    def advance(self) -> np.ndarray:
        """Learn until the next evaluation."""
        self.state = self.learn(self.state, self.examples)
        return np.isfinite(self.state.loss)

    def examine(self, finite: np.ndarray) -> None:
        """End a clone that diverged."""
        if not finite:
            self._diverged()

    def updates(self) -> int:
        """Updates made so far, which are its steps."""
        return self.clock.steps

    def evaluate(self, rates: loop.Rates) -> None:
        """Make a row, and write what there is."""
        self.state, values = self.report(self.state)
        row = plain_row(values)
        if not math.isfinite(row["return_mean"]):
            self._diverged()
        self.rows.append(row)
        self._write()
        self.say(f"update {row['updates']:,}: return {row['return_mean']:.1f}, error {row['loss']:.2g}")

    def checkpoint(self) -> None:
        """Save nothing: a clone that was stopped begins anew."""

    def stopping(self) -> bool:
        """Whether it was asked to stop; it hears nothing, and its process is ended instead."""
        return False

    def finish(self, done: bool) -> None:
        """Make the result, and write it."""
        actor, c = jax.device_get(jax.jit(lambda actor: actor.masked())(self.state.actor)), self.config
        about = policies.describe(c, c.buffer_max, self.rows[-1]["return_mean"], self.sizes) | {
            "updates": c.total_steps
        }
        masks = tickets.Ticket(self.first, self.first | {"actor": actor.mask}, about)
        self.result = Clone(self.rows, policies.Policy(actor.params, about), masks)
        if self.directory is not None:
            policies.save(self.directory / "policy.npz", actor.params, about)
            tickets.save(self.directory / tickets.NAME, masks.initial, masks.final, about)
        self._write(finished=done)

    def _diverged(self) -> NoReturn:
        self._write()
        raise DivergedError(
            f"cloning diverged before update {self.clock.steps:,}: its error or its actions are not finite; try "
            "a smaller --actor_lr."
        )

    def _write(self, *, finished: bool = False) -> None:
        if self.directory is None:
            return
        files.write_json_lines(self.directory / "metrics.jsonl", self.rows)
        last: Mapping[str, Any] = self.rows[-1] if self.rows else {}
        summary = {
            "finished": finished,
            "updates": last.get("updates", 0),
            "best": max((row["return_mean"] for row in self.rows), default=None),
            "last": last.get("return_mean"),
            "loss": last.get("loss"),
            "wall_seconds": self.clock.since_start(),
            "compute": self.config.compute,
            **provenance.about(),
        }
        files.write_json(self.directory / "summary.json", summary)


def make_cloning(config: Config, teacher: policies.Policy) -> Cloning:
    """Build the functions of a clone; compiles nothing.

    Args:
      config: need not be resolved.
      teacher: whose shapes and kind of agent to expect.

    Raises:
      ConfigError: a configuration that cannot be, or a teacher of another task.
      CheckpointError: a ticket that cannot be read.
    """
    if config.data_parallel > 1:
        raise ConfigError(f"data_parallel={config.data_parallel}: a clone is made on one device; leave it out.")
    program = make_program(config)
    config, env, agent, hparams = program.config, program.env, program.agent, program.hparams
    _check_teacher(teacher, config, env)
    B, E, N = config.batch_size, config.num_envs, config.buffer_max
    vector = envs.VectorEnvironment(env, E, config.episode_length, max(config.reset_pool, E))
    evolve_end = jnp.asarray(int(config.total_steps * config.evolve_until), jnp.int32)

    def collect(params: networks.Params, key: jax.Array) -> Examples:
        act = teacher._replace(params=params).act

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

        keys = jax.random.split(jax.random.fold_in(key, ASIDE), math.ceil(N / (E * config.iterations_per_chunk)))
        examples = jax.lax.scan(chunk, vector.init(), keys)[1]
        return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[:N], examples)

    def init(key: jax.Array) -> tuple[State, tickets.Networks]:
        # As `program.init` splits it, so that the actor is that of the run with this configuration.
        agent_key, run_key = jax.random.split(key)
        agent_state = agent.init(agent_key, hparams)
        count = jnp.zeros((), jnp.int32)
        state = State(
            actor=agent_state.actor,
            key=run_key,
            updates=count,
            loss=jnp.zeros(()),
            links_dropped=count,
            links_grown=count,
        )
        return state, agent_masks(agent_state)

    def error(params: networks.Params, actor: SparseNetwork, batch: Examples) -> jax.Array:
        return jnp.mean((agent.mode(actor.replace(params=params), batch.observation) - batch.action) ** 2)

    def sample(examples: Examples, key: jax.Array) -> Examples:
        chosen = jax.random.randint(key, (B,), 0, N)
        return jax.tree.map(lambda x: x[chosen], examples)

    def evolve(
        actor: SparseNetwork, examples: Examples, key: jax.Array, call: jax.Array
    ) -> tuple[SparseNetwork, jax.Array, jax.Array]:
        sample_key, grow_key = jax.random.split(key)
        masked = actor.masked()
        gradient = jax.grad(error)(masked.params, masked, sample(examples, sample_key))
        evolved, dropped, grown = evolution.rewire(
            config, "actor", masked, gradient, grow_key, hparams, call, evolve_end
        )
        return evolved.like(actor), dropped, grown

    def update(state: State, examples: Examples) -> State:
        key, batch_key, event_key = jax.random.split(state.key, 3)
        loss, gradient = jax.value_and_grad(error)(state.actor.params, state.actor, sample(examples, batch_key))
        call = state.updates + 1
        nothing = jnp.zeros((), jnp.int32)
        actor, dropped, grown = jax.lax.cond(
            evolution.is_due(config, state.updates, call, program.schedule.evolve_interval, evolve_end),
            lambda actor: evolve(actor, examples, event_key, call),
            lambda actor: (actor, nothing, nothing),
            state.actor.descend(gradient, hparams.actor_lr),
        )
        return State(
            actor=actor,
            key=key,
            updates=call,
            loss=state.loss + loss,
            links_dropped=state.links_dropped + dropped,
            links_grown=state.links_grown + grown,
        )

    def learn(state: State, examples: Examples) -> State:
        body = lambda state, _: (update(state, examples), None)
        return jax.lax.scan(body, state, length=config.eval_every)[0]

    def report(state: State) -> tuple[State, dict[str, jax.Array]]:
        key, reset_key = jax.random.split(state.key)
        returns = evaluation.episode_returns(
            env,
            lambda observation: agent.mode(state.actor, observation),
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

    return Cloning(config, collect, init, update, learn, report)


def _check_teacher(teacher: policies.Policy, config: Config, env: envs.Environment) -> None:
    if teacher.sizes != (env.observation_size, env.action_size):
        raise ConfigError(
            f"the teacher takes {teacher.sizes[0]} numbers and gives {teacher.sizes[1]}, but env={config.env} has "
            f"observations of {env.observation_size} and actions of {env.action_size}; name a policy that was trained "
            "on this task."
        )
