"""Training stages as small LightningModules: an autoencoder, the teacher, then the student."""

from scm_core.engine.stages.autoencoding import Autoencoding
from scm_core.engine.stages.student import Student
from scm_core.engine.stages.teacher import Teacher

__all__ = ["Autoencoding", "Student", "Teacher"]
