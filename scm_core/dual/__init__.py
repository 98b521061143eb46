"""One pass that gives F with its graph and the tangent dF/dt without one."""

from scm_core.dual import attention, elementwise, in_place, linear, methods, norms  # noqa: F401
from scm_core.dual.core import Dual, DualError, jvp, rule
from scm_core.dual.difference import difference
from scm_core.dual.fallback import fallbacks
from scm_core.dual.verification import Report, verify

__all__ = ["Dual", "DualError", "Report", "difference", "fallbacks", "jvp", "rule", "verify"]
