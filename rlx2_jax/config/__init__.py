"""What a run is: what a person writes, what is derived from it, and the methods that are compared."""

from rlx2_jax.config.config import Config, RunConfig
from rlx2_jax.config.fields import NEVER
from rlx2_jax.config.methods import METHODS, Mechanisms
from rlx2_jax.config.registry import AGENTS
from rlx2_jax.config.resolution import PACKED_DEPTH, PAPER_STEPS, QUICK_TASKS, resolve, written
from rlx2_jax.config.values import (
    METHOD,
    OWN,
    TIMES,
    UNSEEN,
    VALUES,
    HParams,
    Schedule,
    make_schedule,
    traced,
)

__all__ = [
    "AGENTS",
    "METHOD",
    "METHODS",
    "NEVER",
    "OWN",
    "PACKED_DEPTH",
    "PAPER_STEPS",
    "QUICK_TASKS",
    "TIMES",
    "UNSEEN",
    "VALUES",
    "Config",
    "HParams",
    "Mechanisms",
    "RunConfig",
    "Schedule",
    "make_schedule",
    "resolve",
    "traced",
    "written",
]
