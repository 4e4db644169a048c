"""The networks of agents: any Flax module, by name, as functions of parameters.

A module of `networks.kinds` is a network of its name: what it calls `network`. One of your own is
`package.module:function`. Either is a function `(features, initial) -> nn.Module` of the widths, output last, and of
how weights begin (see `MLP`); the module maps `[..., inputs]` to `[..., outputs]`. Sparse are its leaves named
`kernel`, as Flax's layers name their matrices. The two critics are one network with a leading axis of 2 on every leaf.
Weights that are absent are zeros, and nothing here needs to know which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlx2_jax.config.registry import NETWORKS
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks import kinds
from rlx2_jax.networks.kinds.mlp import MLP
from rlx2_jax.runtime import places

Params = Any
"""A pytree of arrays as linen makes it."""

LOG_STD_RANGE = (-5.0, 2.0)
"""Bounds of the Gaussian actor's log standard deviation."""


def layer_shapes(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """`(in, out)` of each matrix of a perceptron."""
    return tuple(itertools.pairwise(sizes))


def make(name: str, features: tuple[int, ...], initial: str) -> nn.Module:
    """The module that a network's name stands for.

    Raises:
      ConfigError: there is none, or it is no Flax module.
    """
    factory = _factory(name)
    try:
        inspect.signature(factory).bind(features, initial)
    except TypeError as error:
        raise ConfigError(f"network={name}: {error}; write a function of (features, initial).") from None
    except ValueError:
        pass  # Not all that can be called says how.
    module = places.tried(f"network={name}: making it", factory, features, initial)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"network={name} made a {type(module).__name__}; return a flax.linen module.")
    try:
        hash(module)
    except TypeError:
        raise ConfigError(
            f"network={name} has a list or an array among the fields of its {type(module).__name__}, and no program "
            "could be found by it; give it tuples."
        ) from None
    return module


def _factory(name: str) -> Callable[[tuple[int, ...], str], nn.Module]:
    if ":" in name:
        factory: Callable[[tuple[int, ...], str], nn.Module] = places.imported(name, "function")
        return factory
    if name not in NETWORKS:
        raise ConfigError(f"unknown network {name!r}; valid: {', '.join(NETWORKS)}, or package.module:function.")
    own: Callable[[tuple[int, ...], str], nn.Module] = importlib.import_module(f"{kinds.__name__}.{name}").network
    return own


@dataclasses.dataclass(frozen=True)
class Net:
    """One of an agent's networks, as functions of its parameters."""

    module: nn.Module
    """Flax module of a single network."""
    twins: bool = False
    """Two of them, with a leading axis on every parameter and on the output."""

    @property
    def one(self) -> Net:
        """Either of the twins."""
        return Net(self.module)

    @property
    def _is_perceptron(self) -> bool:
        # What derives from it may compute something else.
        return type(self.module) is MLP

    @property
    def plain(self) -> bool:
        """Whether it is a perceptron without normalisation: a narrow one can stand in its shapes (method `tiny`)."""
        return self._is_perceptron and not self.module.normalised

    @property
    def packable(self) -> bool:
        """Whether there are packed kernels for it."""
        return self._is_perceptron and not self.module.dropout

    @property
    def normalised(self) -> bool:
        """Whether it is a perceptron with layer normalisation."""
        return self._is_perceptron and self.module.normalised

    def init(self, key: jax.Array, inputs: int) -> Params:
        """Fresh parameters for so many inputs."""
        return self._whole.init(key, jnp.zeros((1, inputs)))["params"]

    def apply(self, params: Params, *inputs: jax.Array) -> jax.Array:
        """Output `[..., outputs]`, of twins `[2, ..., outputs]`, for inputs `[..., size]`, the features in turn.

        It is float32, whatever a network of one's own computes in.
        """
        output = self._whole.apply({"params": params}, jnp.concatenate(inputs, -1))
        assert isinstance(output, jax.Array)
        return output.astype(jnp.float32)

    def apply_training(self, params: Params, key: jax.Array, *inputs: jax.Array) -> jax.Array:
        """The same with units left out at random."""
        module = dataclasses.replace(self, module=self.module.clone(training=True))._whole
        output = module.apply({"params": params}, jnp.concatenate(inputs, -1), rngs={"dropout": key})
        assert isinstance(output, jax.Array)
        return output.astype(jnp.float32)

    def activations(self, params: Params, inputs: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """What each matrix but the first reads, `[..., B, units]`, and the output `[..., B, outputs]`.

        Args:
          params: of the network; twins come with their leading axis.
          inputs: `[B, inputs]`.
        """

        def one(params: Params) -> tuple[list[jax.Array], jax.Array]:
            read: list[jax.Array] = []

            with _watched(lambda layer, x: read.append(x.astype(jnp.float32))):
                output = self.one.apply(params, inputs)
            return read[1:], output

        return (jax.vmap(one) if self.twins else one)(params)

    def calls(self, params: Params, inputs: int) -> list[str]:
        """Paths of the layers with a matrix, such as `Dense_0`, in the order in which one network calls them."""
        found: list[str] = []
        with _watched(lambda layer, x: found.append("/".join(layer.path))):
            jax.eval_shape(self.one.apply, params, jax.ShapeDtypeStruct((1, inputs), jnp.float32))
        return found

    @functools.cached_property
    def _whole(self) -> nn.Module:
        if not self.twins:
            return self.module
        own = {f.name: getattr(self.module, f.name) for f in dataclasses.fields(self.module) if f.init}
        pair = nn.vmap(
            type(self.module),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=None,
            out_axes=0,
            axis_size=2,
        )
        return pair(**{name: value for name, value in own.items() if name not in ("parent", "name")})


def _watched(see: Callable[[nn.Module, jax.Array], None]) -> contextlib.AbstractContextManager[None]:
    """While entered, `see` is given each layer with a matrix of its own as it is called, and what it reads."""

    def look(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__" and context.module.has_variable("params", "kernel"):
            see(context.module, args[0])
        return call(*args, **kwargs)

    return nn.intercept_methods(look)


def gaussian_head(output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split an actor's output `[..., 2A]` into mean and log standard deviation `[..., A]` before the squash.

    The log standard deviation runs through tanh into `LOG_STD_RANGE`.
    """
    mean, log_std = jnp.split(output, 2, axis=-1)
    low, high = LOG_STD_RANGE
    return mean, low + 0.5 * (high - low) * (jnp.tanh(log_std) + 1)


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
    result = {}
    for i in range(len(params)):
        name = f"Dense_{i}"
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        first, last = i == 0, i == len(params) - 1
        support = kernel_support(kernel.shape, width, first=first, last=last)
        fan_in = kernel.shape[-2]
        live_in = fan_in if first else jnp.minimum(width, fan_in)
        live_out = jnp.any(support, axis=-2)
        if initial == "orthogonal":
            # The polar factor of a block of a Haar matrix is Haar on the block.
            units = kernel.shape[-1:] if first else kernel.shape[-2:-1] if last else kernel.shape[-2:]
            kernel = jax.lax.cond(
                width < max(units),
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
