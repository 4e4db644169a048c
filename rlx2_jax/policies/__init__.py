"""What leaves a run: policies, and its masks at both ends and over training, as files that load on their own."""

from rlx2_jax.policies.policy import FILES, KINDS, NAME, Policy, check, describe, load, locate, save, trained_for

__all__ = ["FILES", "KINDS", "NAME", "Policy", "check", "describe", "load", "locate", "save", "trained_for"]
