"""Training: the compiled program of a run, and the host loop around it."""

from rlx2_jax.training.program import Program, make_program, make_train
from rlx2_jax.training.run import Result, train

__all__ = ["Program", "Result", "make_program", "make_train", "train"]
