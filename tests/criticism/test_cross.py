"""Cross-validated, single and divided split checks on Poisson counts with their exact posterior.

The functions that processes must run are made inside functions, so that they can be sent to them.
"""

import warnings

import joblib
import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Independent, Poisson

from probinterp.criticism import (
    FunctionDraw,
    HeldoutSizeWarning,
    PointEstimateWarning,
    RegimeWarning,
    cross_pop_pc,
    discrepancies,
    divided_check,
    k_fold,
    pop_pc,
    split_check,
    split_rows,
)


def poisson_fit(x, n_draws=39, point_estimate=False):
    """Pois(theta) with Jeffreys' prior, as a fit to the units in ``train``."""

    def fit(train, heldout, seed):
        shape, rate = 0.5 + x[train].sum().item(), float(len(train))
        theta = np.random.default_rng(seed).gamma(shape, 1 / rate, n_draws)

        def draw(value):
            law = Independent(Poisson(torch.full((len(heldout), x.shape[1]), value)), 1)
            return FunctionDraw(law.sample, lambda x: law)

        class Draws(list):
            reference = draw(shape / rate)

        Draws.point_estimate = point_estimate
        return Draws(map(draw, theta.tolist())), x[heldout]

    return fit


@pytest.fixture
def counts():
    return torch.poisson(torch.full((60, 1), 2.0))


def same(first, second):
    return all(
        torch.equal(a.replicated, b.replicated)
        and torch.equal(a.heldout, b.heldout)
        and torch.equal(a.uniform, b.uniform)
        for a, b in zip(first, second, strict=True)
    )


def test_every_unit_is_held_out_once_and_each_fold_is_the_check_of_its_split(counts):
    fit, seen = poisson_fit(counts), []

    def recorded(train, heldout, seed):
        seen.append((train, heldout, seed))
        return fit(train, heldout, seed)

    result = cross_pop_pc(recorded, 60, discrepancies.mean, k=4, seed=5)
    assert sorted(torch.cat([heldout for _, heldout, _ in seen]).tolist()) == list(range(60))
    for fold, split, (train, heldout, seed) in zip(result.folds, result.design, seen, strict=True):
        assert torch.equal(split.train, train)
        assert fold.heldout.item() == pytest.approx(counts[heldout].mean().item())
        draws, x_new = fit(train, heldout, seed)
        alone = pop_pc(draws, x_new, discrepancies.mean, seed=fold.seed, n_obs=len(train))
        assert torch.equal(alone.replicated, fold.replicated)
        assert fold.n_obs == 45
    assert [d.heldout.tolist() for d in result.design] == [
        d.heldout.tolist() for d in k_fold(60, 4, 5)
    ]


def test_folds_are_pooled_by_hand(counts):
    result = cross_pop_pc(poisson_fit(counts), 60, discrepancies.mean, k=3, seed=1)
    p = torch.stack([fold.p_two_sided for fold in result.folds])
    z = torch.stack([fold.z for fold in result.folds])
    assert result.p_two_sided.tolist() == p.tolist()
    assert result.p_pooled.item() == pytest.approx(min(1.0, 2 * p.mean().item()), rel=1e-12)
    assert result.mean_z.item() == pytest.approx(z.mean().item(), rel=1e-12)
    assert result.mean_p.item() == pytest.approx(result.p_randomised.mean().item(), rel=1e-12)
    assert result.p_value.shape == (3,)
    assert result.calibrated
    assert result.notes[0].startswith("The p-values of the folds are dependent")


def test_misfit_in_all_folds_is_found_and_said():
    burst = torch.zeros(60, 2)
    burst[::6, 0] = 12.0
    burst[:, 1] = torch.poisson(torch.full((60,), 2.0))
    result = cross_pop_pc(
        poisson_fit(burst, n_draws=199), 60, discrepancies.feature_variance, k=3, seed=1
    )
    verdict = result.verdict()
    assert verdict.decision == "misfit"
    assert verdict.n_rejected == 1
    assert verdict.effect == pytest.approx(result.mean_z[0].item())
    assert "misfit in 1 of 2 values over 3 folds at a false discovery rate of 0.05" in str(verdict)
    few = cross_pop_pc(poisson_fit(burst), 60, discrepancies.mean, k=3, seed=1).verdict(0.01)
    assert str(few) == (
        "No verdict on mean: 3 folds of 39 draws cannot give a p-value below 0.1, and the level "
        "is 0.01."
    )


def test_verdict_of_a_correct_model(counts):
    result = cross_pop_pc(poisson_fit(counts, 199), 60, discrepancies.mean, k=3, seed=1)
    side = "above" if result.mean_z >= 0 else "below"
    assert str(result.verdict()) == (
        f"mean shows no misfit over 3 folds: the held-out values lie on average "
        f"{abs(result.mean_z.item()):.2g} sd {side} the replicates (twice the average "
        f"two-sided p = {result.p_pooled.item():.2g})."
    )


def test_groups_are_never_divided(counts):
    groups = np.arange(60) // 6
    result = cross_pop_pc(poisson_fit(counts), 60, discrepancies.mean, k=5, groups=groups, seed=0)
    for split in result.design:
        assert not set(groups[split.train]) & set(groups[split.heldout])


def test_single_split_check_is_pop_pc_on_the_split(counts):
    result = split_check(poisson_fit(counts), 60, discrepancies.mean, share=0.25, seed=3)
    split = split_rows(60, 0.25, 3)
    assert result.heldout.item() == pytest.approx(counts[split.heldout].mean().item())
    assert (result.n_new, result.n_obs) == (15, 45)
    labels = np.arange(60) // 20
    grouped = split_check(poisson_fit(counts), 60, discrepancies.mean, groups=labels, seed=3)
    assert grouped.n_new == 40


def test_blocks_are_disjoint_halves(counts):
    result = divided_check(poisson_fit(counts), 60, discrepancies.mean, seed=2)
    assert len(result.blocks) == 7  # 60^.49 = 7.4
    assert result.n_dropped == 60 - 7 * 8
    used = torch.cat([torch.cat([d.train, d.heldout]) for d in result.design])
    assert len(used.unique()) == len(used) == 56
    assert all((d.n_train, d.n_heldout) == (4, 4) for d in result.design)
    distance, p = kstest(result.p_rank.numpy(), "uniform")
    assert result.ks_distance.item() == pytest.approx(distance, rel=1e-12)
    assert result.p_value.item() == pytest.approx(p, rel=1e-12)


def test_blocks_of_groups_hold_whole_groups_out(counts):
    groups = np.arange(60) // 4
    result = divided_check(poisson_fit(counts), 60, discrepancies.mean, groups=groups, seed=2)
    assert len(result.blocks) == 3  # sqrt(15) = 3.9
    for split in result.design:
        assert len(set(groups[split.train])) == 3
        assert len(set(groups[split.heldout])) == 2
        assert not set(groups[split.train]) & set(groups[split.heldout])
    assert result.n_dropped == 0


def test_one_uniformity_test_per_feature():
    x = torch.poisson(torch.full((60, 3), 2.0))
    x[:, 1] = 2.0  # under-dispersed: p-values far from uniform
    fit = poisson_fit(x, n_draws=99)
    result = divided_check(fit, 60, discrepancies.feature_variance, n_blocks=10, seed=2)
    assert result.p_value.shape == (3,)
    assert result.p_value[1] < 1e-6
    assert result.verdict().worst == ("feature 1",)
    assert result.verdict().decision == "misfit"


def test_warnings_of_many_splits_are_issued_once(counts):
    fit = poisson_fit(counts, point_estimate=True)
    with pytest.warns(HeldoutSizeWarning, match=r"One of 3 such warnings") as caught:
        result = cross_pop_pc(fit, 60, discrepancies.mean, k=3, seed=1)
    assert len(caught) == 1
    assert not result.calibrated
    assert str(result.verdict(0.2)).endswith("; the p-value is not calibrated.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PointEstimateWarning)
        cross_pop_pc(fit, 60, discrepancies.mean, k=3, seed=1)


def test_realised_checks_out_of_their_regime_give_no_verdict(counts):
    with pytest.warns(RegimeWarning):
        result = divided_check(
            poisson_fit(counts), 60, discrepancies.mean_negative_log_likelihood,
            kind="realised", n_blocks=15,
        )  # fmt: skip
    assert result.verdict().decision == "no verdict"
    assert "regime number is unknown or above 1 in some blocks" in str(result.verdict())


BAD = {
    "per unit": (
        lambda fit: cross_pop_pc(fit, 60, per_unit_statistic()),
        "one value per feature or group; 'each' has one value per unit",
    ),
    "shapes": (
        lambda fit: cross_pop_pc(fit, 60, lambda x, draw: x[:, 0], k=7).p_value,
        r"different numbers of values in different splits: \[8, 9\]",
    ),
    "folds": (lambda fit: cross_pop_pc(fit, 60, discrepancies.mean, k=1), "k must lie between 2"),
    "blocks": (
        lambda fit: divided_check(fit, 60, discrepancies.mean, n_blocks=31),
        "at least 2 blocks and 2 units .* got 31 blocks of 60 units",
    ),
    "groups": (
        lambda fit: divided_check(fit, 60, discrepancies.mean, groups=[0] * 60),
        "got 1 blocks of 1 groups",
    ),
    "labels": (
        lambda fit: split_check(fit, 60, discrepancies.mean, groups=[0, 1]),
        "one label per unit, 60, got 2",
    ),
    "alpha": (
        lambda fit: cross_pop_pc(fit, 60, discrepancies.mean).verdict(1.5),
        r"alpha must lie between 0 and 1, got 1\.5",
    ),
}


def per_unit_statistic():
    def each(x, draw):
        return x[:, 0]

    each.axis = "unit"
    return each


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_impossible_requests_are_refused(call, message, counts):
    with pytest.raises(ValueError, match=message):
        call(poisson_fit(counts))


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
def test_backends_give_the_same_bits(backend, counts):
    def run(check):
        return check(poisson_fit(counts, 19), 60, discrepancies.mean, seed=7, n_jobs=2)

    for check, parts in ((cross_pop_pc, "folds"), (divided_check, "blocks")):
        expected = check(poisson_fit(counts, 19), 60, discrepancies.mean, seed=7)
        state = torch.random.get_rng_state()
        with joblib.parallel_config(backend=backend):
            result = run(check)
        assert same(getattr(result, parts), getattr(expected, parts))
        assert torch.equal(state, torch.random.get_rng_state())


def test_a_fit_that_ignores_its_seed_is_reproducible_too(counts):
    fit = poisson_fit(counts, 19)

    def careless(train, heldout, seed):
        return fit(train, heldout, int(torch.randint(1000, ())))

    torch.manual_seed(1)
    first = cross_pop_pc(careless, 60, discrepancies.mean, k=3, seed=7)
    torch.manual_seed(2)
    assert same(first.folds, cross_pop_pc(careless, 60, discrepancies.mean, k=3, seed=7).folds)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_dask_gives_the_same_bits(counts):
    distributed = pytest.importorskip("distributed", reason="dask distributed is not installed")
    expected = cross_pop_pc(poisson_fit(counts, 19), 60, discrepancies.mean, seed=7)
    settings = {"processes": False, "n_workers": 1, "threads_per_worker": 2}
    with distributed.Client(**settings, dashboard_address=None) as client:
        assert client.status == "running"
        with joblib.parallel_config(backend="dask"):
            result = cross_pop_pc(poisson_fit(counts, 19), 60, discrepancies.mean, seed=7, n_jobs=2)
    assert same(result.folds, expected.folds)


@pytest.mark.slow
def test_divided_check_of_poisson_counts_has_its_size_and_power():
    """N = 1000, 29 blocks of 34, 99 draws; 99.99 % band of a rate of .05 in 100 sets: to .15."""
    correct, dispersed = divided_p_values(None, 100), divided_p_values(0.01, 30)
    assert ((correct <= 0.05).double().mean(0) <= 0.15).all()
    assert ((dispersed <= 0.05).double().mean(0) >= 0.9).all()


def divided_p_values(size, n_sets):
    """p-values for mean and second moment, shape (sets, 2); counts of mean 2."""

    def moments(x, draw):
        return torch.stack([x.mean(), x.square().mean()])

    found = []
    for seed in range(n_sets):
        random = np.random.default_rng(seed)
        rate = 2.0 if size is None else random.gamma(size, 2 / size, (1000, 1))
        x = torch.from_numpy(random.poisson(rate, (1000, 1)).astype("f4"))
        found.append(divided_check(poisson_fit(x, 99), 1000, moments, seed=seed).p_value)
    return torch.stack(found)


def test_too_few_draws_for_single_values_give_no_verdict_on_folds(counts):
    """A pooled p of at least 4 / 200 among 2 values: none can be rejected alone at .03."""
    fit = poisson_fit(torch.cat([counts, counts.flip(0)], 1), 199)
    result = cross_pop_pc(fit, 60, discrepancies.feature_variance, k=3, seed=1)
    assert result.p_pooled.shape == (2,)
    assert str(result.verdict(0.03)) == (
        "No verdict on feature_variance: 3 folds of 199 draws are too few to reject single values "
        "among 2."
    )
    assert result.verdict(0.05).decision == "no misfit"


def test_a_vector_of_one_value_is_in_the_singular(counts):
    result = cross_pop_pc(poisson_fit(counts, 199), 60, discrepancies.feature_variance, k=3, seed=1)
    assert str(result.verdict()).startswith(
        "feature_variance shows no misfit in the only value over 3 folds"
    )
