"""The paper's tables and figures as studies: which runs they are, what was recorded of them, and what that says."""

from paper.registry import STUDIES, Arm, Run, Study, runs

__all__ = ["STUDIES", "Arm", "Run", "Study", "runs"]
