"""The perceptron of the paper's release, and what else may stand before its ReLUs."""

from __future__ import annotations

import jax
from flax import linen as nn

from rlx2_jax.networks.layers import dense


class MLP(nn.Module):
    """Perceptron with ReLU between its layers and a linear output.

    Attributes:
      features: widths of the layers, output last.
      initial: `uniform`, `+-1/sqrt(fan_in)` for kernels and biases (PyTorch's default, the release's TD3); `orthogonal`
        (its SAC) or `lecun`, normal with variance `1/fan_in`, both with zero biases.
      normalised: with layer normalisation before each ReLU.
      dropout: share of the hidden units that are left out before each normalisation and ReLU, while `training`.
      training: whether units are left out, for which `apply` needs a key named `dropout`.
    """

    features: tuple[int, ...]
    initial: str = "uniform"
    normalised: bool = False
    dropout: float = 0.0
    training: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., inputs]` to `[..., outputs]`."""
        *hidden, outputs = self.features
        for width in hidden:
            x = dense(width, self.initial, x)
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not self.training)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.normalised else x)
        return dense(outputs, self.initial, x)


network = MLP
"""What a configuration calls `mlp`."""
