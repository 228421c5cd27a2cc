"""Technical batches of simulated studies: which observation falls into which, and what they do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BatchEffects(NamedTuple):
    r"""Effects of T technical batches on the log means of counts.

    .. math:: c_{t_i} v_j + b_{t_i j}, \qquad c_i \sim N(\gamma_{t_i}, \tau^2)

    Attributes
    ----------
    centre
        Mean activity of the batch factor in each batch, :math:`\gamma`, (T,).
    spread
        Standard deviation of the activity within a batch, :math:`\tau`.
    loadings
        Amplitudes of the batch factor, v, (G,); zero outside its support.
    shift
        Shifts of single features in single batches, b, (T, G).
    confounded
        How far the batch follows the study, from 0 to 1.
    """

    centre: Tensor
    spread: float
    loadings: Tensor
    shift: Tensor
    confounded: float

    def assign(self, sizes: tuple[int, ...], source: torch.Generator) -> Tensor:
        """Batches of the observations of studies of the given sizes, (N,), int64.

        The home batch of a study gets the share ``confounded`` of its observations, the rest is
        spread over all batches as evenly as can be; who is where is random.
        """
        n_batches, found = len(self.centre), []
        for m, size in enumerate(sizes):
            n_home = round(self.confounded * size)
            spread = (m + torch.arange(size - n_home)) % n_batches
            batch = torch.cat([torch.full((n_home,), m % n_batches), spread])
            found.append(batch[torch.randperm(size, generator=source)])
        return torch.cat(found)

    def activity(self, batch: Tensor, source: torch.Generator) -> Tensor:
        """Activities of the batch factor in observations of the given batches, (N,)."""
        return self.centre[batch] + self.spread * torch.randn(len(batch), generator=source)

    def predictor(self, batch: Tensor, activity: Tensor) -> Tensor:
        """What the batches add to the log means, (N, G)."""
        return activity.outer(self.loadings) + self.shift[batch]


def batch_centres(n_batches: int) -> Tensor:
    """Equally spaced numbers with mean 0 and variance 1, (T,)."""
    centre = torch.linspace(-1, 1, n_batches)
    return centre / centre.square().mean().sqrt()
