"""How far generated samples are from real ones, in the features of any extractor."""

from scm_core.evaluation.metrics.frechet import frechet_distance
from scm_core.evaluation.metrics.kernel import kernel_distance
from scm_core.evaluation.metrics.precision_recall import precision_recall

__all__ = ["frechet_distance", "kernel_distance", "precision_recall"]
