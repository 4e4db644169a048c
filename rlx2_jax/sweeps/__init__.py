"""Whole studies as one program: many runs laid over devices and hosts, with one table, resumable as a whole."""

from rlx2_jax.sweeps.plan import Plan, product
from rlx2_jax.sweeps.sweep import Result, make_plan, sweep

__all__ = ["Plan", "Result", "make_plan", "product", "sweep"]
