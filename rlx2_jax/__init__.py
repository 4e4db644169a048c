"""rlx2_jax: sparse deep reinforcement learning from scratch (RLx2) in JAX.

    from rlx2_jax import Config, train

    result = train(Config(env="Hopper-v4", agent="td3"), "runs/hopper")

| name | what |
|---|---|
| `Config` | what a run is |
| `train` | one run, with its files, checkpoints and progress |
| `make_train` | a whole run as one pure function, for `jit`, `vmap` and `pmap` |
| `sweep` | many runs in one program, or as processes |
| `load_policy` | a trained policy, from its file or its run's directory |
| `export` | policies as C, ONNX, JAX and NumPy, for where this package is not |
| `sparse` | sparse training of any model, with any optimiser of optax |

Each is imported when it is first asked for: the package itself costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx2_jax import export, sparse
    from rlx2_jax.config import Config
    from rlx2_jax.policies import load as load_policy
    from rlx2_jax.sweeps.sweep import sweep
    from rlx2_jax.training import make_train, train

# XLA cries out when a program takes minutes to compile, as on a busy machine. What fails is raised all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.2.0"

__all__ = ["Config", "export", "load_policy", "make_train", "sparse", "sweep", "train"]

_PLACES = {
    "Config": ("config", "Config"),
    "load_policy": ("policies", "load"),
    "make_train": ("training", "make_train"),
    "sweep": ("sweeps", "sweep"),
    "train": ("training", "train"),
}
"""Module and name of what stands elsewhere."""


def __getattr__(name: str) -> Any:
    if name in ("export", "sparse"):
        return importlib.import_module(f"rlx2_jax.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'rlx2_jax' has no attribute {name!r}")
    module, own = _PLACES[name]
    return getattr(importlib.import_module(f"rlx2_jax.{module}"), own)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
