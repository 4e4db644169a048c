"""Residual blocks with layer normalisation (SimBa, Lee et al., 2025), without running statistics of observations."""

from __future__ import annotations

import jax
from flax import linen as nn

from rlx2_jax.errors import ConfigError
from rlx2_jax.networks.layers import dense

EXPANSION = 4
"""Units inside a residual block, for each of the units that it adds to."""


class Residual(nn.Module):
    """Residual blocks on a stream of units: `x + W_2 relu(W_1 LN(x))`, a last normalisation, a linear output.

    Attributes:
      features: width of the stream once for each block, output last.
      initial: as in `MLP`.
    """

    features: tuple[int, ...]
    initial: str = "uniform"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., inputs]` to `[..., outputs]`."""
        *blocks, outputs = self.features
        x = dense(blocks[0], self.initial, x)
        for width in blocks:
            inner = nn.relu(dense(EXPANSION * width, self.initial, nn.LayerNorm()(x)))
            x = x + dense(width, self.initial, inner)
        return dense(outputs, self.initial, nn.LayerNorm()(x))


def simba(features: tuple[int, ...], initial: str) -> nn.Module:
    """Residual blocks.

    Raises:
      ConfigError: widths that differ.
    """
    if len(set(features[:-1])) > 1:
        raise ConfigError(f"hidden={features[:-1]}: blocks of simba add to one stream; name one width for all.")
    return Residual(features, initial)


network = simba
"""What a configuration calls `simba`."""
