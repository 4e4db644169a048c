"""Sparsity of the package's own networks: how many links each matrix has, and where they are.

How links move, and how many a matrix gets, is `rlx2_jax.sparse`, which serves any model.
"""

from rlx2_jax.sparsity.methods import METHODS

__all__ = ["METHODS"]
