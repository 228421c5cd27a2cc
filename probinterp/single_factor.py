"""Exact short cuts of the sparse decoder for features that one factor reaches, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from probinterp.likelihoods import Features
    from probinterp.sparse_decoding import Inputs

NEVER = 1e30  # no code gets there: units that switch beyond are treated as never switching


class SingleFactorFeatures:
    r"""Features of one factor k: piecewise linear functions of s = w_jk z_bk.

    The first layer has no bias, so :math:`M\,\mathrm{relu}(A (w \odot z)) = |s| P_\pm` with
    :math:`P_\pm = M\,\mathrm{relu}(\pm A_k)` according to the sign of s, and
    :math:`\eta = h \cdot \mathrm{relu}(|s| P_\pm + m) + c`. All features of the factor share the
    2H + 2 knots of this function; between two knots it is ``slope * s + offset``, with tables of
    both that are products of the heads with the active units. A pair of observation and feature
    costs a binary search instead of the H x H product.
    """

    def __init__(self, inputs: Inputs, gradients: Inputs, factor: int) -> None:
        self.inputs, self.gradients, self.factor = inputs, gradients, factor
        weights = inputs.weights
        column = weights.first[:, factor]
        self.first = torch.stack([column.relu(), (-column).relu()])  # (2, H)
        plus, minus = self.first @ weights.second.mT
        bias = weights.second_bias
        crossings = -bias / torch.stack([plus, minus])
        crossings = torch.where((crossings > 0) & (crossings < NEVER), crossings, 0.0)
        crossings[1].neg_()
        tiny = torch.finfo(bias.dtype).tiny
        # Only s = 0 falls between -tiny and 0; its slope is 0, as the derivative of relu at 0.
        self.knots = torch.cat([crossings.flatten(), bias.new_tensor([-tiny, 0.0])]).sort().values
        ends = self.knots[[0, -1]] + bias.new_tensor([-1.0, 1.0])
        inside = torch.cat([ends[:1], (self.knots[1:] + self.knots[:-1]) / 2, ends[1:]])
        inside = inside.unsqueeze(-1)
        self.positive, away = inside > 0, inside.abs() > tiny
        slopes = torch.where(self.positive, plus, -minus) * away
        self.active = (inside * slopes + bias > 0).to(bias.dtype)  # (2H + 3, H)
        self.slopes = self.active * slopes
        self.offsets = self.active * bias
        self.d_slopes, self.d_offsets = torch.zeros(2, *self.active.shape).to(self.active)

    def forward(self, features: Features) -> Tensor:
        """Return eta, shape (G', B)."""
        self.features = features
        z, loadings, weights = self.inputs
        self.head, self.row = weights.heads[features], loadings[features, self.factor].unsqueeze(1)
        self.s = self.row * z[:, self.factor]
        self.interval = torch.bucketize(self.s, self.knots)
        self.slope = (self.head @ self.slopes.mT).gather(1, self.interval)
        offset = torch.addmm(weights.bias[features].unsqueeze(1), self.head, self.offsets.mT)
        return offset.gather(1, self.interval).addcmul_(self.slope, self.s)

    def backward(self, d_eta: Tensor) -> None:
        """Add the gradients for ``d_eta`` (G', B)."""
        grads, features = self.gradients, self.features
        tables = d_eta.new_zeros(2, len(self.head), len(self.slopes))
        d_slope = tables[0].scatter_add_(1, self.interval, d_eta * self.s)
        d_offset = tables[1].scatter_add_(1, self.interval, d_eta)
        grads.weights.bias[features] = d_eta.sum(1)
        grads.weights.heads[features] = d_slope @ self.slopes + d_offset @ self.offsets
        self.d_slopes.addmm_(d_slope.mT, self.head)
        self.d_offsets.addmm_(d_offset.mT, self.head)
        d_s = d_eta * self.slope
        grads.z[:, self.factor] += (d_s * self.row).sum(0)
        grads.loadings[features, self.factor] = d_s @ self.inputs.z[:, self.factor]

    def finish(self) -> None:
        """Carry the gradients of the tables on to the trunk."""
        weights, grads = self.inputs.weights, self.gradients.weights
        d_slopes = self.d_slopes * self.active
        d_plus = (d_slopes * self.positive).sum(0)
        d_both = torch.stack([d_plus, d_plus - d_slopes.sum(0)])  # of P+ and P-, (2, H)
        grads.second_bias.add_((self.d_offsets * self.active).sum(0))
        grads.second.addmm_(d_both.mT, self.first)
        d_plus, d_minus = (d_both @ weights.second) * (self.first > 0)
        grads.first[:, self.factor] += d_plus - d_minus


class ConstantFeatures:
    """Features that no factor reaches: eta = h . relu(m) + c for every observation."""

    def __init__(self, inputs: Inputs, gradients: Inputs) -> None:
        self.inputs, self.gradients = inputs, gradients

    def forward(self, features: Features) -> Tensor:
        """Return eta, shape (G', B)."""
        self.features = features
        weights = self.inputs.weights
        value = weights.heads[features] @ weights.second_bias.relu() + weights.bias[features]
        return value.unsqueeze(1).expand(-1, len(self.inputs.z))

    def backward(self, d_eta: Tensor) -> None:
        """Add the gradients for ``d_eta`` (G', B)."""
        weights, grads = self.inputs.weights, self.gradients.weights
        total = d_eta.sum(1)
        grads.bias[self.features] = total
        grads.heads[self.features] = total.outer(weights.second_bias.relu())
        d_bias = total @ weights.heads[self.features]
        grads.second_bias.add_(d_bias * (weights.second_bias > 0))
