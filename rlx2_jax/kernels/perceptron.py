"""One door to packed perceptrons: `y = W_L relu(... relu(W_1 x + b_1) ...) + b_L`, with O(links) work.

The whole perceptron is one operation, not one per layer, so that a tile of samples passes through all layers while it
is in cache, and the cost of a call is paid once. Its derivative is one more:

    delta_L = dy,   delta_(l-1) = (W_l^T delta_l) [x_l > 0]          sparse times dense, on the links by input
    dW_l[link i -> o] = sum_b x_l[i, b] delta_l[o, b]                sampled product, on the links only
    db_l = sum_b delta_l

A normalised network has layer normalisation before each ReLU. Of what matrix and bias give, a, over all units of a
sample, and with scale s and offset t:

    n = r (a - mean a),   r = 1 / sqrt(var a + epsilon),   x_l = relu(s n + t)
    e = (W_(l+1)^T delta_(l+1)) [x_l > 0],   dt_l = sum_b e,   ds_l = sum_b e n
    delta_l = r (s e - mean(s e) - n mean(s e n))

Kept for the backward pass are n, in place of x_l, which is made again from it, and r, one number a layer and sample.

The gradient off the links, which growing by gradient needs, is not among them: a topology event unpacks first. That of
spare places (see `packing`) is zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from rlx2_jax.kernels import packing
from rlx2_jax.kernels.packing import SparseIndices
from rlx2_jax.runtime import native, numerics

EPSILON = 1e-6
"""What a normalised network adds to a variance before its root is taken, as `flax.linen.LayerNorm` does."""


@numerics.by_usual_rules
def perceptron(
    params: jax.Array,
    links: Sequence[SparseIndices],
    *inputs: jax.Array,
    normalised: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Output of a ReLU perceptron with packed matrices. Differentiable once; `vmap` as you like.

    Args:
      params: `[parameters]`, float32: the values, then the bias, of each layer in turn; if normalised, then the scale
        and the offset of each hidden layer.
      links: where the values of each layer stand.
      inputs: `[..., size]` each, float32: one or more arrays, whose features are the network's inputs in turn.
      normalised: with layer normalisation of each hidden layer's units before their ReLU.
      implementation: `native`, `portable` (unpacks, and multiplies dense), an instruction set of the native kernels, or
        `auto`: native where that is possible.

    Returns:
      `[..., out]`.

    Raises:
      ValueError: shapes or types that do not fit, or more layers than the native kernels take.
    """
    links = tuple(links)
    _check(params, links, inputs, normalised)
    if implementation == "portable" or (implementation == "auto" and not native.available()):
        return _portable(params, links, jnp.concatenate(inputs, -1), normalised)
    if native.load() is None:
        raise ValueError(native.MISSING)
    most_layers, most_inputs = native.limits_of_perceptrons()
    if len(links) > most_layers:
        raise ValueError(f"a perceptron of {len(links)} layers; packed kernels take {most_layers}.")
    if len(inputs) > most_inputs:
        inputs = (jnp.concatenate(inputs, -1),)
    how = _How("auto" if implementation == "native" else implementation, normalised)
    # Sizes by name: of an empty batch, -1 says nothing.
    leading, outputs = inputs[0].shape[:-1], links[-1].shape[1]
    flat = tuple(x.reshape(math.prod(leading), x.shape[-1]) for x in inputs)
    return _native(how, params, links, flat).reshape(*leading, outputs)


def _check(params: jax.Array, links: Sequence[SparseIndices], inputs: tuple[jax.Array, ...], normalised: bool) -> None:
    if not links or not inputs:
        raise ValueError("a perceptron needs at least one layer of links and one input.")
    if len({x.shape[:-1] for x in inputs}) > 1 or not all(x.ndim for x in inputs):
        raise ValueError(f"inputs of shapes {[x.shape for x in inputs]} are not features of the same samples.")
    size = sum(x.shape[-1] for x in inputs)
    for i, link in enumerate(links):
        needed_inputs, outputs = link.shape
        if needed_inputs != size:
            raise ValueError(f"layer {i} takes {needed_inputs} inputs, but is given {size}.")
        size = outputs
    needed = sum(map(sum, packing.layout(links, normalised=normalised)))
    if params.shape != (needed,):
        what = "the links and normalisation" if normalised else "the links"
        raise ValueError(f"parameters of shape {params.shape} do not fit {what}, which need ({needed},).")
    if wrong := {str(x.dtype) for x in (params, *inputs) if x.dtype != jnp.float32}:
        raise ValueError(f"packed compute takes float32 values, not {', '.join(sorted(wrong))}.")
    for leaf in jax.tree.leaves(links):
        if leaf.dtype != jnp.int32:
            raise ValueError(f"packed compute takes int32 indices, not {leaf.dtype}.")


def _portable(params: jax.Array, links: tuple[SparseIndices, ...], x: jax.Array, normalised: bool) -> jax.Array:
    layers = packing.split(params, links, normalised=normalised)
    for i, (link, layer) in enumerate(zip(links, layers, strict=True)):
        x = x @ packing.unpack(layer.values, link) + layer.bias
        if layer.scale is not None and layer.offset is not None:
            x = _normalise(x) * layer.scale + layer.offset
        if i < len(links) - 1:
            x = jax.nn.relu(x)
    return x


def _normalise(x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)


class _How(NamedTuple):
    """What a native call is told by name."""

    instructions: str
    normalised: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _native(how: _How, params: jax.Array, links: tuple[SparseIndices, ...], inputs: tuple[jax.Array, ...]) -> jax.Array:
    return _forward(how, params, links, inputs, keep=False)[0]


def _forward(
    how: _How, params: jax.Array, links: tuple[SparseIndices, ...], inputs: tuple[jax.Array, ...], *, keep: bool
) -> Sequence[jax.Array]:
    """`[y]`, and what the backward pass needs if it is to be kept."""
    batch = inputs[0].shape[0]
    shapes = [_floats(batch, links[-1].shape[1])]
    if keep:
        tile, _ = native.tiling()
        rows = sum(link.shape[0] for link in links) + (len(links) - 1 if how.normalised else 0)
        shapes.append(_floats(math.ceil(batch / tile) * rows * tile))
    call = jax.ffi.ffi_call(native.FORWARD, shapes, vmap_method="expand_dims")
    indices = [index for link in links for index in (link.row_start, link.inputs)]
    return call(*inputs, params, *indices, **how._asdict(), arrays=np.int64(len(inputs)))


@jax.tree_util.register_static
class _Static(NamedTuple):
    """What a backward pass knows when it is traced."""

    params: bool
    """Whether the gradient of the parameters is wanted."""
    inputs: tuple[bool, ...]
    """Whether the gradient of each input is wanted."""
    sizes: tuple[int, ...]
    """Columns of each input."""


def _native_forward(how: _How, params: Any, links: Any, inputs: Any) -> tuple[jax.Array, Any]:
    static = _Static(
        params=params.perturbed,
        inputs=tuple(x.perturbed for x in inputs),
        sizes=tuple(x.value.shape[-1] for x in inputs),
    )
    links = jax.tree.map(lambda primal: primal.value, links, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    y, activations = _forward(how, params.value, links, tuple(x.value for x in inputs), keep=True)
    return y, (static, params.value, links, activations)


def _native_backward(how: _How, residuals: Any, dy: Any) -> tuple[Any, None, tuple[Any, ...]]:
    static, params, links, activations = residuals
    if isinstance(dy, SymbolicZero):
        dy = jnp.zeros(dy.shape, dy.dtype)
    batch = dy.shape[0]
    shapes = [_floats(batch, size) for size, wanted in zip(static.sizes, static.inputs, strict=True) if wanted]
    if static.params:
        groups = math.ceil(batch / math.prod(native.tiling()))
        shapes = [_floats(*params.shape), _floats(max(groups - 1, 0), *params.shape), *shapes]
    call = jax.ffi.ffi_call(native.BACKWARD, shapes, vmap_method="expand_dims")
    indices = [
        index for link in links for index in (link.row_start, link.inputs, link.column_start, link.outputs, link.order)
    ]
    attributes = {
        "weights": static.params,
        "sizes": np.asarray(static.sizes),
        "wanted": np.asarray(static.inputs, np.int64),
    }
    results = list(call(dy, activations, params, *indices, **how._asdict(), **attributes))
    gradient, inputs = (results[0], results[2:]) if static.params else (None, results)
    return gradient, None, tuple(inputs.pop(0) if wanted else None for wanted in static.inputs)


_native.defvjp(_native_forward, _native_backward, symbolic_zeros=True)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
