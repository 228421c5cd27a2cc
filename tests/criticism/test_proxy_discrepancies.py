"""Each discrepancy of activations against a loop over images, tokens and layers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, TokenLayout, check_proxy, pop_pc
from probinterp.criticism.discrepancies import check_discrepancy, chi_square, reconstruction_error
from probinterp.criticism.discrepancies.proxies import (
    ChiSquare,
    Cosine,
    IntervalCoverage,
    LargestChannel,
    NormQuantile,
    PitDistance,
    ReconstructionError,
)
from probinterp.criticism.discrepancies.proxy_dependence import LayerCorrelation, MoranI
from probinterp.criticism.token_residuals import TokenMoments, TokenResiduals

N_IMAGES, N_LAYERS, WIDTH, GRID = 5, 3, 4, (2, 3)


@pytest.fixture
def case():
    """Tokens in random order over images and types, patches in reading order."""
    generator = np.random.default_rng(3)
    places = [
        (i, kind, t) for i in range(N_IMAGES) for kind, n in ((0, 1), (1, 6)) for t in range(n)
    ]
    order = generator.permutation(len(places))
    ranked = sorted(order, key=lambda k: (places[k][0], places[k][1]))
    slots = {k: j for j, k in enumerate(order)}
    # patches of an image keep their order: sort the slots of each image and type
    places_at = [None] * len(places)
    for i in range(N_IMAGES):
        for kind in (0, 1):
            mine = [k for k in ranked if places[k][:2] == (i, kind)]
            for k, slot in zip(sorted(mine), sorted(slots[k] for k in mine), strict=True):
                places_at[slot] = places[k]
    image = torch.tensor([10 - 2 * p[0] for p in places_at])  # decreasing, with gaps
    kind = torch.tensor([p[1] for p in places_at])
    layout = TokenLayout(image, kind, N_LAYERS, GRID)
    shape = (len(places), N_LAYERS, WIDTH)
    x, mean = torch.from_numpy(generator.normal(size=(2, *shape)))
    variance = torch.from_numpy(generator.gamma(3.0, size=shape))
    law = Independent(Normal(mean, variance.sqrt()), 2)
    draw = FunctionDraw(law.sample, lambda x: law)
    return SimpleNamespace(layout=layout, x=x, mean=mean, variance=variance, draw=draw)


def rows_of(case, kind, images):
    wanted = set(case.layout.images[images].tolist())
    pairs = zip(case.layout.image.tolist(), case.layout.token_type.tolist(), strict=True)
    return [j for j, (i, k) in enumerate(pairs) if i in wanted and k == kind]


def nmse(y, m, v, everything):
    centre = np.mean([y_t for y_t in everything], axis=0)
    error = sum(np.sum((y_t - m_t) ** 2) for y_t, m_t in zip(y, m, strict=True))
    return error / sum(np.sum((y_t - centre) ** 2) for y_t in y)


def norm_quantile(y, m, v, everything):
    return np.quantile([math.sqrt(sum(y_t**2)) for y_t in y], 0.9)


def largest(y, m, v, everything):
    return max(abs(entry) for y_t in y for entry in y_t)


def chi(y, m, v, everything):
    return np.mean([(a - b) ** 2 / c for a, b, c in zip(y.flat, m.flat, v.flat, strict=True)])


def pit(y, m, v, everything):
    u = norm.cdf((y - m) / np.sqrt(v)).ravel()
    return max(abs(np.mean(u < k / 50) - k / 50) for k in range(1, 51))


def covered(y, m, v, everything):
    return np.mean(np.abs(y - m) <= norm.ppf(0.95) * np.sqrt(v))


def cosines(y, m):
    return [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(y, m, strict=True)]


CELLWISE = {
    "nmse": (ReconstructionError, nmse),
    "norm quantile": (lambda layout: NormQuantile(layout, 0.9), norm_quantile),
    "largest channel": (LargestChannel, largest),
    "chi square": (ChiSquare, chi),
    "pit": (PitDistance, pit),
    "coverage": (IntervalCoverage, covered),
    "cosine": (Cosine, lambda y, m, v, e: np.mean(cosines(y, m))),
    "cosine quantile": (
        lambda la: Cosine(la, 0.1),
        lambda y, m, v, e: np.quantile(cosines(y, m), 0.1),
    ),
}


@pytest.mark.parametrize("name", CELLWISE)
def test_cells_equal_a_loop(name, case):
    make, expected = CELLWISE[name]
    found = make(case.layout)
    pooled = check_discrepancy(found, case.x, case.draw)
    moments = TokenMoments(case.layout, case.draw.likelihood(case.x))
    tokens = TokenResiduals(case.layout.by_image(case.x), moments)
    each = found.per_image(found.summary(tokens))
    assert found.labels == case.layout.cells
    assert found.axis == "group"
    arrays = [a.numpy() for a in (case.x, case.mean, case.variance)]
    for c, (kind, layer) in enumerate((k, la) for k in (0, 1) for la in range(N_LAYERS)):
        everything = rows_of(case, kind, slice(None))
        for images in [slice(None), *range(N_IMAGES)]:
            rows = rows_of(
                case, kind, images if images == slice(None) else slice(images, images + 1)
            )
            y, m, v = (a[rows, layer] for a in arrays)
            got = pooled[c] if images == slice(None) else each[images, c]
            want = expected(y, m, v, arrays[0][everything, layer])
            assert got.item() == pytest.approx(want, rel=1e-10, abs=1e-12), (kind, layer, images)


def correlation_norm(case, kind, images):
    rows = rows_of(case, kind, images)
    e = ((case.x - case.mean) / case.variance.sqrt())[rows].numpy()
    total = 0.0
    for a in range(N_LAYERS):
        for b in range(N_LAYERS):
            if a != b:
                p, q = e[:, a].ravel(), e[:, b].ravel()
                total += (p @ q) ** 2 / ((p @ p) * (q @ q))
    return math.sqrt(total)


def test_layer_correlation_equals_a_loop(case):
    found = LayerCorrelation(case.layout)
    pooled = found(case.x, case.draw)
    assert found.labels == ("class", "patch")
    moments = TokenMoments(case.layout, case.draw.likelihood(case.x))
    tokens = TokenResiduals(case.layout.by_image(case.x), moments)
    each = found.per_image(found.summary(tokens))
    for kind in (0, 1):
        assert pooled[kind].item() == pytest.approx(correlation_norm(case, kind, slice(None)))
        for i in range(N_IMAGES):
            want = correlation_norm(case, kind, slice(i, i + 1))
            assert each[i, kind].item() == pytest.approx(want, rel=1e-10)


def morans_i(r):
    """Spec formula, weights by a double loop over patches of a 2 x 3 grid."""
    centred = r - r.mean(0)
    total = weights = 0.0
    for t in range(6):
        for u in range(6):
            if abs(t // 3 - u // 3) + abs(t % 3 - u % 3) == 1:
                weights += 1
                total += centred[t] @ centred[u]
    return 6 / weights * total / np.sum(centred**2)


def test_moran_equals_a_double_loop(case):
    found = MoranI(case.layout)
    assert found.labels == ("layer 0, patch", "layer 1, patch", "layer 2, patch")
    pooled = found(case.x, case.draw)
    r = (case.x - case.mean).numpy()
    for layer in range(N_LAYERS):
        values = [morans_i(r[rows_of(case, 1, slice(i, i + 1)), layer]) for i in range(N_IMAGES)]
        assert pooled[layer].item() == pytest.approx(np.mean(values), rel=1e-12)


def test_moran_of_white_noise_has_its_null_mean():
    """4,000 images: mean -1 / (P - 1), standard error about .002."""
    layout = TokenLayout(
        torch.arange(4000).repeat_interleave(9), torch.ones(36000, dtype=torch.int64), 1, (3, 3)
    )
    law = Independent(Normal(torch.zeros(36000, 1, 2), 1.0), 2)
    draw = FunctionDraw(law.sample, lambda x: law)
    value = MoranI(layout)(torch.randn(36000, 1, 2), draw).item()
    assert value == pytest.approx(-1 / 8, abs=0.008)


def test_values_without_spread_are_zero_or_infinite():
    layout = TokenLayout(torch.arange(4), torch.zeros(4, dtype=torch.int64), 2)
    x = torch.full((4, 2, 3), 1e3)
    exact, wrong = (
        FunctionDraw(lambda: x, lambda x, m=m: Independent(Normal(m, 1.0), 2)) for m in (x, x + 1)
    )
    assert ReconstructionError(layout)(x, exact).tolist() == [0, 0]
    assert ReconstructionError(layout)(x, wrong).tolist() == [math.inf] * 2
    assert LayerCorrelation(layout)(x, exact).tolist() == [0]
    assert Cosine(layout)(torch.zeros_like(x), exact).tolist() == [0, 0]


def test_spread_survives_a_large_common_activation():
    """Float32 activations with a mean 10^3 times their sd; the naive sums lose all digits."""
    layout = TokenLayout(torch.arange(500), torch.zeros(500, dtype=torch.int64), 1)
    x = 1e3 + torch.randn(500, 1, 4)
    law = Independent(Normal(torch.full((500, 1, 4), 1e3), 1.0), 2)
    found = ReconstructionError(layout)(x, FunctionDraw(law.sample, lambda x: law))
    y = x.double()
    want = (y - 1e3).square().sum() / (y - y.mean(0)).square().sum()
    assert found.item() == pytest.approx(want.item(), rel=1e-6)


REFUSED = {
    "no grid": (
        lambda la: MoranI(la),
        "needs a layout with a grid of at least 2 patches, got None",
    ),
    "one layer": (lambda la: LayerCorrelation(la), "needs at least 2 layers, got 1"),
    "level": (lambda la: IntervalCoverage(la, 1.0), "level must lie between 0 and 1, got 1.0"),
    "bins": (lambda la: PitDistance(la, 1), "n_bins must be at least 2, got 1"),
    "quantile": (lambda la: NormQuantile(la, 99), r"probability in \[0, 1\], got 99"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make(TokenLayout(torch.arange(3), torch.zeros(3, dtype=torch.int64), 1))


@pytest.mark.parametrize("function", [chi_square, reconstruction_error])
def test_general_discrepancies_take_layers_as_features(function, case):
    """Units that are arrays: the check is that of the flattened data, bit for bit."""
    flat = Independent(Normal(case.mean.flatten(1), case.variance.sqrt().flatten(1)), 1)
    draws = [case.draw] * 30
    rows = [FunctionDraw(flat.sample, lambda x: flat)] * 30
    arrays = pop_pc(draws, case.x, function, seed=1)
    matrix = pop_pc(rows, case.x.flatten(1), function, seed=1)
    assert torch.allclose(arrays.replicated, matrix.replicated, rtol=1e-12)
    assert arrays.p_value == matrix.p_value
    assert arrays.n_features == N_LAYERS * WIDTH


def test_a_check_of_all_images_is_pop_pc_of_the_discrepancy(case):
    """Summaries of images give what the activations themselves give, on the same replicates."""
    found = LayerCorrelation(case.layout)
    reps = [case.draw.replicate() for _ in range(20)]
    draws = [case.draw, *(FunctionDraw(lambda r=r: r, case.draw.likelihood) for r in reps)]
    plain = pop_pc(draws, case.x, found)
    result = check_proxy(
        draws, case.x, case.layout, make_suite=lambda la: {"d": LayerCorrelation(la)}
    )
    assert torch.allclose(result.pooled["d"].replicated, plain.replicated, rtol=1e-12)
    assert torch.allclose(result.pooled["d"].heldout, plain.heldout, rtol=1e-12)
    assert result.pooled["d"].n_new == N_IMAGES
    assert plain.labels == result.pooled["d"].labels == ("class", "patch")
