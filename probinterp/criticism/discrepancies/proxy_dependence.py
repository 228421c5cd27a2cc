"""What the residuals of a proxy should not share: other layers, neighbouring patches."""

from __future__ import annotations

import torch
from torch import Tensor

from probinterp.criticism.discrepancies.token_cells import CellDiscrepancy
from probinterp.criticism.token_layout import PATCH, TokenLayout
from probinterp.criticism.token_residuals import TokenResiduals


class LayerCorrelation(CellDiscrepancy):
    r"""Correlation of the residuals of different layers: catches errors that cascade.

    .. math:: d = \Big( \sum_{l \ne l'} \rho_{ll'}^2 \Big)^{1/2}, \qquad
        \rho_{ll'} = \frac{\sum_{tc} e_{tlc} e_{tl'c}}
        {(\sum_{tc} e_{tlc}^2 \sum_{tc} e_{tl'c}^2)^{1/2}}

    The Frobenius norm of the off-diagonal of the matrix of correlations between layers, one value
    per token type. All layers write into the same channels of the residual stream, where errors of
    one sign add up over depth. Correlations are about zero, the mean that the model claims: a bias
    that layers share counts as well.

    Parameters
    ----------
    layout
        How the tokens make up images; at least two layers.

    Raises
    ------
    ValueError
        If there is a single layer.
    """

    def __init__(self, layout: TokenLayout) -> None:
        if layout.n_layers < 2:
            raise ValueError("a correlation between layers needs at least 2 layers, got 1.")
        super().__init__(layout, "layer_correlation", layerwise=False)

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Products of layers, summed over tokens and channels: (I, 1, L * L)."""
        e = tokens.standardised.transpose(1, 2).flatten(2)  # (I, L, T D)
        return (e @ e.mT).flatten(1).unsqueeze(1)

    def pool(self, summary: Tensor) -> Tensor:
        """Norm for all images."""
        return self.each(summary.sum(0, keepdim=True)).squeeze(0)

    def each(self, summary: Tensor) -> Tensor:
        """Norm for every image."""
        n_layers = self.layout.n_layers
        products = summary.squeeze(1).unflatten(1, (n_layers, n_layers))
        size = products.diagonal(dim1=1, dim2=2).sqrt()
        scale = size.unsqueeze(1) * size.unsqueeze(2)
        correlation = torch.where(scale == 0, 0.0, products / scale)
        off_diagonal = ~torch.eye(n_layers, dtype=torch.bool, device=summary.device)
        return (correlation.square() * off_diagonal).sum((1, 2)).sqrt().unsqueeze(1)


class MoranI(CellDiscrepancy):
    r"""Moran's I of the residuals on the patch grid: spatial structure that the codes miss.

    .. math:: I = \frac{P}{\sum_{tt'} w_{tt'}} \frac{\sum_{tt'} w_{tt'}
        \langle r_t - \bar r, r_{t'} - \bar r \rangle}{\sum_t \lVert r_t - \bar r \rVert^2}

    with P patches, :math:`w = 1` for the four neighbours and :math:`\bar r` the mean over the
    patches of the image. Without structure the mean is :math:`-1 / (P - 1)`. The value of all
    images together is their mean; constant residuals count as 0.

    Parameters
    ----------
    layout
        How the tokens make up images, with a ``grid`` of at least two patches.

    Raises
    ------
    ValueError
        If the layout has no grid, or one of a single patch.

    References
    ----------
    Notes on continuous stochastic phenomena (Moran, 1950).
    """

    def __init__(self, layout: TokenLayout) -> None:
        if layout.grid is None or layout.grid[0] * layout.grid[1] < 2:
            raise ValueError(
                f"Moran's I needs a layout with a grid of at least 2 patches, got {layout.grid}."
            )
        super().__init__(layout, "moran_i", types=(PATCH,))
        self.grid = layout.grid

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Moran's I of every image."""
        n_rows, n_columns = self.grid
        r = tokens.residual - tokens.residual.mean(1, keepdim=True)
        on_grid = r.unflatten(1, self.grid)  # (I, rows, columns, L, D)
        products = (on_grid[:, 1:] * on_grid[:, :-1]).sum((1, 2, 4))
        products = products + (on_grid[:, :, 1:] * on_grid[:, :, :-1]).sum((1, 2, 4))
        squares = r.square().sum((1, 3))
        # neighbours in both directions count in the sum of the products and in that of the weights
        n_pairs = n_rows * (n_columns - 1) + n_columns * (n_rows - 1)
        value = n_rows * n_columns / n_pairs * products / squares
        return torch.where(squares == 0, 0.0, value).unsqueeze(-1)

    def pool(self, summary: Tensor) -> Tensor:
        """Mean over images."""
        return summary.mean(0).squeeze(-1)

    def each(self, summary: Tensor) -> Tensor:
        """Moran's I of every image."""
        return summary.squeeze(-1)
