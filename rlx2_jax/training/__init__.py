"""Training: the compiled program of a run, the host loop around it, and behaviour cloning."""

from rlx2_jax.training.cloning import Clone, clone
from rlx2_jax.training.programs import Program, make_program, make_train
from rlx2_jax.training.run import Result, train

__all__ = ["Clone", "Program", "Result", "clone", "make_program", "make_train", "train"]
