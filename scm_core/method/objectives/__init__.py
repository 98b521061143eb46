"""What a network learns from, one file an objective: a loss, its own parameters, its options."""

from scm_core.method.objectives.base import Objective, Student

__all__ = ["Objective", "Student"]
