"""Packed compute: perceptrons whose work is proportional to their links, native (C++ through XLA FFI) or portable."""

from rlx2_jax.kernels.native import MISSING
from rlx2_jax.kernels.native import available as native_available
from rlx2_jax.kernels.perceptron import perceptron

__all__ = ["MISSING", "native_available", "perceptron"]
