"""The compiled kernels: finding the shared library that installation built, and telling XLA of it."""

from __future__ import annotations

import ctypes
import functools
import importlib.util

import jax

from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import limits

FORWARD = "rlx2_perceptron_forward"
BACKWARD = "rlx2_perceptron_backward"
TAKE_ROWS = "rlx2_take_rows"
TAKE_WINDOWS = "rlx2_take_windows"
THREEFRY = "rlx2_threefry"
THREEFRY_KEYS = "rlx2_threefry_keys"
ADAM = "rlx2_adam"
TOP_LINKS = "rlx2_top_links"
EXCHANGE_LINKS = "rlx2_exchange_links"
INDEX_LINKS = "rlx2_index_links"
MUJOCO_RESET = "rlx2_mujoco_reset"
MUJOCO_STEP = "rlx2_mujoco_step"

CALLS = (
    *(FORWARD, BACKWARD, TAKE_ROWS, TAKE_WINDOWS, THREEFRY, THREEFRY_KEYS, ADAM, TOP_LINKS, INDEX_LINKS),
    *(EXCHANGE_LINKS, MUJOCO_RESET, MUJOCO_STEP),
)

BUILD = "install a compiler of C++17, such as GCC or clang, and reinstall rlx2-jax"
"""What helps where the library was not built."""

MISSING = (
    f"packed compute takes its portable path, about as slow as masked: the native kernels were not built; {BUILD}."
)
"""What is lost without the library, and the mend."""

NO_KERNELS = "packed compute takes its portable path: there are no kernels for this device; use --compute=masked."
"""What is lost on another device than a CPU, and the mend."""


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, its custom calls registered with XLA; None where installation found no compiler.

    Raises:
      ConfigError: it is of another version of the package, or of another system.
    """
    spec = importlib.util.find_spec("rlx2_jax.kernels._native")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        library.rlx2_instructions.restype = ctypes.c_char_p
        library.rlx2_mujoco_add.restype = ctypes.c_char_p
        for count in ("tile", "group", "most_layers", "most_inputs"):
            getattr(library, f"rlx2_{count}").restype = ctypes.c_int64
        calls = {name: getattr(library, name) for name in CALLS}
    except (OSError, AttributeError) as error:
        raise ConfigError(f"the native kernels do not fit ({error}); reinstall rlx2-jax.") from None
    library.rlx2_use_threads(ctypes.c_int64(len(limits.cores())))
    for name, call in calls.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(call), platform="cpu")
    return library


def available() -> bool:
    """Whether the kernels run native here: the library is there, and the default device is a CPU."""
    return jax.default_backend() == "cpu" and load() is not None


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of the library that this processor has, best first."""
    library = load()
    return () if library is None else tuple(library.rlx2_instructions().decode().split(","))


def limits_of_perceptrons() -> tuple[int, int]:
    """Layers of a perceptron, and arrays that are its inputs, at most."""
    library = load()
    assert library is not None
    return int(library.rlx2_most_layers()), int(library.rlx2_most_inputs())


def tiling() -> tuple[int, int]:
    """Samples of a tile, and tiles of a group, which sizes of the kernels' buffers are multiples of."""
    library = load()
    assert library is not None
    return int(library.rlx2_tile()), int(library.rlx2_group())
