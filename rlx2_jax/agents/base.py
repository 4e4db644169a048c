"""What TD3 and SAC share: a sparse network with its optimiser, and the bundle of functions that is an agent.

Invariant at every step boundary: parameters, target parameters and Adam moments are exactly zero off the mask. The
forward pass therefore never multiplies by a mask, and `jax.grad` gives the dense gradient a topology event needs.
(The `release` preset keeps the moments of dropped links and, until the first Polyak step, dense targets.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from rlx2_jax import kernels
from rlx2_jax.agents import masking, networks
from rlx2_jax.agents.structure import link_counts
from rlx2_jax.config import Config, HParams
from rlx2_jax.replay.buffer import Batch
from rlx2_jax.sparse import topology

T = TypeVar("T")

Metrics = dict[str, jax.Array]
"""Scalars by name."""


class SparseNetwork(flax.struct.PyTreeNode):
    """Parameters with everything that must stay sparse along with them."""

    params: networks.Params
    mask: masking.Masks
    """Booleans; for a packed network a tuple of `Links`, and then the other leaves are vectors (see `masks.pack`); None
    for a dense network that pays for no masks, which cannot evolve."""
    target: networks.Params
    """Polyak average of the parameters; None where the algorithm has none (SAC's actor)."""
    adam: optax.ScaleByAdamState


class FoundMasks(NamedTuple):
    """A network's masks from another run."""

    initial: masking.Masks
    """With which that run began."""
    final: masking.Masks
    """With which it ended, and this one begins."""


Found = Mapping[str, FoundMasks]
"""By network: `actor`, `critic`."""


class AgentState(flax.struct.PyTreeNode):
    """Everything that learning changes."""

    actor: SparseNetwork
    critic: SparseNetwork
    """Both critics: a leading axis of 2 on every leaf."""
    log_alpha: jax.Array
    """SAC's log temperature, scalar; unused zero for TD3."""
    alpha_adam: optax.ScaleByAdamState


class Agent(NamedTuple):
    """An algorithm as pure functions. `updates` runs whole cycles: critic updates, then one actor update."""

    init: Callable[[jax.Array, HParams], AgentState]
    """(key, hparams) -> state."""
    explore: Callable[[AgentState, jax.Array, jax.Array, HParams], tuple[jax.Array, jax.Array]]
    """(state, observation `[E, O]`, key, hparams) -> (action taken, its noise-free mean), `[E, A]` each."""
    mode: Callable[[SparseNetwork, jax.Array], jax.Array]
    """(actor, observation `[..., O]`) -> deterministic action `[..., A]`."""
    updates: Callable[[AgentState, Batch, jax.Array, HParams, jax.Array], tuple[AgentState, Metrics]]
    """(state, batches `[U, B, ...]`, key, hparams, multi_step) -> (state, mean metrics). `multi_step` is an unbatched
    boolean: false promises windows of one step."""
    critic_gradient: Callable[[AgentState, Batch, jax.Array, HParams, jax.Array], networks.Params]
    """Gradient of the critic loss on one batch `[B, ...]`: the grow score of a topology event, dense for a critic that
    is not packed."""
    actor_gradient: Callable[[AgentState, Batch, jax.Array, HParams, jax.Array], networks.Params]
    """The same of the actor loss."""


def create(
    key: jax.Array,
    params: networks.Params,
    links: tuple[jax.Array, ...],
    width: jax.Array,
    config: Config,
    *,
    target: bool,
    found: FoundMasks | None = None,
) -> SparseNetwork:
    """A masked network, sparse from the first step on, from freshly initialised dense parameters.

    It begins with masks found by another run, if given, and else with masks of its own.
    """
    params = networks.restrict(params, width, initial=networks.initial_of(config.agent, config.kernel_init))
    if found is None:
        mask = masking.initial_masks(key, params, links, width, random=config.initial_mask == "random")
    else:
        mask = jax.tree.map(jnp.asarray, found.final)
    sparse = masking.apply(params, mask)
    if found is not None and config.ticket_weights == "release":
        # The release stores initial weights only after masking them.
        sparse = masking.apply(sparse, found.initial)
    first_target = jax.tree.map(jnp.copy, sparse if config.mask_initial_targets else params)
    return SparseNetwork(
        params=sparse, mask=mask, target=first_target if target else None, adam=kernels.ADAM.init(sparse)
    )


def pack(network: SparseNetwork, counts: Sequence[int]) -> SparseNetwork:
    """A masked network as a packed one, given how many links each matrix has, input to output."""
    return _convert(network, masking.pack_masks(network.mask, counts), masking.pack)


def unpack(network: SparseNetwork) -> SparseNetwork:
    """Inverse of `pack`; a network that is not packed as it is."""
    if not masking.is_packed(network.mask):
        return network
    unpacked = _convert(network, network.mask, masking.unpack)
    return unpacked.replace(mask=masking.unpack_masks(network.mask))


def counts(network: SparseNetwork) -> tuple[int, ...]:
    """Links of each matrix of a packed network, input to output."""
    return tuple(links.count for links in network.mask)


def pack_like(network: SparseNetwork, other: SparseNetwork) -> SparseNetwork:
    """A masked network in the form of another with as many links: packed if that one is."""
    if not masking.is_packed(other.mask):
        return network
    return pack(network, counts(other))


def _convert(network: SparseNetwork, mask: masking.Masks, function: Callable[[Any, Any], Any]) -> SparseNetwork:
    adam = network.adam
    return SparseNetwork(
        params=function(network.params, mask),
        mask=mask,
        target=None if network.target is None else function(network.target, mask),
        adam=adam._replace(mu=function(adam.mu, mask), nu=function(adam.nu, mask)),
    )


def make_init(
    actor_net: nn.Module,
    critic_net: nn.Module,
    observation_size: int,
    action_size: int,
    config: Config,
    *,
    actor_target: bool,
    ticket: Found | None = None,
) -> Callable[[jax.Array, HParams], AgentState]:
    """An agent's `init`: both networks sparse, packed if so configured, the temperature at 1.

    A ticket is what another run found, to begin with.
    """
    packed = link_counts(config, observation_size, action_size) if config.compute == "packed" else None
    found = lambda name: None if ticket is None else ticket[name]

    def init(key: jax.Array, hparams: HParams) -> AgentState:
        actor_key, critic_key, actor_mask_key, critic_mask_key = jax.random.split(key, 4)
        observation = jnp.zeros((1, observation_size))
        both = jnp.zeros((1, observation_size + action_size))
        actor = actor_net.init(actor_key, observation)["params"]
        critic = critic_net.init(critic_key, both)["params"]
        log_alpha = jnp.zeros(())
        h = hparams
        actor_network = create(
            actor_mask_key, actor, h.actor_links, h.actor_width, config, target=actor_target, found=found("actor")
        )
        critic_network = create(
            critic_mask_key, critic, h.critic_links, h.critic_width, config, target=True, found=found("critic")
        )
        if packed is not None:
            actor_network = pack(actor_network, packed["actor"])
            critic_network = pack(critic_network, packed["critic"])
        return AgentState(
            actor=actor_network,
            critic=critic_network,
            log_alpha=log_alpha,
            alpha_adam=kernels.ADAM.init(log_alpha),
        )

    return init


def descend(network: SparseNetwork, gradient: networks.Params, step_size: jax.Array) -> SparseNetwork:
    """One Adam step along the dense gradient's entries on the mask."""
    if masking.is_packed(network.mask):
        params, adam = kernels.adam_step(network.params, gradient, network.adam, step_size)
        return network.replace(params=params, adam=adam)
    direction, adam = kernels.ADAM.update(masking.apply(gradient, network.mask), network.adam)
    moved = jax.tree.map(lambda p, d: p - step_size * d, network.params, direction)
    # Masked again: with `reset_moments` off, dropped links still carry a direction.
    params = masking.apply(moved, network.mask)
    return network.replace(params=params, adam=adam)


def polyak(network: SparseNetwork, tau: jax.Array) -> SparseNetwork:
    """One step of the target towards the parameters, masked like them."""
    moved = jax.tree.map(lambda t, p: t + tau * (p - t), network.target, network.params)
    return network.replace(target=masking.apply(moved, network.mask))


def evolve(
    network: SparseNetwork,
    gradient: networks.Params,
    key: jax.Array,
    fraction: jax.Array,
    grow_gradient: jax.Array,
    *,
    reset_moments: bool,
) -> tuple[SparseNetwork, jax.Array, jax.Array]:
    """One topology event on all matrices of a network.

    Args:
      network: to be rewired, not packed.
      gradient: dense gradient of its loss.
      key: for random growth.
      fraction: share of the links to move, traced.
      grow_gradient: traced boolean, grow by gradient or at random.
      reset_moments: zero the Adam moments of links that are gone.

    Returns:
      The network, and how many links went and came.
    """
    params, mask = dict(network.params), dict(network.mask)
    for name, layer_key in zip(networks.layers(params), jax.random.split(key, len(params)), strict=True):
        weight = params[name]["kernel"]
        score = jnp.where(
            grow_gradient,
            gradient[name]["kernel"],
            jax.random.uniform(layer_key, weight.shape, minval=0.5),
        )
        moved = masking.per_matrix(lambda w, m, s: topology.drop_and_grow(w, m, s, fraction))
        weight, kernel_mask = moved(weight, mask[name]["kernel"], score)
        params[name] = {**params[name], "kernel": weight}
        mask[name] = {**mask[name], "kernel": kernel_mask}
    count = lambda a, b: jnp.stack(
        [jnp.sum(x & ~y) for x, y in zip(masking.kernels(a), masking.kernels(b), strict=True)]
    ).sum()
    adam = network.adam
    if reset_moments:
        adam = adam._replace(mu=masking.apply(adam.mu, mask), nu=masking.apply(adam.nu, mask))
    target = None if network.target is None else masking.apply(network.target, mask)
    evolved = SparseNetwork(params=params, mask=mask, target=target, adam=adam)
    return evolved, count(network.mask, mask), count(mask, network.mask)


def q_values(
    network: nn.Module, params: networks.Params, mask: masking.Masks, observation: jax.Array, action: jax.Array
) -> jax.Array:
    """Values of state-action pairs: `[B]` of one critic, `[2, B]` of twins."""
    return networks.forward(network, params, mask, observation, action)[..., 0]


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean over the batch, in which transitions of weight 0 count as zeros."""
    return jnp.mean(values * weight)


def at(stacked: T, index: int) -> T:
    """One of several stacked trees."""
    return jax.tree.map(lambda x: x[index], stacked)


def cycles(batches: T, delay: int) -> T:
    """Regroup stacked arrays `[U, B, ...]` into `[U / delay, delay, B, ...]`: one row per actor update."""
    return jax.tree.map(lambda x: x.reshape(-1, delay, *x.shape[1:]), batches)
