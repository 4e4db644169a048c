"""Sparsity: how many links each matrix has, where they are, and how they move."""

from rlx2_jax.sparsity.densities import erdos_renyi
from rlx2_jax.sparsity.methods import METHODS
from rlx2_jax.sparsity.topology import drop_and_grow

__all__ = ["METHODS", "drop_and_grow", "erdos_renyi"]
