"""One door to packed perceptrons: `y = W_L relu(... relu(W_1 x + b_1) ...) + b_L`, with O(links) work.

The whole perceptron is one operation, not one per layer, so that a tile of samples passes through all layers while it
is in cache, and the cost of a call is paid once. Its derivative is one more:

    delta_L = dy,   delta_(l-1) = (W_l^T delta_l) [x_l > 0]          sparse times dense, on the links by input
    dW_l[link i -> o] = sum_b x_l[i, b] delta_l[o, b]                sampled product, on the links only
    db_l = sum_b delta_l

The gradient off the links, which growing by gradient needs, is not among them: a topology event unpacks first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from rlx2_jax.kernels import native
from rlx2_jax.sparsity import links as packing
from rlx2_jax.sparsity.links import Links


def perceptron(params: jax.Array, links: Sequence[Links], x: jax.Array, *, implementation: str = "auto") -> jax.Array:
    """Output of a ReLU perceptron with packed matrices. Differentiable once; `vmap` as you like.

    Args:
      params: `[parameters]`, float32: the values, then the bias, of each layer in turn.
      links: where the values of each layer stand.
      x: `[..., in]`, float32.
      implementation: `native`, `portable` (unpacks, and multiplies dense), an instruction set of the native kernels, or
        `auto`: native where that is possible.

    Returns:
      `[..., out]`.

    Raises:
      ValueError: shapes or types that do not fit.
    """
    links = tuple(links)
    _check(params, links, x)
    if implementation == "portable" or (implementation == "auto" and not native.available()):
        return _portable(params, links, x)
    if native.load() is None:
        raise ValueError(native.MISSING)
    instructions = "auto" if implementation == "native" else implementation
    batch = x.reshape(-1, x.shape[-1])
    return _native(instructions, params, links, batch).reshape(*x.shape[:-1], -1)


def _check(params: jax.Array, links: tuple[Links, ...], x: jax.Array) -> None:
    if not links:
        raise ValueError("a perceptron needs at least one layer of links.")
    size = x.shape[-1] if x.ndim else 0
    for i, link in enumerate(links):
        inputs, outputs = link.shape
        if inputs != size:
            raise ValueError(f"layer {i} takes {inputs} inputs, but is given {size}.")
        size = outputs
    needed = sum(link.count + link.shape[1] for link in links)
    if params.shape != (needed,):
        raise ValueError(f"parameters of shape {params.shape} do not fit the links, which need ({needed},).")
    if params.dtype != jnp.float32 or x.dtype != jnp.float32:
        raise ValueError(f"packed compute takes float32 values, not {params.dtype} and {x.dtype}.")
    for leaf in jax.tree.leaves(links):
        if leaf.dtype != jnp.int32:
            raise ValueError(f"packed compute takes int32 indices, not {leaf.dtype}.")


def _portable(params: jax.Array, links: tuple[Links, ...], x: jax.Array) -> jax.Array:
    for i, (link, (values, bias)) in enumerate(zip(links, packing.split(params, links), strict=True)):
        x = x @ packing.unpack(values, link) + bias
        if i < len(links) - 1:
            x = jax.nn.relu(x)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _native(instructions: str, params: jax.Array, links: tuple[Links, ...], x: jax.Array) -> jax.Array:
    return _forward(instructions, params, links, x, keep=False)[0]


def _forward(
    instructions: str, params: jax.Array, links: tuple[Links, ...], x: jax.Array, *, keep: bool
) -> Sequence[jax.Array]:
    """`[y]`, and the activations of every layer if they are to be kept."""
    shapes = [_floats(x.shape[0], links[-1].shape[1])]
    if keep:
        tile, _ = native.tiling()
        shapes.append(_floats(math.ceil(x.shape[0] / tile) * sum(link.shape[0] for link in links) * tile))
    call = jax.ffi.ffi_call(native.FORWARD, shapes, vmap_method="broadcast_all")
    indices = [index for link in links for index in (link.row_start, link.inputs)]
    return call(x, params, *indices, instructions=instructions)


@jax.tree_util.register_static
class _Wanted(NamedTuple):
    """Which gradients a backward pass has to make: known when tracing."""

    params: bool
    inputs: bool


def _native_forward(instructions: str, params: Any, links: Any, x: Any) -> tuple[jax.Array, Any]:
    wanted = _Wanted(params=params.perturbed, inputs=x.perturbed)
    links = jax.tree.map(lambda primal: primal.value, links, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    y, activations = _forward(instructions, params.value, links, x.value, keep=True)
    return y, (wanted, params.value, links, activations, x.value.shape)


def _native_backward(instructions: str, residuals: Any, dy: Any) -> tuple[Any, None, Any]:
    wanted, params, links, activations, (batch, size) = residuals
    if isinstance(dy, SymbolicZero):
        dy = jnp.zeros(dy.shape, dy.dtype)
    shapes = []
    if wanted.params:
        shapes.append(_floats(math.ceil(batch / math.prod(native.tiling())), *params.shape))
    if wanted.inputs:
        shapes.append(_floats(batch, size))
    call = jax.ffi.ffi_call(native.BACKWARD, shapes, vmap_method="broadcast_all")
    indices = [
        index for link in links for index in (link.row_start, link.inputs, link.column_start, link.outputs, link.order)
    ]
    gradients = call(dy, activations, params, *indices, instructions=instructions, weights=wanted.params)
    return gradients[0][0] if wanted.params else None, None, gradients[-1] if wanted.inputs else None


_native.defvjp(_native_forward, _native_backward, symbolic_zeros=True)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
