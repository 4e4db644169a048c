"""Whole studies as one program: many runs laid over devices and hosts, with one table, resumable as a whole."""

from rlx2_jax.sweeps.plans import Plan, product
from rlx2_jax.sweeps.sweep import SweepResult as Result
from rlx2_jax.sweeps.sweep import check_way, make_plan, sweep

__all__ = ["Plan", "Result", "check_way", "make_plan", "product", "sweep"]
