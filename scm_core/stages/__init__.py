"""Training stages as small LightningModules: the teacher, then the student."""

from scm_core.stages.student import Student
from scm_core.stages.teacher import Teacher

__all__ = ["Student", "Teacher"]
