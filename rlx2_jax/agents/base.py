"""What agents share: an off-policy actor with two critics, all of them sparse, as pure functions.

An agent is a class that says what is its own, `draw`, `critic_loss`, `actor_loss`, `act` and `explore`, its defaults
and the passes it makes; the gradients, means over devices, steps and targets here are the same for all. Gradients are
dense for a masked network, and used on its masks only (see `networks.forms`).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import chex
import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from rlx2_jax import networks
from rlx2_jax.config import HParams, RunConfig, methods
from rlx2_jax.config.registry import Defaults, Passes
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import Masked, Net, Packed, SparseNetwork, forms, masking, own, structure
from rlx2_jax.replay.buffer import Batch
from rlx2_jax.runtime.devices import DataParallel

T = TypeVar("T")

Metrics = dict[str, jax.Array]
"""Scalars by name."""

WRITTEN_OUT = 4
"""Critic updates of a cycle that are written out one after the other, which runs faster than a loop; more of them would
take as many times as long to compile."""


class FoundMasks(NamedTuple):
    """A network's masks from another run."""

    initial: masking.Masks
    """Masks that run began with."""
    final: masking.Masks
    """Masks it ended with, and this one begins with."""


Found = Mapping[str, FoundMasks]
"""Masks from another run by network: `actor`, `critic`."""


class AgentState(flax.struct.PyTreeNode):
    """Everything that learning changes; agents add to it what is their own."""

    actor: SparseNetwork
    """The actor, masked or packed."""
    critic: SparseNetwork
    """Both critics: a leading axis of 2 on every leaf."""

    def learned(self) -> tuple[Any, ...]:
        """Parameters and targets, and what else must be finite."""
        return self.actor.params, self.actor.target, self.critic.params, self.critic.target


class Now(NamedTuple):
    """What a loss may depend on beside parameters and experience."""

    hparams: HParams
    """Hyperparameters of this run."""
    multi_step: jax.Array
    """Unbatched boolean: false promises windows of one step."""
    unchanging: Any
    """What `OffPolicyAgent.unchanging` took of the state before the updates."""


@dataclasses.dataclass(frozen=True)
class OffPolicyAgent(abc.ABC):
    """An agent of a resolved configuration, for observations and actions of given sizes."""

    config: RunConfig
    """Resolved configuration, of which only what is static is read."""
    observation_size: int
    """Entries of an observation."""
    action_size: int
    """Entries of an action."""

    defaults: ClassVar[Defaults]
    """Settings where nothing is asked for."""
    passes: ClassVar[Passes]
    """What an update computes, for accounting."""
    release_init: ClassVar[str]
    """How networks begin in the paper's release (see `networks.MLP.initial`)."""
    polyak_every_update: ClassVar[bool] = False
    """Whether targets move after every critic update, not after the actor's."""

    def __post_init__(self) -> None:
        """Refuse what `check` refuses."""
        self.check()

    @staticmethod
    def actor_outputs(action_size: int) -> int:
        """Outputs of the actor's network."""
        return action_size

    @classmethod
    def critic_module(cls, module: nn.Module) -> nn.Module:
        """The network of a critic, of the one that the configuration asks for."""
        return module

    @abc.abstractmethod
    def draw(self, key: jax.Array, batches: Batch) -> Any:
        """Noise of updates on batches `[..., B]`: a tree of arrays with the batches' leading axes."""

    @abc.abstractmethod
    def critic_loss(
        self, params: networks.Params, state: AgentState, batch: Batch, noise: Any, now: Now
    ) -> tuple[jax.Array, jax.Array]:
        """Loss of the critics with these parameters on one batch, and their mean value."""

    @abc.abstractmethod
    def actor_loss(
        self, params: networks.Params, state: AgentState, batch: Batch, noise: Any, now: Now
    ) -> tuple[jax.Array, Any]:
        """Loss of the actor with these parameters on one batch, and what `after_actor` needs of it."""

    @staticmethod
    @abc.abstractmethod
    def act(output: jax.Array) -> jax.Array:
        """The noise-free action `[..., A]` of the actor's output."""

    @staticmethod
    def sample_action(output: jax.Array, key: jax.Array) -> jax.Array:
        """An action `[..., A]` of the distribution that the actor's output is of.

        Raises:
          ConfigError: the actor has none.
        """
        del output, key
        raise ConfigError("this agent's actor has no distribution; call act without a key, and add noise of your own.")

    @abc.abstractmethod
    def explore(
        self, state: AgentState, observation: jax.Array, key: jax.Array, hparams: HParams
    ) -> tuple[jax.Array, jax.Array]:
        """The action taken at observations `[E, O]`, and its noise-free mean, `[E, A]` each."""

    def value_of(self, output: jax.Array) -> jax.Array:
        """What the critics' outputs `[2, ..., outputs]` say an action is worth, `[...]`: what `value_bias` is of."""
        return output[..., 0].min(0)

    def begin(self, actor: SparseNetwork, critic: SparseNetwork) -> AgentState:
        """The state with these networks."""
        return AgentState(actor=actor, critic=critic)

    def unchanging(self, state: AgentState) -> Any:
        """Parts of the state that losses take and updates leave as they are, so that no loop takes them every time."""
        del state

    def after_actor(self, state: AgentState, aside: Any, now: Now) -> tuple[AgentState, Metrics]:
        """What else an update changes, given what the actor's loss left aside; and its metrics."""
        del aside, now
        return state, {}

    def check(self) -> None:
        """Refuse settings that this agent cannot have.

        Raises:
          ConfigError: with the mend.
        """
        del self

    @property
    def devices(self) -> DataParallel:
        """The devices that share the work of a batch."""
        return DataParallel(self.config.data_parallel)

    def mode(self, actor: SparseNetwork, observation: jax.Array) -> jax.Array:
        """Deterministic action `[..., A]` at observations `[..., O]`."""
        return self.act(actor.apply(actor.params, observation))

    def init(self, key: jax.Array, hparams: HParams, ticket: Found | None = None) -> AgentState:
        """Both networks sparse from the first step on, packed if so configured.

        Args:
          key: of weights and masks.
          hparams: whose numbers of links the networks get.
          ticket: masks that another run found, to begin with.
        """
        actor_key, critic_key, *mask_keys = jax.random.split(key, 4)
        nets = structure.nets(self.config, self.action_size)
        inputs = structure.inputs_of(self.observation_size, self.action_size)
        params = {
            name: nets[name].init(key, inputs[name]) for name, key in (("actor", actor_key), ("critic", critic_key))
        }
        has_target = {"actor": self.passes.actor_target, "critic": True}
        created = {
            name: create(
                mask_key,
                params[name],
                nets[name],
                getattr(hparams, f"{name}_links"),
                getattr(hparams, f"{name}_width"),
                self.config,
                target=has_target[name],
                found=None if ticket is None else ticket[name],
            )
            for name, mask_key in zip(nets, mask_keys, strict=True)
        }
        return self.begin(**self.packed(created) if self.config.compute == "packed" else created)

    def packed(self, created: Mapping[str, Masked]) -> dict[str, Packed]:
        """Networks packed, with room for the most links that they have at any time."""
        found = structure.structure(self.config, self.observation_size, self.action_size)
        spare = methods.find(self.config.method).progress is not None
        return {name: network.packed(found[name].capacities, spare=spare) for name, network in created.items()}

    def updates(
        self, state: AgentState, batches: Batch, key: jax.Array, hparams: HParams, multi_step: jax.Array
    ) -> tuple[AgentState, Metrics]:
        """Whole cycles of `delay` critic updates and one of the actor.

        Args:
          state: of the agent.
          batches: `[U, B, ...]`, a whole multiple of the delay.
          key: of all noise.
          hparams: of the run.
          multi_step: see `Now`.

        Returns:
          The state, and means of the metrics.
        """
        now, delay = Now(hparams, multi_step, self.unchanging(state)), self.config.delay

        def critic_update(state: AgentState, item: tuple[Batch, Any]) -> tuple[AgentState, tuple[jax.Array, jax.Array]]:
            (loss, q), gradient = self._critic_gradient(state, *item, now)
            critic = state.critic.apply_gradients(gradient, hparams.critic_lr)
            critic = critic.polyak(hparams.tau) if self.polyak_every_update else critic
            return state.replace(critic=critic), (loss, q)

        def cycle(state: AgentState, items: tuple[Batch, Any]) -> tuple[AgentState, Metrics]:
            if delay > WRITTEN_OUT:
                state, totals = jax.lax.scan(critic_update, state, items)
                total_loss, total_q = jax.tree.map(jnp.sum, totals)
                last = tree_index(items, -1)
            else:
                total_loss = total_q = jnp.zeros(())
                for i in range(delay):
                    last = tree_index(items, i)
                    state, (loss, q) = critic_update(state, last)
                    total_loss, total_q = total_loss + loss, total_q + q
            (loss, aside), gradient = self._actor_gradient(state, *last, now)
            state, further = self.after_actor(state, aside, now)
            actor, critic = state.actor.apply_gradients(gradient, hparams.actor_lr).polyak(hparams.tau), state.critic
            state = state.replace(
                actor=actor, critic=critic if self.polyak_every_update else critic.polyak(hparams.tau)
            )
            return state, {
                "critic_loss": total_loss / delay,
                "actor_loss": loss,
                "q_mean": total_q / delay,
                **further,
            }

        # All noise at once: drawn in the loop, it would be computed again in every operation that takes it.
        items = cycles((batches, self.draw(key, batches)), delay)
        state, metrics = jax.lax.scan(cycle, state, items)
        return state, jax.tree.map(jnp.mean, metrics)

    def gradient(
        self, name: str, state: AgentState, batch: Batch, key: jax.Array, hparams: HParams, multi_step: jax.Array
    ) -> networks.Params:
        """Gradient of a network's loss on one batch: the grow score of a topology event, dense if it is masked.

        Args:
          name: `actor` or `critic`.
          state: of the agent.
          batch: `[B, ...]`.
          key: of the noise.
          hparams: of the run.
          multi_step: see `Now`.
        """
        of = {"actor": self._actor_gradient, "critic": self._critic_gradient}[name]
        now = Now(hparams, multi_step, self.unchanging(state))
        return of(state, batch, self.draw(key, batch), now)[1]

    def _critic_gradient(self, state: AgentState, batch: Batch, noise: Any, now: Now) -> tuple[Any, Any]:
        of = jax.value_and_grad(self.critic_loss, has_aux=True)
        return self.devices.mean(of(state.critic.params, state, batch, noise, now))

    def _actor_gradient(self, state: AgentState, batch: Batch, noise: Any, now: Now) -> tuple[Any, Any]:
        of = jax.value_and_grad(self.actor_loss, has_aux=True)
        return self.devices.mean(of(state.actor.params, state, batch, noise, now))


def create(
    key: jax.Array,
    params: networks.Params,
    net: Net,
    links: tuple[jax.Array, ...],
    width: jax.Array,
    config: RunConfig,
    *,
    target: bool,
    found: FoundMasks | None = None,
) -> forms.Masked:
    """A masked network, sparse from the first step on, from freshly initialised dense parameters.

    It begins with masks found by another run, if given, and else with masks of its own.
    """
    if net.plain:
        params = networks.restrict(params, width, initial=net.module.initial)
    if found is None and (mechanisms := methods.own(config.method)) is not None:
        mask = own.initial_masks(own.with_links(mechanisms, config, params, links), params, key)
    elif found is None:
        random = config.initial_mask == "random"
        mask = masking.initial_masks(key, params, links, width if net.plain else None, random=random)
    else:
        mask = jax.tree.map(jnp.asarray, found.final)
    sparse = masking.apply(params, mask)
    if found is not None and config.ticket_weights == "release":
        # The release stores initial weights only after masking them.
        sparse = masking.apply(sparse, found.initial)
    first_target = jax.tree.map(jnp.copy, sparse if config.mask_initial_targets else params)
    return forms.fresh(sparse, mask, first_target if target else None, net)


def masked_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean over the batch `[B]`, in which transitions of weight 0 count as zeros."""
    chex.assert_rank(values, 1)
    chex.assert_equal_shape([values, weight])
    return jnp.mean(values * weight)


def tree_index(stacked: T, index: int) -> T:
    """One of several stacked trees."""
    return jax.tree.map(lambda x: x[index], stacked)


def cycles(batches: T, delay: int) -> T:
    """Regroup stacked arrays `[U, B, ...]` into `[U / delay, delay, B, ...]`: one row per actor update."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // delay, delay, *x.shape[1:]), batches)
