"""Tests, one module per module of `rlx2_jax`."""
