"""A sparse network with its optimiser, in one of two forms with the same methods: masked or packed.

    Masked   Flax's parameters, dense arrays that are zero off boolean masks; any network, any device
    Packed   of a perceptron, one vector of the values on the links and of what is dense; work by the link, and memory
             by the most links that it ever has

Invariant at every step boundary: parameters, target parameters and Adam moments are exactly zero off the masks. The
forward pass therefore never multiplies by a mask, and `jax.grad` of a masked network gives the dense gradient that a
topology event needs. (The `release` preset keeps the moments of dropped links and, until the first Polyak step, dense
targets.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlx2_jax import kernels
from rlx2_jax.kernels import packing
from rlx2_jax.kernels.packing import SparseIndices
from rlx2_jax.networks import masking
from rlx2_jax.networks.masking import Masks
from rlx2_jax.networks.modules import Net, Params
from rlx2_jax.sparse import topology, trees
from rlx2_jax.sparse.events import rewire, sparse_leaves
from rlx2_jax.sparse.methods import Method


class Masked(flax.struct.PyTreeNode):
    """A network as Flax has it, beside masks."""

    params: Params
    """Flax's tree; absent links are zeros."""
    mask: Masks
    """Booleans; None for a dense network that pays for no masks, which cannot evolve."""
    target: Params
    """Polyak average of the parameters; None where the algorithm has none (SAC's actor)."""
    adam: optax.ScaleByAdamState
    """Adam's moments, zero off the mask, and its count of steps."""
    net: Net = flax.struct.field(pytree_node=False)
    """The module, or twins of it."""

    def apply(self, params: Params, *inputs: jax.Array) -> jax.Array:
        """Output `[..., outputs]` (twins `[2, ..., outputs]`) for parameters or targets, inputs `[..., size]` each."""
        return self.net.apply(params, *inputs)

    def apply_gradients(self, gradient: Params, step_size: jax.Array) -> Masked:
        """One Adam step along the dense gradient's entries on the mask."""
        direction, adam = kernels.ADAM.update(self._masked(gradient), self.adam)
        moved = jax.tree.map(lambda p, d: p - step_size * d, self.params, direction)
        # Masked again: with `reset_moments` off, dropped links still carry a direction.
        return self.replace(params=self._masked(moved), adam=adam)

    def polyak(self, tau: jax.Array) -> Masked:
        """One step of the target towards the parameters, masked like them; none where there is no target."""
        return self if self.target is None else self.replace(target=self._masked(_towards(self, tau)))

    def first(self) -> Masked:
        """The first of twins, without parameters: to be applied to those that are handed in."""
        return self.replace(params=None, mask=None, target=None, adam=None, net=self.net.one)

    def masked(self) -> Masked:
        """The network masked, as it is."""
        return self

    def like(self, other: SparseNetwork) -> SparseNetwork:
        """The network in the form of another, which has room for as many links."""
        if not isinstance(other, Packed):
            return self
        return self.packed([links.capacity for links in other.links], spare=other.links[0].spare)

    def packed(self, capacities: Sequence[int], *, spare: bool = False) -> Packed:
        """The network packed. What is off the links is lost.

        Args:
          capacities: places for links in each matrix, in order.
          spare: whether it may have fewer links than that.
        """
        links = links_of(self.mask, capacities, spare=spare)
        return _convert(self, Packed, {"links": links}, lambda tree: pack(tree, links))

    def evolve(
        self,
        gradient: Params,
        key: jax.Array,
        fraction: jax.Array,
        grow_gradient: jax.Array,
        *,
        reset_moments: bool,
    ) -> tuple[Masked, jax.Array, jax.Array]:
        """One topology event on all matrices.

        Args:
          gradient: dense gradient of the network's loss.
          key: for random growth.
          fraction: share of the links to move, traced.
          grow_gradient: traced boolean, grow by gradient or at random.
          reset_moments: zero the Adam moments of links that are gone.

        Returns:
          The network, and how many links went and came.
        """
        weights, masks, scores = map(masking.kernels, (self.params, self.mask, gradient))
        moved = []
        for weight, mask, score, layer_key in zip(
            weights, masks, scores, jax.random.split(key, len(weights)), strict=True
        ):
            score = jnp.where(grow_gradient, score, jax.random.uniform(layer_key, weight.shape, minval=0.5))
            one = masking.per_matrix(lambda w, m, s: topology.drop_and_grow(w, m, s, fraction))
            moved.append(one(weight, mask, score))
        params = masking.with_kernels(self.params, [weight for weight, _ in moved])
        mask = masking.with_kernels(self.mask, [mask for _, mask in moved])
        return self._rewired(params, mask, reset_moments), masking.lost(self.mask, mask), masking.lost(mask, self.mask)

    def rewire(
        self,
        method: Method,
        gradient: Params,
        key: jax.Array,
        fraction: jax.Array,
        time: jax.Array,
        *,
        reset_moments: bool,
    ) -> tuple[Masked, jax.Array, jax.Array]:
        """One topology event by a method of one's own.

        Args:
          method: of `networks.own`.
          gradient: as of `evolve`, and so are key, fraction and what is returned.
          key: for random scores.
          fraction: share of the links to move.
          time: share of the evolution that is over, traced.
          reset_moments: zero the Adam moments of links that are gone.
        """
        leaves, structure = jax.tree.flatten(self.mask)
        sparse = [mask if leaf else None for mask, leaf in zip(leaves, sparse_leaves(method, self.params), strict=True)]
        masks = jax.tree.unflatten(structure, sparse)
        event = rewire(method, self.params, masks, gradient, key=key, step=time, fraction=fraction)
        mask = trees.map_masks(lambda new, old: old if new is None else new, event.masks, self.mask)
        return self._rewired(event.params, mask, reset_moments), event.dropped, event.grown

    def _rewired(self, params: Params, mask: Masks, reset_moments: bool) -> Masked:
        adam, target = self.adam, self.target
        if reset_moments:
            adam = adam._replace(mu=masking.apply(adam.mu, mask), nu=masking.apply(adam.nu, mask))
        target = None if target is None else masking.apply(target, mask)
        return self.replace(params=params, mask=mask, target=target, adam=adam)

    def _masked(self, tree: Any) -> Any:
        return tree if self.mask is None else masking.apply(tree, self.mask)


class Packed(flax.struct.PyTreeNode):
    """A perceptron reduced to its links: parameters, target and moments are one vector each, `[parameters]`."""

    params: jax.Array
    """Values of links, biases, and scales and offsets, of all layers in turn."""
    links: tuple[SparseIndices, ...]
    """Index arrays of each matrix, input to output. How many links there may be is a shape; which there are is data."""
    target: jax.Array
    """Polyak average of the parameters; None where the algorithm has none."""
    adam: optax.ScaleByAdamState
    """Adam's moments in the same order, and its count of steps."""
    net: Net = flax.struct.field(pytree_node=False)
    """The module, or twins of it."""

    def apply(self, params: jax.Array, *inputs: jax.Array) -> jax.Array:
        """Output, as of `Masked.apply`."""
        normalised = self.net.normalised
        one = lambda params, links: kernels.perceptron(params, links, *inputs, normalised=normalised)
        return trees.over(params.ndim - 1, one)(params, self.links)

    def apply_gradients(self, gradient: jax.Array, step_size: jax.Array) -> Packed:
        """One Adam step."""
        params, adam = kernels.adam_step(self.params, gradient, self.adam, step_size)
        return self.replace(params=params, adam=adam)

    def polyak(self, tau: jax.Array) -> Packed:
        """One step of the target towards the parameters; none where there is no target."""
        return self if self.target is None else self.replace(target=_towards(self, tau))

    def first(self) -> Packed:
        """The first of twins, without parameters: to be applied to those that are handed in."""
        links = jax.tree.map(lambda x: x[0], self.links)
        return self.replace(params=None, links=links, target=None, adam=None, net=self.net.one)

    def masked(self) -> Masked:
        """The network masked, exactly: zeros off the links."""
        convert = lambda vector: unpack(vector, self.links, normalised=self.net.normalised)
        mask = masking.of_kernels(convert(self.params), masks_of(self.links))
        return _convert(self, Masked, {"mask": mask}, convert)

    def like(self, other: SparseNetwork) -> SparseNetwork:
        """The network in the form of another."""
        return self if isinstance(other, Packed) else self.masked()


SparseNetwork = Masked | Packed
"""A network in either form."""


def fresh(params: Params, mask: Masks, target: Params, net: Net) -> Masked:
    """A network at its beginning; the parameters are zero off the masks already."""
    return Masked(params=params, mask=mask, target=target, adam=kernels.ADAM.init(params), net=net)


def _towards(network: Any, tau: jax.Array) -> Any:
    return jax.tree.map(lambda t, p: t + tau * (p - t), network.target, network.params)


def _convert(network: Any, form: type, where: dict[str, Any], convert: Callable[[Any], Any]) -> Any:
    adam = network.adam
    return form(
        params=convert(network.params),
        target=None if network.target is None else convert(network.target),
        adam=adam._replace(mu=convert(adam.mu), nu=convert(adam.nu)),
        net=network.net,
        **where,
    )


def links_of(masks: Masks, capacities: Sequence[int], *, spare: bool = False) -> tuple[SparseIndices, ...]:
    """Boolean masks as `SparseIndices`; for the arguments see `Masked.packed`."""
    return tuple(
        masking.per_matrix(lambda mask, capacity=capacity: packing.from_mask(mask, capacity, spare=spare))(mask)
        for mask, capacity in zip(masking.kernels(masks), capacities, strict=True)
    )


def masks_of(links: tuple[SparseIndices, ...]) -> list[jax.Array]:
    """The masks of the matrices, in order; inverse of `links_of`."""
    return [trees.over(link.inputs.ndim - 1, packing.to_mask)(link) for link in links]


def pack(tree: Any, links: tuple[SparseIndices, ...]) -> jax.Array:
    """A tree like a perceptron's parameters as a vector, of twins as two; what is off the links is lost.

    It holds of each layer in turn the values on its links and the biases, and of one that is normalised scale and
    offset.
    """

    def one(tree: Any, links: tuple[SparseIndices, ...]) -> jax.Array:
        parts: list[jax.Array] = []
        for i, link in enumerate(links):
            layer, normalisation = tree[f"Dense_{i}"], tree.get(f"LayerNorm_{i}")
            parts += [packing.pack(layer["kernel"], link), layer["bias"]]
            parts += [] if normalisation is None else [normalisation["scale"], normalisation["bias"]]
        return jnp.concatenate(parts)

    return trees.over(links[0].inputs.ndim - 1, one)(tree, links)


def unpack(vector: jax.Array, links: tuple[SparseIndices, ...], *, normalised: bool = False) -> Any:
    """Inverse of `pack`: zeros off the links."""

    def one(vector: jax.Array, links: tuple[SparseIndices, ...]) -> Any:
        tree: dict[str, Any] = {}
        for i, (link, layer) in enumerate(zip(links, packing.split(vector, links, normalised=normalised), strict=True)):
            tree[f"Dense_{i}"] = {"kernel": packing.unpack(layer.values, link), "bias": layer.bias}
            if layer.scale is not None:
                tree[f"LayerNorm_{i}"] = {"scale": layer.scale, "bias": layer.offset}
        return tree

    return trees.over(links[0].inputs.ndim - 1, one)(vector, links)
