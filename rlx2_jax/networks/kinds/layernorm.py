"""The perceptron with layer normalisation before each ReLU."""

from __future__ import annotations

from flax import linen as nn

from rlx2_jax.networks.kinds.mlp import MLP


def layernorm(features: tuple[int, ...], initial: str) -> nn.Module:
    """Perceptron with layer normalisation."""
    return MLP(features, initial, normalised=True)


network = layernorm
"""What a configuration calls `layernorm`."""
