"""Warnings of the checks: the numbers are right, what they may be taken for is not."""

from __future__ import annotations


class CriticismWarning(UserWarning):
    """A check ran, but its p-value is not uniform under a correct model."""


class RegimeWarning(CriticismWarning):
    """A realised discrepancy was used outside the regime in which it is calibrated."""


class PointEstimateWarning(CriticismWarning):
    """The replicates lack the uncertainty of global parameters that were point-estimated."""


class HeldoutSizeWarning(PointEstimateWarning):
    """Globals were point-estimated and the held-out set exceeds a tenth of the observed set."""


class LocalDoubleUseWarning(CriticismWarning):
    """The replicate's local latents were inferred from the rows it is compared with."""
