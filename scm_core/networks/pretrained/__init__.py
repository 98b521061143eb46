"""Networks of the library diffusers as backbones: a teacher that somebody else has trained."""

from scm_core.networks.pretrained.adapter import Adapter
from scm_core.networks.pretrained.families import FAMILIES
from scm_core.networks.pretrained.folder import Pipeline

__all__ = ["FAMILIES", "Adapter", "Pipeline"]
