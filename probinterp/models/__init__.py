"""Models: one paper section per file."""

from probinterp.models.base import Batch, ProbabilisticModel

__all__ = ["Batch", "ProbabilisticModel"]
