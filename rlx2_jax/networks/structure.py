"""How many links each matrix of a run's networks gets. Host-side arithmetic, done once before anything compiles."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlx2_jax.config import NEVER, VALUES, Config, HParams, RunConfig, make_schedule, methods, registry, traced
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import masking, modules, own
from rlx2_jax.networks.modules import Net, Params
from rlx2_jax.runtime import places
from rlx2_jax.sparse import trees
from rlx2_jax.sparse.densities import checked, erdos_renyi_densities, whole

Shape = tuple[int, int]
"""Inputs and outputs of a matrix."""


class Structure(NamedTuple):
    """What the method and the sparsity make of one network."""

    shapes: tuple[Shape, ...]
    """Shape of each matrix, in the order of `masking.kernels`."""
    links: tuple[int, ...]
    """Links of each matrix; where their number changes, at the end."""
    first_links: tuple[int, ...]
    """Links of each matrix at the beginning."""
    start_links: tuple[int, ...]
    """Links of each matrix where a change of their number starts, at the beginning or, if progress has been made by
    then, before it."""
    width: int
    """Live hidden units per layer; less than the widest layer for the method `tiny` only."""
    others: int
    """Parameters that are always dense, of units in use: biases, and what normalisation has."""
    others_held: int
    """Parameters that are always dense, of all units."""

    @property
    def capacities(self) -> tuple[int, ...]:
        """Most links of each matrix at any time: numbers on the way lie between start and end."""
        return tuple(map(max, self.start_links, self.links))

    def mean_links(self, progress: float) -> tuple[float, ...]:
        """Links of each matrix, given the progress of a run on average."""
        both = zip(self.start_links, self.links, strict=True)
        return tuple(end + (1 - progress) * (start - end) for start, end in both)


def nets(config: Config, action_size: int) -> dict[str, Net]:
    """The `actor`, and both critics as one `critic`.

    Raises:
      ConfigError: a network that there is not, or one that does not take these widths.
    """
    kind = registry.find(config.agent)
    initial = kind.release_init if config.kernel_init == "release" else config.kernel_init
    module = lambda name, outputs: modules.make(config.network_of(name), (*config.hidden, outputs), initial)
    return {
        "actor": Net(module("actor", kind.actor_outputs(action_size))),
        "critic": Net(kind.critic_module(module("critic", 1)), twins=True),
    }


def inputs_of(observation_size: int, action_size: int) -> dict[str, int]:
    """Inputs of the `actor` and of a `critic`."""
    return {"actor": observation_size, "critic": observation_size + action_size}


def packable(config: Config) -> bool:
    """Whether there are packed kernels for both networks."""
    return all(net.packable for net in nets(config, 1).values())


def structure(config: Config, observation_size: int, action_size: int) -> dict[str, Structure]:
    """The `actor`, and one `critic`.

    Raises:
      ConfigError: a sparsity that these layers cannot have, or a network that cannot be.
    """
    if min(observation_size, action_size) < 1:
        raise ConfigError(
            f"observations of {observation_size} and actions of {action_size} numbers make no networks; use tasks with "
            "sides of 1 or more."
        )
    inputs, made = inputs_of(observation_size, action_size), nets(config, action_size)
    found = {name: _structure(config, name, net.one, inputs[name]) for name, net in made.items()}
    outputs, expected = _outputs(made["actor"], inputs["actor"]), registry.find(config.agent).actor_outputs(action_size)
    if outputs != expected:
        raise ConfigError(
            f"network={config.network_of('actor')} gives the actor {outputs} outputs, not {expected}; give it as many "
            "as the last of its features says."
        )
    return found


def mean_progress(config: RunConfig, network: str) -> float:
    """How far the numbers of links of the `actor` or a `critic` are on their way, on average over a run's updates."""
    progress = methods.find(config.method).progress
    if progress is None:
        return 1.0
    schedule, every = make_schedule(config), {"actor": config.delay, "critic": 1}[network]
    end = int(getattr(schedule, f"{network}_evolve_end"))
    return own.mean_progress(progress, int(schedule.evolve_interval), end, config.updates // every)


def templates(config: Config, observation_size: int, action_size: int) -> dict[str, Params]:
    """Shapes and types of the parameters of the `actor`, and of both critics as one `critic`."""
    inputs = inputs_of(observation_size, action_size)
    return {name: _template(net, inputs[name]) for name, net in nets(config, action_size).items()}


@functools.lru_cache(1024)
def _template(net: Net, inputs: int) -> Params:
    return _looked_at(net, lambda key: net.init(key, inputs), jax.random.PRNGKey(0))


def _looked_at(net: Net, function: Callable[..., Any], *arguments: Any) -> Any:
    """Shapes of what a function of a network gives.

    Raises:
      ConfigError: an error of a person's own code.
    """
    return places.tried(
        f"the network {type(net.module).__name__}",
        jax.eval_shape,
        function,
        *arguments,
        mend="mend it (a network is a function of its parameters alone, without statistics of batches and random "
        "numbers)",
    )


@functools.lru_cache(1024)
def _shapes(net: Net, inputs: int) -> tuple[tuple[Shape, ...], int]:
    """The shapes of a network's matrices, and how many other parameters it has.

    Raises:
      ConfigError: parameters that are not float32, kernels that are no matrices, or matrices that are not each used
        once, one after another.
    """
    params = _template(net, inputs)
    for path, leaf in trees.by_path(params).items():
        if leaf.dtype != jnp.float32:
            raise ConfigError(f"the network's parameter {path} is {leaf.dtype}; keep parameters in float32.")
        # A row or a column is a gain.
        if trees.matrices(path, leaf) and min(leaf.shape[-2:]) > 1 and not masking.is_kernel(path):
            raise ConfigError(
                f"the network's matrix {path} of shape {list(leaf.shape)} would stay dense; call it `kernel`, as the "
                "layers of flax.linen do, in a module of its own."
            )
    found = [kernel.shape for kernel in masking.kernels(params)]
    if not found or any(len(shape) != 2 for shape in found):
        raise ConfigError(f"the network has kernels {found}; give it matrices, as of flax.linen.Dense.")
    shapes = tuple((inputs, outputs) for inputs, outputs in found)
    hidden, _ = _looked_at(net, net.activations, params, jax.ShapeDtypeStruct((1, inputs), jnp.float32))
    if not hidden or len(hidden) != len(shapes) - 1:
        raise ConfigError(
            f"the network has {len(shapes)} matrices, of which {len(hidden)} read hidden units; give it at least one "
            "hidden layer, and each matrix to a layer of its own that is called once, as flax.linen.Dense."
        )
    held = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return shapes, int(held - sum(map(math.prod, shapes)))


@functools.lru_cache(1024)
def _outputs(net: Net, inputs: int) -> int:
    """Outputs of a network."""
    single = jax.ShapeDtypeStruct((1, inputs), jnp.float32)
    return int(jax.eval_shape(net.apply, _template(net, inputs), single).shape[-1])


def orders(config: Config, observation_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
    """Places of the matrices of the `actor` and of a `critic` in `masking.kernels`, in the order of their calls."""
    inputs = inputs_of(observation_size, action_size)
    return {name: _order(net.one, inputs[name]) for name, net in nets(config, action_size).items()}


@functools.lru_cache(1024)
def _order(net: Net, inputs: int) -> tuple[int, ...]:
    params = _template(net, inputs)
    found = {path.rpartition("/")[0]: i for i, path in enumerate(masking.paths(params))}
    return tuple(found[path] for path in net.calls(params, inputs))


def _structure(c: Config, name: str, net: Net, inputs: int) -> Structure:
    sparsity, template = c.sparsity(name), _template(net, inputs)
    shapes, others = _shapes(net, inputs)
    tiny = methods.find(c.method).kind == "tiny"
    if tiny and not net.plain:
        raise ConfigError(
            f"method=tiny is a narrower mlp, which the {name} of agent={c.agent} with network={c.network_of(name)} is "
            "not; use method=dense and narrower hidden layers."
        )
    if max(map(math.prod, shapes)) > NEVER:
        raise ConfigError(f"hidden={c.hidden} makes a matrix of over {NEVER} weights; use narrower layers.")
    if (mechanisms := methods.own(c.method)) is not None:
        counts = own.counts_of(mechanisms, c, name, template)
        return Structure(shapes, counts.end, counts.first, counts.start, max(c.hidden), others, others)
    try:
        if tiny:
            sizes = (shapes[0][0], *(outputs for _, outputs in shapes))
            width = tiny_width(sizes, sparsity)
            live = sum(min(width, units) for units in sizes[1:-1]) + sizes[-1]
            links = tiny_links(sizes, width)
            return Structure(shapes, links, links, links, width, live, others)
        links = whole_counts(shapes, erdos_renyi_densities(shapes, sparsity))
        return Structure(shapes, links, links, links, max(c.hidden), others, others)
    except ValueError as error:
        raise ConfigError(f"{name}_sparsity={sparsity}: {error}") from None


def make_hparams(config: RunConfig, observation_size: int, action_size: int) -> HParams:
    """The traced values of a configuration, for an environment of the given sizes.

    Raises:
      ConfigError: a sparsity that these layers cannot have.
    """
    found = structure(config, observation_size, action_size)
    actor, critic = found["actor"], found["critic"]
    count = lambda value: jnp.asarray(value, jnp.int32)
    # Of a fixed topology no event moves anything.
    moved = 0.0 if config.topology == "fixed" else config.drop_fraction
    return HParams(
        **traced(dataclasses.replace(config, drop_fraction=moved), VALUES),
        actor_links=tuple(map(count, actor.links)),
        critic_links=tuple(map(count, critic.links)),
        actor_width=count(actor.width),
        critic_width=count(critic.width),
        grow_gradient=jnp.asarray(config.topology == "gradient"),
    )


def whole_counts(shapes: Sequence[Shape], densities: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers of links for the given densities."""
    return tuple(whole(density, shape) for shape, density in zip(shapes, densities, strict=True))


def tiny_width(sizes: Sequence[int], sparsity: float) -> int:
    """Hidden width of the dense network with about as many weights as a sparse one (the method `tiny`).

    Args:
      sizes: `(inputs, hidden..., outputs)` of the full network.
      sparsity: of the sparse network to be matched.

    Returns:
      The width of every hidden layer, at least 1, at most the full one.

    Raises:
      ValueError: sparsity outside [0, 1).
    """
    checked(sparsity)
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    budget = (1 - sparsity) * weights
    layers = len(sizes) - 2
    linear = sizes[0] + sizes[-1]
    # Solve (layers - 1) w^2 + linear w = budget.
    if layers == 1:
        width = budget / linear
    else:
        square = layers - 1
        width = (-linear + math.sqrt(linear**2 + 4 * square * budget)) / (2 * square)
    return max(1, min(round(width), *sizes[1:-1]))


def tiny_links(sizes: Sequence[int], width: int) -> tuple[int, ...]:
    """Links of each matrix when every hidden layer has `width` live units."""
    live = [sizes[0], *(min(width, h) for h in sizes[1:-1]), sizes[-1]]
    return tuple(a * b for a, b in itertools.pairwise(live))
