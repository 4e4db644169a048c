"""rlx2_jax: sparse deep reinforcement learning from scratch (RLx2) in JAX."""

import os

# XLA cries out when a program takes minutes to compile, as on a busy machine. What fails is raised all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
