"""The paper's tables and figures as studies: which runs they are, what was recorded of them, and what that says."""

from paper.plan import runs
from paper.registry import STUDIES
from paper.study import Arm, Run, Study

__all__ = ["STUDIES", "Arm", "Run", "Study", "runs"]
