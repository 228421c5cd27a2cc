import pytest
import torch
from torch.distributions import MultivariateNormal

from probinterp.criticism import (
    HeldoutSizeWarning,
    TokenLayout,
    check_proxy,
    fit_residual_model,
    residual_draws,
)


def layout_of(n_images, n_patches=3, n_layers=2):
    kind = torch.tensor([0] + [1] * n_patches).repeat(n_images)
    return TokenLayout(torch.arange(n_images).repeat_interleave(1 + n_patches), kind, n_layers)


@pytest.fixture
def residuals():
    torch.manual_seed(0)
    mixing = torch.randn(2, 3, 3, dtype=torch.float64)
    r = torch.einsum("nld,lde->nle", torch.randn(80, 2, 3, dtype=torch.float64), mixing)
    return r + 0.2  # a proxy may be biased: the covariance is about zero


def test_reference_has_the_second_moment_of_the_calibration_residuals(residuals):
    layout = layout_of(20)
    model = fit_residual_model(residuals, layout)
    prediction = torch.randn(80, 2, 3, dtype=torch.float64)
    law = residual_draws(prediction, layout, model).reference.likelihood(prediction)
    x = prediction + torch.randn(80, 2, 3, dtype=torch.float64)
    expected = torch.zeros(80, dtype=torch.float64)
    for layer in range(2):
        sigma = residuals[:, layer].T @ residuals[:, layer] / 80
        mvn = MultivariateNormal(prediction[:, layer], sigma)
        expected += mvn.log_prob(x[:, layer])
        assert torch.allclose(law.variance[:, layer], mvn.variance)
    assert torch.allclose(law.log_prob(x), expected, rtol=1e-10)
    assert torch.equal(law.mean, prediction)


def test_diagonal_covariance_is_that_of_independent_normals(residuals):
    layout = layout_of(20)
    model = fit_residual_model(residuals, layout, covariance="diagonal")
    zero = torch.zeros(80, 2, 3, dtype=torch.float64)
    law = residual_draws(zero, layout, model).reference.likelihood(zero)
    expected = torch.distributions.Normal(0, residuals.square().mean(0).sqrt())
    assert torch.allclose(law.log_prob(residuals), expected.log_prob(residuals).sum((1, 2)))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_replicates_have_the_moments_of_the_model(residuals, covariance):
    """80,000 residuals of fixed scale: relative standard error of a moment about .006."""
    model = fit_residual_model(residuals, layout_of(20), covariance=covariance)
    layout = layout_of(1000)
    prediction = torch.randn(4000, 2, 3, dtype=torch.float64)
    draws = residual_draws(prediction, layout, model, 20, seed=1, fixed=True)
    r = torch.cat([draw.replicate() - prediction for draw in draws])
    for layer in range(2):
        sigma = residuals[:, layer].T @ residuals[:, layer] / 80
        if covariance == "diagonal":
            sigma = sigma.diagonal().diag()
        found = r[:, layer].T @ r[:, layer] / len(r)
        size = sigma.diagonal().sqrt()
        assert ((found - sigma).abs() / (size[:, None] * size)).amax() < 0.03
    across = (r[:, 0].T @ r[:, 1] / len(r)).abs().amax() / r.square().mean()
    assert across < 0.03


def test_scales_vary_like_the_mean_over_images(residuals):
    """Variance of the weighted mean: unbiased variance of the images over their number."""
    layout = layout_of(20)
    model = fit_residual_model(residuals, layout)
    zero = torch.zeros_like(residuals)
    draws = residual_draws(zero, layout, model, 4000, seed=2)
    variances = torch.stack([d.likelihood(zero).variance[0] for d in draws])
    by_image = residuals.unflatten(0, (20, 4)).square().mean(1)
    assert torch.allclose(variances.mean(0), by_image.mean(0), rtol=0.03)
    expected = (by_image.var(0) / 20).sqrt()
    assert torch.allclose(variances.std(0), expected, rtol=0.06)
    # one set of weights for all layers and channels: they vary together
    assert torch.corrcoef(variances.flatten(1).T)[0, 1] == pytest.approx(
        torch.corrcoef(by_image.flatten(1).T)[0, 1].item(), abs=0.06
    )


def test_scales_by_token_type(residuals):
    layout = layout_of(20)
    r = residuals.clone()
    r[layout.token_type == 0] *= 10
    model = fit_residual_model(r, layout, by_type=True)
    zero = torch.zeros_like(r)
    law = residual_draws(zero, layout, model).reference.likelihood(zero)
    for kind in (0, 1):
        rows = layout.token_type == kind
        want = r[rows].square().mean(0).expand_as(r[rows])
        assert torch.allclose(law.variance[rows], want)
    patches = TokenLayout(torch.arange(6), torch.ones(6, dtype=torch.int64), 2)
    law = residual_draws(zero[:6], patches, model).reference.likelihood(zero[:6])
    assert torch.allclose(law.variance[0], r[layout.token_type == 1].square().mean(0))


def test_same_seed_same_draws_and_global_generator_left_alone(residuals):
    layout = layout_of(20)
    model = fit_residual_model(residuals, layout)
    state = torch.random.get_rng_state()
    first, second, other = (
        residual_draws(torch.zeros_like(residuals), layout, model, 3, seed=s) for s in (4, 4, 5)
    )
    a, b, c = ([d.replicate() for d in draws] for draws in (first, second, other))
    assert all(map(torch.equal, a, b))
    assert not torch.equal(a[0], c[0])
    assert not torch.equal(a[0], a[1])
    assert all(map(torch.equal, a, (d.replicate() for d in first)))
    draw = next(iter(first))
    assert not torch.equal(draw.replicate(), draw.replicate())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fixed_scales_are_reported_as_point_estimates(residuals):
    layout = layout_of(20)
    model = fit_residual_model(residuals, layout)
    zero = torch.zeros_like(residuals)
    draws = residual_draws(zero, layout, model, 20, fixed=True)
    assert len({d.likelihood(zero).variance[0, 0, 0].item() for d in draws}) == 1
    with pytest.warns(HeldoutSizeWarning, match="n_new = 20 and n_obs = 20"):
        assert not check_proxy(draws, residuals, layout).calibrated
    assert check_proxy(residual_draws(zero, layout, model, 20), residuals, layout).calibrated


def test_a_channel_that_is_predicted_exactly_stays_exact(residuals):
    residuals[:, 1, 2] = 0
    layout = layout_of(20)
    model = fit_residual_model(residuals, layout)
    prediction = torch.randn_like(residuals)
    draw = next(iter(residual_draws(prediction, layout, model)))
    replicate = draw.replicate()
    assert torch.equal(replicate[:, 1, 2], prediction[:, 1, 2])
    assert (replicate[:, 1, 1] != prediction[:, 1, 1]).all()


REFUSED = {
    "shape": (
        lambda r, la: fit_residual_model(r[:, :1], la),
        r"shape \(N, 2, D\), got \(80, 1, 3\)",
    ),
    "covariance": (
        lambda r, la: fit_residual_model(r, la, covariance="low rank"),
        '"full" or "diagonal", got \'low rank\'',
    ),
    "one image": (lambda r, la: fit_residual_model(r[:4], layout_of(1)), "at least 3 calibration"),
    "few tokens": (
        lambda r, la: fit_residual_model(torch.randn(12, 2, 13), layout_of(3)),
        "more than 13 calibration tokens, got 12",
    ),
    "dependent": (
        lambda r, la: fit_residual_model(r[..., :1].expand(80, 2, 3) + 0, la),
        "linearly dependent",
    ),
    "prediction": (
        lambda r, la: residual_draws(r[:, :, :2], la, fit_residual_model(r, la)),
        r"shape \(80, 2, 3\) .* got \(80, 2, 2\)",
    ),
    "draws": (
        lambda r, la: residual_draws(r, la, fit_residual_model(r, la), 0),
        "positive integer, got 0",
    ),
    "types": (
        lambda r, la: residual_draws(
            r,
            TokenLayout(torch.arange(80), torch.full((80,), 2), 2),
            fit_residual_model(r, la, by_type=True),
        ),
        r"knows the token types \(0, 1\), the layout has \(2,\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, residuals):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make(residuals, layout_of(20))
