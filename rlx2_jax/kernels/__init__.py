"""Kernels of our own, native (C++ through XLA FFI) on CPUs, portable elsewhere.

Packed compute: perceptrons whose work is proportional to their links. And what weighs as much beside it: gathers and
random bits.
"""

from rlx2_jax.kernels.data import fast_key, take_rows
from rlx2_jax.kernels.native import MISSING
from rlx2_jax.kernels.native import available as native_available
from rlx2_jax.kernels.perceptron import perceptron

__all__ = ["MISSING", "fast_key", "native_available", "perceptron", "take_rows"]
