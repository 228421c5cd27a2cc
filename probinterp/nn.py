"""Networks: multilayer perceptrons and the sparse decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.nn.functional import normalize

from probinterp.feature_plan import FeaturePlan, all_features_plan, plan_features
from probinterp.likelihoods import Likelihood, ObservedBatch
from probinterp.sparse_decoding import (
    DecoderWeights,
    Inputs,
    Schedule,
    decode,
    decoded_log_prob,
)

CHUNK_BYTES = 3 * 2**19  # one activation of a chunk, for each thread; fastest of 0.5 to 16 MiB
CHUNK_BYTES_ON_GPU = 2**26


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Stack of linear layers with ReLU between them and none after the last.

    Parameters
    ----------
    sizes
        Widths of the input, the hidden layers and the output: at least two.

    Raises
    ------
    ValueError
        If there are fewer than two widths.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes must hold the input and output width, got {list(sizes)}.")
    layers: list[nn.Module] = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SparseDecoder(nn.Module):
    r"""One trunk for all features; each feature sees the factors through its loadings.

    .. math:: \eta_{bj} = h_j \cdot \mathrm{relu}(M\,\mathrm{relu}(A (w_j \odot z_b)) + m) + c_j

    Features are evaluated in chunks whose activations fit the cache and are not kept: the
    backward pass computes them again (:meth:`forward`), or the loss and its gradients are
    computed together, chunk by chunk (:meth:`observe`). Both are exact.

    Features that one factor reaches are piecewise linear in :math:`w_{jk} z_{bk}` and are computed
    without the H x H product, exactly too, if exact zeros of the loadings are known to
    be structural: pass ``support``, or loadings without gradient (on a CPU; on a GPU looking for
    zeros would make the host wait).

    Under ``torch.autocast`` the H x H products alone are rounded, to its type: with bfloat16 the
    gradients of z, loadings and trunk are off by 1-3 %, those of heads and likelihood by 0.2 %.

    Parameters
    ----------
    n_features
        Number of features, G.
    n_factors
        Number of factors, K.
    n_hidden
        Width of both hidden layers, H; multiples of 16 are fastest.
    unit_norm
        Keep columns of A and rows of M at unit norm, by dividing by the norm. Otherwise the scale
        of the loadings is arbitrary and a penalty on them means nothing.
    chunk_size
        Features evaluated at a time in each of up to 8 threads. Default: an activation of 1.5 MiB,
        64 MiB on a GPU.

    References
    ----------
    Identifiable Deep Generative Models via Sparse Decoding (Moran et al., 2022), section 3; the
    unit norms are ours.
    """

    def __init__(
        self,
        n_features: int,
        n_factors: int,
        n_hidden: int,
        *,
        unit_norm: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be positive, got {chunk_size}.")
        self.n_features, self.n_factors, self.n_hidden = n_features, n_factors, n_hidden
        self.unit_norm, self.chunk_size = unit_norm, chunk_size
        self.first_direction = nn.Parameter(torch.empty(n_hidden, n_factors))
        self.second_direction = nn.Parameter(torch.empty(n_hidden, n_hidden))
        self.second_bias = nn.Parameter(torch.empty(n_hidden))
        self.heads = nn.Parameter(torch.empty(n_features, n_hidden))
        self.bias = nn.Parameter(torch.empty(n_features))
        self._latest_plan: tuple[Tensor, int, FeaturePlan] | None = None
        nn.init.uniform_(self.first_direction, -1 / math.sqrt(n_factors), 1 / math.sqrt(n_factors))
        for parameter in (self.second_direction, self.second_bias, self.heads, self.bias):
            nn.init.uniform_(parameter, -1 / math.sqrt(n_hidden), 1 / math.sqrt(n_hidden))

    @property
    def first(self) -> Tensor:
        """First layer A, shape (H, K)."""
        return normalize(self.first_direction, dim=0) if self.unit_norm else self.first_direction

    @property
    def second(self) -> Tensor:
        """Second layer M, shape (H, H)."""
        return normalize(self.second_direction, dim=1) if self.unit_norm else self.second_direction

    def forward(self, z: Tensor, loadings: Tensor, support: Tensor | None = None) -> Tensor:
        """Decode all features.

        Parameters
        ----------
        z
            Factors, shape (..., B, K).
        loadings
            Loadings W, shape (G, K).
        support
            Boolean (G, K), or None: only these loadings are used, and only they get gradients.

        Returns
        -------
        Tensor
            eta, shape (..., B, G).
        """
        inputs, plan = self._prepare(z.flatten(0, -2), loadings, support)
        return decode(inputs, self._schedule(inputs, plan)).unflatten(0, z.shape[:-1])

    def observe(
        self,
        z: Tensor,
        loadings: Tensor,
        likelihood: Likelihood,
        batch: ObservedBatch,
        support: Tensor | None = None,
    ) -> TorchDistribution:
        """Distribution of the features given the factors.

        Parameters
        ----------
        z
            Factors, shape (..., B, K).
        loadings
            Loadings W, shape (G, K).
        likelihood
            Distribution of the features given eta.
        batch
            The batch, for the covariates that the likelihood asks for.
        support
            As in :meth:`forward`.

        Returns
        -------
        TorchDistribution
            With batch shape (..., B) and event shape (G,). If the likelihood is separable and z
            is (B, K), ``log_prob`` streams the loss and its gradients.
        """
        if not likelihood.separable or z.dim() != 2:
            return likelihood(self(z, loadings, support), batch)
        return DecodedObservations(self, z, loadings, likelihood, batch, support)

    def log_prob(
        self,
        z: Tensor,
        loadings: Tensor,
        likelihood: Likelihood,
        batch: ObservedBatch,
        x: Tensor,
        support: Tensor | None = None,
    ) -> Tensor:
        """Log likelihood (B,) of x (B, G) given z (B, K), streamed; see :meth:`observe`."""
        inputs, plan = self._prepare(z, loadings, support)
        return decoded_log_prob(inputs, self._schedule(inputs, plan), likelihood, batch, x)

    def _prepare(
        self, z: Tensor, loadings: Tensor, support: Tensor | None
    ) -> tuple[Inputs, FeaturePlan]:
        shape = (self.n_features, self.n_factors)
        if loadings.shape != shape:
            raise ValueError(f"loadings must be (G, K) = {shape}, got {tuple(loadings.shape)}.")
        if z.shape[-1] != self.n_factors:
            raise ValueError(f"z must have {self.n_factors} factors, got {tuple(z.shape)}.")
        plan = self._plan(loadings, support)
        if support is not None:
            loadings = loadings * support
        dtype = self.heads.dtype
        weights = DecoderWeights(self.first, self.second, self.second_bias, self.heads, self.bias)
        return Inputs(z.to(dtype), loadings.to(dtype), weights), plan

    def _plan(self, loadings: Tensor, support: Tensor | None) -> FeaturePlan:
        if support is None:
            fixed = not (loadings.requires_grad and torch.is_grad_enabled())
            if fixed and not loadings.is_cuda:
                return plan_features(loadings != 0)
            return all_features_plan(self.n_features)
        if support.shape != loadings.shape or support.dtype != torch.bool:
            raise ValueError(
                f"support must be boolean with shape {tuple(loadings.shape)}, "
                f"got {support.dtype} with shape {tuple(support.shape)}."
            )
        if self._latest_plan is not None:
            planned, version, plan = self._latest_plan
            if planned is support and version == support._version:
                return plan
        plan = plan_features(support)
        self._latest_plan = (support, support._version, plan)
        return plan

    def _schedule(self, inputs: Inputs, plan: FeaturePlan) -> Schedule:
        device = inputs.z.device.type
        rounded = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if rounded else None
        if self.chunk_size is not None:
            return Schedule(plan, min(self.chunk_size, self.n_features), dtype, fixed=True)
        n_bytes = CHUNK_BYTES_ON_GPU if inputs.z.is_cuda else CHUNK_BYTES
        per_feature = max(1, len(inputs.z)) * self.n_hidden * inputs.z.element_size()
        return Schedule(plan, min(max(1, n_bytes // per_feature), self.n_features), dtype)


class DecodedObservations(TorchDistribution):
    """Features given the factors, with a log probability that never holds all of eta.

    Parameters
    ----------
    decoder
        The decoder.
    z
        Factors, shape (B, K).
    loadings
        Loadings W, shape (G, K).
    likelihood
        A separable likelihood.
    batch
        The batch, for the covariates that the likelihood asks for.
    support
        As in :meth:`SparseDecoder.forward`.
    validate_args
        As in ``torch.distributions``.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        decoder: SparseDecoder,
        z: Tensor,
        loadings: Tensor,
        likelihood: Likelihood,
        batch: ObservedBatch,
        support: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.decoder, self.z, self.loadings = decoder, z, loadings
        self.likelihood, self.batch, self.loadings_support = likelihood, batch, support
        super().__init__(z.shape[:-1], loadings.shape[:1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Where observations may lie."""
        return self.likelihood.support

    @property
    def decoded(self) -> TorchDistribution:
        """The same distribution with eta computed for all features."""
        eta = self.decoder(self.z, self.loadings, self.loadings_support)
        return self.likelihood(eta, self.batch)

    @property
    def mean(self) -> Tensor:
        """Mean, shape (B, G)."""
        return self.decoded.mean

    @property
    def variance(self) -> Tensor:
        """Variance, shape (B, G)."""
        return self.decoded.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> TorchDistribution:
        """Return itself for its own batch shape, else the decoded distribution, expanded."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return self.decoded.expand(torch.Size(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw features, shape ``sample_shape`` + (B, G)."""
        return self.decoded.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of ``value`` (B, G), shape (B,)."""
        if self._validate_args:
            self._validate_sample(value)
        if value.shape != self.batch_shape + self.event_shape:
            return self.decoded.log_prob(value)
        return self.decoder.log_prob(
            self.z, self.loadings, self.likelihood, self.batch, value, self.loadings_support
        )
