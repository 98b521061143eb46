"""Continuous-time consistency models (sCM, arXiv 2410.11081) for any kind of media."""

from scm_core.errors import UserError
from scm_core.trigflow import TrigFlow

__version__ = "0.1.0"
__all__ = ["TrigFlow", "UserError"]
