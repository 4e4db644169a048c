"""rlx2_jax: sparse deep reinforcement learning from scratch (RLx2) in JAX."""

__version__ = "0.1.0"
