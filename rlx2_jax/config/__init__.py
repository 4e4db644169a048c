"""What a run is: what a person writes, what is derived from it, and the methods that are compared."""

from rlx2_jax.config.config import (
    METHOD,
    NEVER,
    PACKED_DEPTH,
    PAPER_STEPS,
    QUICK_TASKS,
    TIMES,
    UNSEEN,
    VALUES,
    Config,
    HParams,
    Schedule,
    make_schedule,
    resolve,
)
from rlx2_jax.config.methods import METHODS
from rlx2_jax.config.registry import AGENTS

__all__ = [
    "AGENTS",
    "METHOD",
    "METHODS",
    "NEVER",
    "PACKED_DEPTH",
    "PAPER_STEPS",
    "QUICK_TASKS",
    "TIMES",
    "UNSEEN",
    "VALUES",
    "Config",
    "HParams",
    "Schedule",
    "make_schedule",
    "resolve",
]
