"""How well a transcoder reconstructs, image by image: intervals need no second pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from probinterp.inference.data import Data, data_of, to_device
from probinterp.models.base import ActivationBatch

Proxy = Callable[[Tensor], Tensor]


@runtime_checkable
class CodedProxy(Protocol):
    """A proxy that has codes."""

    def posterior_codes(self, inputs: Tensor) -> Codes:
        """Codes of inputs (N, L, D)."""

    def decode(self, z: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Outputs (N, L, D) of codes (N, L, H)."""


class Codes(Protocol):
    """What is asked of codes: their mean, inclusion and the sparse code, (N, L, H) each."""

    @property
    def mean(self) -> Tensor:
        """Posterior mean."""

    @property
    def inclusion(self) -> Tensor:
        """Probability that a code is active."""

    def hard(self) -> Tensor:
        """The sparse code."""


class NoisyProxy(Protocol):
    """A proxy whose noise scales can be set."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs (N, L, D) of inputs (N, L, D)."""

    def code_variance(self, inputs: Tensor) -> Tensor | None:
        """Variance of the outputs that uncertain codes make, (N, L, D), or None."""

    def fit_noise(self, mean_square: Tensor) -> None:
        """Set the scales to a variance, (L, D)."""


class ReconstructionStatistics(NamedTuple):
    r"""Sums over the tokens of each image, in double precision.

    Any weighting w of the images, such as that of a bootstrap, gives

    .. math:: \mathrm{NMSE}(w) = \frac{wE}{wQ - \lVert wS \rVert^2 / wn}, \quad
              R^2 = 1 - \mathrm{NMSE}, \quad \cos(w) = \frac{wC}{wn} .

    Attributes
    ----------
    error
        Squared error :math:`E = \sum_t \lVert y_t - \hat y_t \rVert^2`, (I, L).
    squares
        :math:`Q = \sum_t \lVert y_t \rVert^2`, (I, L).
    total
        :math:`S = \sum_t y_t`, (I, L, D).
    cosine
        :math:`C = \sum_t \cos(y_t, \hat y_t)`, (I, L).
    n_tokens
        Tokens n, (I,).
    image
        Index of each image, (I,) int64.
    active
        Active codes of the sparse code, summed over tokens, (I, L); None for a proxy without codes.
    expected
        Sum of the inclusion probabilities, (I, L), or None.
    fired
        Tokens in which each latent is active, (L, H) int64, or None.
    """

    error: Tensor
    squares: Tensor
    total: Tensor
    cosine: Tensor
    n_tokens: Tensor
    image: Tensor
    active: Tensor | None
    expected: Tensor | None
    fired: Tensor | None

    def nmse(self, weights: Tensor | None = None) -> Tensor:
        """Squared error over variance around the layer's mean vector, (L,), or (W, L).

        Parameters
        ----------
        weights
            Weights of the images, (I,) or (W, I); by default one each.
        """
        w = self._weights(weights)
        mean_square = (w @ self.total.flatten(1)).unflatten(-1, self.total.shape[1:]).square()
        explained = mean_square.sum(-1) / (w @ self.n_tokens).unsqueeze(-1)
        return (w @ self.error) / (w @ self.squares - explained)

    def r2(self, weights: Tensor | None = None) -> Tensor:
        """Share of the variance that is explained, all channels pooled, (L,) or (W, L)."""
        return 1 - self.nmse(weights)

    def mean_cosine(self, weights: Tensor | None = None) -> Tensor:
        """Mean cosine between outputs and reconstructions, (L,) or (W, L)."""
        w = self._weights(weights)
        return (w @ self.cosine) / (w @ self.n_tokens).unsqueeze(-1)

    def mse(self, weights: Tensor | None = None) -> Tensor:
        """Mean squared error of an element, (L,) or (W, L)."""
        w = self._weights(weights)
        n_elements = self.total.shape[2] * (w @ self.n_tokens).unsqueeze(-1)
        return (w @ self.error) / n_elements

    def l0(self, weights: Tensor | None = None) -> Tensor | None:
        """Active codes a token, (L,) or (W, L)."""
        return self._per_token(self.active, weights)

    def expected_l0(self, weights: Tensor | None = None) -> Tensor | None:
        """Sum of the inclusion probabilities a token, (L,) or (W, L)."""
        return self._per_token(self.expected, weights)

    def unused(self) -> Tensor | None:
        """Share of the latents that are active in no token, (L,)."""
        return None if self.fired is None else (self.fired == 0).double().mean(1)

    def _per_token(self, sums: Tensor | None, weights: Tensor | None) -> Tensor | None:
        if sums is None:
            return None
        w = self._weights(weights)
        return (w @ sums) / (w @ self.n_tokens).unsqueeze(-1)

    def _weights(self, weights: Tensor | None) -> Tensor:
        return torch.ones_like(self.n_tokens) if weights is None else weights.to(self.n_tokens)


@torch.no_grad()
def reconstruction_statistics(
    proxy: Proxy,
    data: Data | ActivationBatch,
    *,
    token_type: int | None = None,
    batch_size: int = 1024,
) -> ReconstructionStatistics:
    """Stream over tokens once and keep what metrics and their intervals need.

    Parameters
    ----------
    proxy
        A transcoder, or any function of the inputs.
    data
        Tokens with the index of their image; without one every token counts as an image.
    token_type
        Count tokens of this type only (0 class, 1 patch, 2 register).
    batch_size
        Tokens at a time.

    Returns
    -------
    ReconstructionStatistics
        On the CPU, images in ascending order.

    Raises
    ------
    ValueError
        If there is no token of the type, or the types are not known.
    """
    images, sums, fired = [], [], []
    for batch in _batches(proxy, data, token_type, batch_size):
        image, values, counts = _sums(proxy, batch)
        images.append(image)
        sums.append(values)
        fired.append(counts)
    if not images:
        raise ValueError(f"there is no token of type {token_type} among the data.")
    known, place = torch.cat(images).unique(return_inverse=True)
    error, squares, total, cosine, n_tokens, *codes = (
        _added(torch.cat(parts), place, len(known)) for parts in zip(*sums, strict=True)
    )
    active, expected = codes if codes else (None, None)
    tokens = torch.stack(fired).sum(0) if codes else None
    return ReconstructionStatistics(
        error, squares, total, cosine, n_tokens, known, active, expected, tokens
    )


@torch.no_grad()
def calibrate_noise(
    transcoder: NoisyProxy, data: Data | ActivationBatch, *, batch_size: int = 1024
) -> None:
    r"""Set the noise scales so that predictions have the residuals of data that trained nothing.

    .. math:: \sigma_l^2 = \overline{(y_l - \hat y_l)^2} - \overline{\mathrm{Var}\, W z}

    for every layer, or channel, as the noise has it. The scales that training leaves behind are too
    small for point codes, because they are those of the training residuals, and too large for
    uncertain ones: the scale that maximises the bound is the expected squared error, which
    contains the variance of the codes, and predictions add that once more.

    Parameters
    ----------
    transcoder
        Fitted transcoder; its noise is changed in place, to next to nothing where the variance of
        the codes alone is larger than the residuals.
    data
        Tokens of images that the fit has not seen.
    batch_size
        Tokens at a time.

    Raises
    ------
    ValueError
        If there are no data.
    """
    squares, spread, n_tokens = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for batch in _batches(transcoder, data, None, batch_size):
        residual = (batch.x - transcoder(batch.inputs)).double()
        squares = residual.square().sum(0) + squares.to(residual)
        variance = transcoder.code_variance(batch.inputs)
        if variance is not None:
            spread = variance.double().sum(0) + spread.to(residual)
        n_tokens += len(residual)
    if not n_tokens:
        raise ValueError("data hold no token.")
    transcoder.fit_noise(((squares - spread.to(squares)) / n_tokens).to(batch.x.dtype))


def _batches(
    proxy: Proxy, data: Data | ActivationBatch, token_type: int | None, batch_size: int
) -> Iterator[ActivationBatch]:
    source = data_of(data) if isinstance(data, ActivationBatch) else data
    device = _device(proxy)
    for index in torch.arange(len(source)).split(batch_size):
        batch = source.batch(index)
        if batch.image is None:
            batch = batch._replace(image=index)
        if token_type is not None:
            if batch.token_type is None:
                raise ValueError(f"token_type {token_type} was asked for, but types are unknown.")
            batch = batch.rows((batch.token_type == token_type).nonzero().flatten())
        if len(batch.x):
            yield to_device(batch, device)


def _sums(proxy: Proxy, batch: ActivationBatch) -> tuple[Tensor, list[Tensor], Tensor]:
    """Images of one batch, their sums, and in how many tokens each latent is active."""
    assert batch.image is not None
    images, place = batch.image.unique(return_inverse=True)
    codes = proxy.posterior_codes(batch.inputs) if isinstance(proxy, CodedProxy) else None
    if codes is None:
        predicted = proxy(batch.inputs)
    else:
        assert isinstance(proxy, CodedProxy)
        predicted = proxy.decode(codes.mean, batch.inputs)
    y, found = batch.x.double(), predicted.double()
    values = [
        (y - found).square().sum(2),
        y.square().sum(2),
        y,
        torch.cosine_similarity(y, found, dim=2),
        torch.ones_like(place, dtype=y.dtype),
    ]
    fired = place.new_zeros(())
    if codes is not None:
        active = codes.hard() != 0
        values += [active.sum(2).double(), codes.inclusion.double().sum(2)]
        fired = active.sum(0)
    sums = [_added(value, place, len(images)).cpu() for value in values]
    return images.cpu(), sums, fired.cpu()


def _added(values: Tensor, place: Tensor, n: int) -> Tensor:
    """Sum of the rows that belong to each of n places."""
    return values.new_zeros(n, *values.shape[1:]).index_add(0, place, values)


def _device(proxy: Proxy) -> torch.device:
    tensors = proxy.state_dict().values() if isinstance(proxy, torch.nn.Module) else ()
    return next((t.device for t in tensors), torch.device("cpu"))
