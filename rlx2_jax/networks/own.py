"""A method of one's own on the networks of a run: its `Mechanisms` looked at, and as `sparse` has them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax.config import Config
from rlx2_jax.config.methods import Mechanisms
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import masking
from rlx2_jax.networks.masking import Masks
from rlx2_jax.networks.modules import Params
from rlx2_jax.runtime import numerics, places
from rlx2_jax.sparse import SparseError, criteria, densities, events, schedules, trees
from rlx2_jax.sparse.densities import Density, Shapes
from rlx2_jax.sparse.methods import Method


def method(own: Mechanisms, config: Config, density: Density) -> Method:
    """The method as `sparse` has it; its steps are shares of the evolution."""
    return Method(
        density,
        initial=own.initial or (criteria.uniform if config.initial_mask == "random" else criteria.magnitude),
        drop=own.drop,
        grow=own.grow or (criteria.uniform if config.topology == "random" else criteria.gradient),
        progress=own.progress,
        start=own.start if own.start_times is None else _multiple(density, own.start_times),
        structure=own.structure,
        where=lambda path, leaf: masking.is_kernel(path) and own.where(path, leaf),
        stacked=lambda path, leaf: max(0, leaf.ndim - 2),
    )


def _multiple(density: Density, times: int) -> Density:
    """So many times the densities, or the numbers of links, at most all."""

    def start(shapes: Shapes) -> dict[str, Any]:
        found = {path: densities.plain(value) for path, value in density(shapes).items()}
        most = {path: 1.0 if isinstance(found[path], float) else math.prod(shape) for path, shape in shapes.items()}
        least = lambda value, most: min(value, most) if isinstance(value, float | int) else jnp.minimum(value, most)
        return {path: least(times * found[path], most[path]) for path in shapes}

    return start


def with_links(own: Mechanisms, config: Config, params: Params, links: Sequence[Any]) -> Method:
    """The method that ends with so many links in each matrix of these parameters, in order, which may be traced."""
    counts = dict(zip(masking.paths(params), links, strict=True))
    return method(own, config, lambda shapes: {path: counts[path] for path in shapes})


def initial_masks(method: Method, params: Params, key: jax.Array) -> Masks:
    """The first masks, ones where a leaf is dense."""
    masks = events.initial_masks(method, params, key)
    return trees.map_masks(lambda mask, x: jnp.ones(x.shape, bool) if mask is None else mask, masks, params)


class Counts(NamedTuple):
    """Links of each matrix of a network, in order."""

    start: tuple[int, ...]
    """At a progress of 0."""
    first: tuple[int, ...]
    """At the beginning."""
    end: tuple[int, ...]
    """At the end, and ever where their number does not change."""


@numerics.by_usual_rules
def counts_of(own: Mechanisms, config: Config, network: str, template: Params) -> Counts:
    """Look at a method, and count the links that it gives to a network.

    Args:
      own: the method.
      config: of the run.
      network: `actor` or `critic`.
      template: shapes of its parameters, without an axis of twins.

    Raises:
      ConfigError: numbers of links that cannot be, or a part of the method that fails.
    """
    sparsity = config.sparsity(network)
    try:
        density = _tried(config, "density", own.density, sparsity)
        asked = method(own, config, density)
        leaves = [leaf for leaf in events.sparse_leaves(asked, template) if leaf is not None]
        _look(own, config, [leaf.shape for leaf in leaves])
        first_masks = lambda params, key: events.initial_masks(asked, params, key)
        _tried(config, "structure, density or start", jax.eval_shape, first_masks, template, jax.random.PRNGKey(0))
        end = events.connections_at(asked, leaves, 1.0)
        ending = method(own, config, lambda _: end)
        first = events.connections_at(ending, leaves, 0.0)
        never = None if own.progress is None else schedules.constant(0)
        start = events.connections_at(dataclasses.replace(ending, progress=never), leaves, 0.0)
    except SparseError as error:
        raise ConfigError(f"{network}_sparsity={sparsity} with method={config.method}: {error}") from None
    size = {path: math.prod(kernel.shape) for path, kernel in masking.ordered(template)}
    at = lambda counts: tuple(counts.get(path, entries) for path, entries in size.items())
    return Counts(start=at(start), first=at(first), end=at(end))


@numerics.by_usual_rules
def mean_progress(progress: schedules.Schedule, interval: int, end: int, total: int) -> float:
    """Progress of a method on average over `total` updates, with an event every `interval`, and the last at `end`."""
    events = np.append(np.arange(0, end, interval), end)
    found = jnp.clip(jax.vmap(progress)(jnp.asarray(events / end, jnp.float32)), 0, 1)
    return float(np.average(found, weights=np.diff(events, append=total)))


def _look(own: Mechanisms, config: Config, shapes: Sequence[tuple[int, ...]]) -> None:
    """See that functions of a method can be called, and give what they should.

    Raises:
      ConfigError: one does not.
    """
    for name in ("initial", "drop", "grow"):
        score = getattr(own, name)
        for shape in [] if score is None else dict.fromkeys(shapes):
            matrix = jax.ShapeDtypeStruct(shape, jnp.float32)
            _require(config, name, score, matrix, matrix, jax.random.PRNGKey(0))
    for name in ("fraction", "progress"):
        if (schedule := getattr(own, name)) is not None:
            _require(config, name, schedule, jax.ShapeDtypeStruct((), jnp.float32))
    if own.progress is not None:
        with jax.ensure_compile_time_eval():
            begin, end = (float(own.progress(jnp.float32(time))) for time in (0, 1))
        if not (0 <= begin <= 1 and math.isclose(end, 1, abs_tol=1e-7)):
            raise ConfigError(
                f"method={config.method}: its progress is {begin:g} at time 0 and {end:g} at time 1; let it begin in "
                "[0, 1] and end at 1."
            )


def _require(config: Config, name: str, part: Callable[..., Any], *arguments: Any) -> None:
    """See that a part takes these arguments, and gives an array of the shape of the first."""
    given, shape = _tried(config, name, jax.eval_shape, part, *arguments), arguments[0].shape
    if (found := getattr(given, "shape", None)) != shape:
        what = f"a {type(given).__name__}" if found is None else f"an array of shape {list(found)}"
        raise ConfigError(f"method={config.method}: its {name} gives {what}; give an array of shape {list(shape)}.")


def _tried(config: Config, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a part gives.

    Raises:
      ConfigError: an error of a person's own code.
    """
    return places.tried(f"method={config.method}: its {part}", function, *arguments, passing=SparseError)
