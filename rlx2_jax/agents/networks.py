"""The networks: ReLU perceptrons in Flax linen, as in the paper's release.

Parameters are the plain nested dicts that linen makes, `{"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}`; the
two critics are one network with a leading axis of 2. Weights that are absent are zeros, and nothing here needs to know
which. Of a packed network they are one vector (see `masking`), and `forward` takes the packed door.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlx2_jax import kernels

Params = Any
"""A pytree of arrays as linen makes it."""

Initializer = Callable[..., jax.Array]

KERNEL_INITS = ("release", "lecun")

LOG_STD_RANGE = (-5.0, 2.0)
"""Bounds of the Gaussian actor's log standard deviation."""


def actor_sizes(agent: str, observation_size: int, action_size: int, hidden: Sequence[int]) -> tuple[int, ...]:
    """`(inputs, hidden..., outputs)` of the actor; a Gaussian actor has two outputs per action dimension."""
    return (observation_size, *hidden, action_size * (2 if agent == "sac" else 1))


def critic_sizes(observation_size: int, action_size: int, hidden: Sequence[int]) -> tuple[int, ...]:
    """`(inputs, hidden..., outputs)` of one critic."""
    return (observation_size + action_size, *hidden, 1)


def layer_shapes(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """`(in, out)` of each matrix of a perceptron."""
    return tuple(itertools.pairwise(sizes))


def layers(tree: Params) -> list[str]:
    """Names of a perceptron's layers, input to output."""
    return sorted(tree, key=lambda name: int(name.rpartition("_")[2]))


class MLP(nn.Module):
    """Perceptron with ReLU between its layers and a linear output.

    Attributes:
      features: widths of the layers, output last.
      initial: `uniform`, `+-1/sqrt(fan_in)` for kernels and biases (PyTorch's default, the release's TD3); `orthogonal`
        (its SAC) or `lecun`, normal with variance `1/fan_in`, both with zero biases.
    """

    features: Sequence[int]
    initial: str = "uniform"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., inputs]` to `[..., outputs]`."""
        for i, width in enumerate(self.features):
            kernel_init, bias_init = _initializers(self.initial, x.shape[-1])
            x = nn.Dense(width, kernel_init=kernel_init, bias_init=bias_init)(x)
            if i < len(self.features) - 1:
                x = nn.relu(x)
        return x


TwinMLP = nn.vmap(
    MLP,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=None,
    out_axes=0,
    axis_size=2,
)
"""Two perceptrons with one leading parameter axis: `[..., inputs]` to `[2, ..., outputs]`."""


def initial_of(agent: str, kernel_init: str) -> str:
    """What `MLP.initial` is for an agent and a `Config.kernel_init`."""
    return {"td3": "uniform", "sac": "orthogonal"}[agent] if kernel_init == "release" else kernel_init


def _initializers(init: str, fan_in: int) -> tuple[Initializer, Initializer]:
    if init == "orthogonal":
        return _orthogonal, nn.initializers.zeros
    if init == "lecun":
        return nn.initializers.lecun_normal(), nn.initializers.zeros
    bound = fan_in**-0.5

    def uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return uniform, uniform


def _orthogonal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    # One matrix at a time, for the reason told in `diagnostics`.
    draw = jax.custom_batching.sequential_vmap(lambda key: nn.initializers.orthogonal()(key, tuple(shape), dtype))
    return draw(key)


def gaussian_head(output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split an actor's output `[..., 2A]` into mean and log standard deviation `[..., A]` before the squash.

    The log standard deviation runs through tanh into `LOG_STD_RANGE`.
    """
    mean, log_std = jnp.split(output, 2, axis=-1)
    low, high = LOG_STD_RANGE
    return mean, low + 0.5 * (high - low) * (jnp.tanh(log_std) + 1)


def forward(network: nn.Module, params: Params, mask: Any, *inputs: jax.Array) -> jax.Array:
    """A network's output for the given parameters.

    Args:
      network: `MLP`, or `TwinMLP` for parameters with a leading axis.
      params: its parameters, masked or packed.
      mask: what stands beside them. A tuple of `Links` means packed parameters; other masks are not looked at, for
        absent weights are zeros.
      inputs: `[..., size]` each, the network's inputs in turn.
    """
    if not isinstance(mask, tuple):
        output = network.apply({"params": params}, jnp.concatenate(inputs, -1))
        assert isinstance(output, jax.Array)
        return output
    packed = lambda params, links: kernels.perceptron(params, links, *inputs)
    for _ in range(params.ndim - 1):
        packed = jax.vmap(packed)
    return packed(params, mask)


def deterministic_action(agent: str, output: jax.Array) -> jax.Array:
    """An agent's noise-free action `[..., A]` from its actor's output."""
    return jnp.tanh(gaussian_head(output)[0] if agent == "sac" else output)


def sample_squashed(mean: jax.Array, log_std: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A tanh-squashed Gaussian sample and its log-probability (Haarnoja et al., 2018, appendix C).

    Args:
      mean: `[..., A]`.
      log_std: `[..., A]`.
      noise: standard normal, `[..., A]`.

    Returns:
      Action in (-1, 1), `[..., A]`, and its log density, `[...]`.
    """
    raw = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    # log(1 - tanh(u)^2), in the form that does not cancel for large |u|.
    squash = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), (gaussian - squash).sum(-1)


def restrict(params: Params, width: jax.Array, initial: str) -> Params:
    """Re-draw fresh parameters as those of a network with only `width` live units per hidden layer.

    For the method `tiny`: a narrow dense network, embedded in the shapes of the full one so that both are the same
    program. Live weights have the distribution of the narrow network's initialisation; dead ones are zero.

    Args:
      params: as initialised, kernels `[..., in, out]`.
      width: live hidden units, a traced integer; the full width changes nothing.
      initial: as in `MLP`.
    """
    names = layers(params)
    result = {}
    for i, name in enumerate(names):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        support = kernel_support(kernel.shape, width, first=i == 0, last=i == len(names) - 1)
        fan_in = kernel.shape[-2]
        live_in = fan_in if i == 0 else jnp.minimum(width, fan_in)
        live_out = jnp.any(support, axis=-2)
        if initial == "orthogonal":
            # The polar factor of a block of a Haar matrix is Haar on the block.
            kernel = jax.lax.cond(
                width < max(kernel.shape[-2:]),
                jnp.vectorize(_polar_factor, signature="(i,o)->(i,o)"),
                lambda k: k,
                jnp.where(support, kernel, 0),
            )
        else:
            stretch = jnp.sqrt(fan_in / live_in)
            kernel, bias = kernel * stretch, bias * stretch
        result[name] = {
            "kernel": jnp.where(support, kernel, 0),
            "bias": jnp.where(live_out, bias, 0),
        }
    return result


def kernel_support(shape: Sequence[int], width: jax.Array, *, first: bool, last: bool) -> jax.Array:
    """Which entries `[in, out]` of a kernel join live units, when every hidden layer has `width` of them."""
    rows, cols = shape[-2:]
    live_row = jnp.arange(rows) < (rows if first else width)
    live_col = jnp.arange(cols) < (cols if last else width)
    return live_row[:, None] & live_col[None, :]


@jax.custom_batching.sequential_vmap
def _polar_factor(matrix: jax.Array) -> jax.Array:
    # One matrix at a time, for the reason told in `diagnostics`.
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
    # Singular values of an orthogonal matrix's block lie well above rounding, those of its zero frame do not.
    return (u * (s > 1e-6)) @ vh
