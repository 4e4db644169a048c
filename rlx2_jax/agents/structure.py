"""How many links each matrix of a run's networks gets. Host-side arithmetic, done once before anything compiles."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from rlx2_jax.agents import networks
from rlx2_jax.config import NEVER, VALUES, Config, HParams, RunConfig, methods, traced
from rlx2_jax.errors import ConfigError
from rlx2_jax.sparse.densities import checked, erdos_renyi_densities, whole

Shape = tuple[int, int]


class Structure(NamedTuple):
    """What the method and the sparsity make of one network."""

    sizes: tuple[int, ...]
    """Units of each layer, inputs first."""
    links: tuple[int, ...]
    """Of each matrix, input to output."""
    width: int
    """Live hidden units per layer; less than the widest layer for the method `tiny` only."""

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Of each matrix."""
        return networks.layer_shapes(self.sizes)


def structure(config: Config, observation_size: int, action_size: int) -> dict[str, Structure]:
    """The `actor`, and one `critic`.

    Raises:
      ConfigError: a sparsity that these layers cannot have.
    """
    c = config
    sizes = {
        "actor": networks.actor_sizes(c.agent, observation_size, action_size, c.hidden),
        "critic": networks.critic_sizes(observation_size, action_size, c.hidden),
    }
    return {name: _structure(c, name, layers) for name, layers in sizes.items()}


def _structure(c: Config, name: str, sizes: tuple[int, ...]) -> Structure:
    sparsity = c.sparsity(name)
    shapes = networks.layer_shapes(sizes)
    if max(i * o for i, o in shapes) > NEVER:
        raise ConfigError(f"hidden={c.hidden} makes a matrix of over {NEVER} weights; use narrower layers.")
    try:
        if methods.METHODS[c.method].structure == "tiny":
            width = tiny_width(sizes, sparsity)
            return Structure(sizes, tiny_links(sizes, width), width)
        return Structure(sizes, whole_counts(shapes, erdos_renyi_densities(shapes, sparsity)), max(c.hidden))
    except ValueError as error:
        raise ConfigError(f"{name}_sparsity={sparsity}: {error}") from None


def link_counts(config: Config, observation_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
    """Links of each matrix, input to output, of the `actor` and of one `critic`.

    Raises:
      ConfigError: a sparsity that these layers cannot have.
    """
    return {name: found.links for name, found in structure(config, observation_size, action_size).items()}


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
