"""Kernels of our own, native (C++ through XLA FFI) on CPUs, portable elsewhere.

Packed compute: perceptrons whose work is proportional to their links. And what weighs as much beside it: gathers,
random bits, and Adam.
"""

from rlx2_jax.kernels.adam import ADAM, adam_step
from rlx2_jax.kernels.data import Windows, fast_key, key_like, take_rows, take_windows
from rlx2_jax.kernels.perceptron import perceptron
from rlx2_jax.runtime.native import MISSING, NO_KERNELS
from rlx2_jax.runtime.native import available as native_available

__all__ = [
    "ADAM",
    "MISSING",
    "NO_KERNELS",
    "Windows",
    "adam_step",
    "fast_key",
    "key_like",
    "native_available",
    "perceptron",
    "take_rows",
    "take_windows",
]
