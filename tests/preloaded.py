"""What tests' own processes share with the one whose forks are launchers' processes (see `forks`)."""

import gc
import os
import types

import matplotlib.backends.backend_agg  # noqa: F401
from matplotlib.figure import Figure

from rlx2_jax.config import command_line  # noqa: F401
from rlx2_jax.sweeps import sweep  # noqa: F401
from rlx2_jax.training import run  # noqa: F401
from rlx2_jax.viz import curves

PLAIN = types.SimpleNamespace(
    draw_run=lambda rows, title: Figure(figsize=(1, 1)), headline=curves.headline, save=curves.save
)
"""In the place of the module `curves`: the picture of a run is empty; drawing takes longer than to train it."""

ALONE = len(os.listdir("/proc/self/task")) == 1
"""Whether a process that imports nothing else has one thread, as one that forks must."""

# A fifth of the time of tracing went to looking for garbage, of which there is little.
gc.set_threshold(100_000, 20, 20)
