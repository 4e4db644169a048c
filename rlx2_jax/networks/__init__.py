"""Networks of agents: Flax modules, masks beside their parameters, and the two forms in which they are trained."""

from rlx2_jax.networks.forms import Masked, Packed, SparseNetwork
from rlx2_jax.networks.kinds.mlp import MLP
from rlx2_jax.networks.modules import (
    LOG_STD_RANGE,
    Net,
    Params,
    gaussian_head,
    kernel_support,
    layer_shapes,
    make,
    restrict,
    sample_squashed,
)

__all__ = [
    "LOG_STD_RANGE",
    "MLP",
    "Masked",
    "Net",
    "Packed",
    "Params",
    "SparseNetwork",
    "gaussian_head",
    "kernel_support",
    "layer_shapes",
    "make",
    "restrict",
    "sample_squashed",
]
