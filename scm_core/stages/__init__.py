"""Training stages as small LightningModules: an autoencoder, the teacher, then the student."""

from scm_core.stages.autoencoding import Autoencoding
from scm_core.stages.student import Student
from scm_core.stages.teacher import Teacher

__all__ = ["Autoencoding", "Student", "Teacher"]
