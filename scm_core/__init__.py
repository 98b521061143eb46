"""Continuous-time consistency models (sCM, arXiv 2410.11081) for any kind of media."""

import getpass
import os

from scm_core.base.errors import UserError
from scm_core.method.trigflow import TrigFlow

__version__ = "0.1.0"
__all__ = ["TrigFlow", "UserError"]

try:
    getpass.getuser()
except (KeyError, OSError):  # a user without a name, for which parts of torch ask
    os.environ["LOGNAME"] = str(os.getuid())
