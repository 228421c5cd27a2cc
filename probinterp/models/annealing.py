"""Quantities that change over the course of a fit."""

MIN_KL_WEIGHT = 1e-4


def warmup(progress: float, share: float) -> float:
    """KL weight that grows linearly to 1 over the first ``share`` of the steps.

    It starts just above 0, because a scale of exactly 0 is not a valid one in Pyro.
    """
    return 1.0 if progress >= share else max(progress / share, MIN_KL_WEIGHT)


def require_share(**shares: float | None) -> None:
    """Raise ``ValueError`` unless every share of the steps lies in [0, 1]; None is skipped."""
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{name} must be a share of the steps in [0, 1], got {share}.")
