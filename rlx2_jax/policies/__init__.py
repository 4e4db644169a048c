"""What leaves a run: policies, and the masks that it began and ended with, as files that load on their own."""

from rlx2_jax.policies.policy import FILES, KINDS, NAME, Policy, check, describe, load, locate, save

__all__ = ["FILES", "KINDS", "NAME", "Policy", "check", "describe", "load", "locate", "save"]
