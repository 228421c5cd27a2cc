"""Hold-out designs: who is held out, how many, and that nothing is on both sides."""

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom, kstest
from torch.distributions import Independent, MultivariateNormal, Normal, Poisson

from probinterp.criticism import (
    FunctionDraw,
    cap_rows,
    discrepancies,
    k_fold,
    mask_entries,
    masked_draws,
    pop_pc,
    split_counts,
    split_features,
    split_groups,
    split_rows,
    split_within,
)

LABELS = ["b"] * 3 + ["a"] * 5 + ["c"] * 2 + ["d"] * 6


def parts(split):
    return sorted([*split.train.tolist(), *split.heldout.tolist()])


@pytest.mark.parametrize(
    ("n", "share", "n_heldout"), [(10, 0.2, 2), (10, 0.25, 3), (100, 0.07, 7), (2, 0.01, 1)]
)
def test_rows_are_partitioned_and_recorded(n, share, n_heldout):
    """100 * .07 is 7.000000000000001 in floating point and still means 7."""
    split = split_rows(n, share, seed=3)
    assert (split.n_heldout, split.n_train) == (n_heldout, n - n_heldout)
    assert parts(split) == list(range(n))
    assert (split.design, split.seed, split.share) == ("rows", 3, share)
    assert split.train.dtype == split.heldout.dtype == torch.int64
    assert torch.equal(split.heldout, split.heldout.sort().values)


def test_the_seed_decides_and_every_row_is_held_out_equally_often():
    assert torch.equal(split_rows(50, 0.3, 1).heldout, split_rows(50, 0.3, 1).heldout)
    assert not torch.equal(split_rows(50, 0.3, 1).heldout, split_rows(50, 0.3, 2).heldout)
    times = sum(
        torch.bincount(split_rows(5, 0.4, seed).heldout, minlength=5) for seed in range(2000)
    )
    # binomial(2000, .4): standard deviation 22
    assert ((times - 800).abs() < 5 * 22).all()


@pytest.mark.parametrize("seed", range(5))
def test_strata_keep_their_share_within_one_unit(seed):
    strata = np.repeat(np.arange(6), [50, 25, 13, 7, 3, 2])
    split = split_rows(100, 0.3, seed, strata)
    held = torch.bincount(torch.from_numpy(strata)[split.heldout], minlength=6).numpy()
    assert split.n_heldout == 30
    assert np.abs(held - 0.3 * np.bincount(strata)).max() < 1 + 1e-9
    assert parts(split) == list(range(100))


def test_strata_of_one_size_are_rounded_up_equally_often():
    """Ten strata of three, 1.2 held-out units each on average."""
    strata = torch.arange(30) // 3
    held = sum(
        torch.bincount(strata[split_rows(30, 0.4, seed, strata).heldout], minlength=10)
        for seed in range(1000)
    )
    assert ((held - 1200).abs() < 5 * (1000 * 0.2 * 0.8) ** 0.5).all()


def test_whole_groups_are_held_out():
    split = split_groups(LABELS, 0.5, seed=0)
    labels = np.array(LABELS)
    assert not set(labels[split.train]) & set(labels[split.heldout])
    assert len(set(labels[split.heldout])) == 2
    assert parts(split) == list(range(16))
    assert split.design == "groups"


def test_some_units_of_every_group_are_held_out():
    split = split_within(LABELS, 0.4, seed=0)
    names, held = np.unique(np.array(LABELS)[split.heldout], return_counts=True)
    assert dict(zip(names.tolist(), held.tolist(), strict=True)) == {"a": 2, "b": 1, "c": 1, "d": 2}
    assert parts(split) == list(range(16))


def test_features_are_partitioned():
    split = split_features(7, 0.5, seed=0)
    assert (split.n_train, split.n_heldout, split.design) == (3, 4, "features")
    assert parts(split) == list(range(7))


@pytest.mark.parametrize("k", [2, 3, 10])
def test_folds_are_a_partition_of_nearly_equal_parts(k):
    folds = k_fold(10, k, seed=1)
    assert sorted(torch.cat([fold.heldout for fold in folds]).tolist()) == list(range(10))
    assert {fold.n_heldout for fold in folds} <= {10 // k, -(-10 // k)}
    assert all(parts(fold) == list(range(10)) for fold in folds)


def test_groups_never_straddle_folds_and_fold_sizes_are_balanced():
    labels = np.repeat(np.arange(8), [9, 1, 4, 4, 3, 3, 3, 3])
    folds = k_fold(30, 3, seed=0, groups=labels)
    held = [set(labels[fold.heldout]) for fold in folds]
    assert sum(map(len, held)) == len(set.union(*held)) == 8
    assert [fold.n_heldout for fold in folds] == [10, 10, 10]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.98])
def test_every_row_has_masked_and_observed_entries(share):
    mask = mask_entries((40, 12), share, seed=0)
    expected = min(max(round(12 * share), 1), 11)
    assert (mask.heldout.sum(1) == expected).all()
    assert torch.equal(mask.observed, ~mask.heldout)
    assert mask.n_heldout == 40 * expected
    often = sum(mask_entries((40, 12), share, seed).heldout.sum(0) for seed in range(50))
    rate = expected / 12
    assert (often / 2000 - rate).abs().max() < 5 * (rate * (1 - rate) / 2000) ** 0.5


@pytest.mark.parametrize("fixed_totals", [False, True])
def test_count_halves_sum_to_the_data(fixed_totals, device):
    x = torch.poisson(torch.full((30, 8), 3.0, device=device))
    x[0], x[1] = 0, 0
    x[1, 2] = 1
    split = split_counts(x, 0.3, seed=0, fixed_totals=fixed_totals)
    assert torch.equal(split.observed + split.heldout, x)
    assert split.heldout.dtype == x.dtype
    assert split.heldout.device == x.device
    assert (split.heldout >= 0).all()
    assert (split.observed >= 0).all()
    if fixed_totals:
        wanted = [0, 0, *(round(0.3 * total) for total in x[2:].sum(1).tolist())]
        assert split.heldout.sum(1).tolist() == wanted


def test_thinned_poisson_counts_are_independent_poisson_counts():
    x = torch.poisson(torch.full((20000, 2), 4.0, dtype=torch.float64))
    split = split_counts(x, 0.25, seed=1)
    for part, mean in ((split.heldout, 1.0), (split.observed, 3.0)):
        assert part.mean().item() == pytest.approx(mean, abs=5 * (mean / 40000) ** 0.5)
        assert part.var().item() == pytest.approx(mean, rel=0.05)
    both = torch.stack([split.heldout.flatten(), split.observed.flatten()])
    assert abs(torch.corrcoef(both)[0, 1].item()) < 5 / 200


def test_fixed_totals_are_hypergeometric():
    """One row of (6, 4) tokens, 5 held out: the first count is hypergeometric(10, 6, 5)."""
    x = torch.tensor([[6.0, 4.0]]).expand(4000, 2)
    first = split_counts(x, 0.5, seed=0, fixed_totals=True).heldout[:, 0]
    observed = torch.bincount(first.long(), minlength=6)[1:6].numpy() / 4000
    expected = hypergeom(10, 6, 5).pmf(np.arange(1, 6))
    assert observed == pytest.approx(expected, abs=5 * (0.25 / 4000) ** 0.5)


BAD = {
    "share 0": (lambda: split_rows(5, 0.0, 0), r"share must lie in \(0, 1\), got 0\.0"),
    "share 2": (lambda: mask_entries((2, 3), 2, 0), r"share must lie in \(0, 1\), got 2"),
    "one row": (lambda: split_rows(1, 0.5, 0), "a split needs at least 2 rows, got 1"),
    "nothing left": (lambda: split_rows(4, 0.9, 0), r"share=0\.9 of 4 rows leaves none"),
    "strata": (lambda: split_rows(4, 0.5, 0, list("abc")), r"strata must have one label per unit"),
    "many strata": (
        lambda: split_rows(6, 0.8, 0, list("aabbcc")),
        "1 training rows cannot cover 3 strata",
    ),
    "missing": (
        lambda: split_groups(["a", None, "b"], 0.5, 0),
        r"groups is missing \(None or NaN\) for 1 of 3 units",
    ),
    "one group": (lambda: split_groups(["a"] * 4, 0.5, 0), "at least 2 groups, got 1"),
    "no group": (lambda: split_groups([], 0.5, 0), "groups is empty"),
    "single": (lambda: split_within(list("aab"), 0.5, 0), "1 of 2 groups have a single unit"),
    "k": (lambda: k_fold(5, 6, 0), "k must lie between 2 and the number of units, 5, got 6"),
    "k groups": (lambda: k_fold(4, 3, 0, list("aabb")), "the number of groups, 2, got 3"),
    "one column": (lambda: mask_entries((4, 1), 0.5, 0), r"2 columns, got shape \(4, 1\)"),
    "no counts": (lambda: split_counts(torch.tensor([[0.5, -1, 2]]), 0.5, 0), "2 entries are neg"),
    "nan counts": (lambda: split_counts(torch.tensor([[torch.nan]]), 0.5, 0), "1 entries are neg"),
    "vector": (lambda: split_counts(torch.ones(3), 0.5, 0), r"shape \(N, G\), got \(3,\)"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_impossible_designs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class ObservedDraws(list):
    local = "observed"
    n_obs = 7

    @property
    def reference(self):
        return self[0]


def poisson_draw(rate):
    law = Independent(Poisson(rate), 1)
    return FunctionDraw(law.sample, lambda x: law)


def test_masked_draws_see_the_entries_in_the_order_of_the_mask(device):
    rate = torch.rand(6, 5, dtype=torch.float64, device=device) + 1
    mask = mask_entries((6, 5), 0.4, seed=0).heldout.to(device)
    masked = masked_draws(ObservedDraws([poisson_draw(rate)]), mask)
    x = torch.poisson(rate)[mask].unsqueeze(1)
    law = masked.reference.likelihood(x)
    assert law.batch_shape + law.event_shape == (12, 1)
    expected = Poisson(rate[mask]).log_prob(x.squeeze(1))
    assert torch.equal(law.log_prob(x), expected)
    assert torch.equal(law.mean.squeeze(1), rate[mask])
    assert torch.equal(law.variance.squeeze(1), rate[mask])
    assert next(iter(masked)).replicate().shape == (12, 1)
    assert (masked.local, masked.n_obs, masked.point_estimate) == ("observed", 7, False)


def test_masked_entries_have_marginals_for_integral_transforms():
    rate = torch.rand(8, 4, dtype=torch.float64) + 1
    mask = mask_entries((8, 4), 0.5, seed=0).heldout
    draw = masked_draws(ObservedDraws([poisson_draw(rate)]), mask).reference
    x = torch.poisson(rate)[mask].unsqueeze(1)
    marginal = draw.likelihood(x).marginals()
    assert marginal.batch_shape == (16, 1)
    assert torch.equal(marginal.log_prob(x)[:, 0], Poisson(rate[mask]).log_prob(x[:, 0]))
    cdf = torch.special.gammaincc(x[:, 0] + 1, rate[mask])
    torch.testing.assert_close(marginal.cdf(x)[:, 0], cdf)
    assert 0 < discrepancies.pit_uniformity(x, draw).item() < 1


def test_masked_check_is_the_check_of_the_entries_by_hand():
    rate = torch.rand(8, 4, dtype=torch.float64) + 1
    mask = mask_entries((8, 4), 0.5, seed=0).heldout
    x = torch.poisson(2 * rate)
    draws = ObservedDraws([poisson_draw(rate)] * 50)
    result = pop_pc(
        masked_draws(draws, mask), x[mask].unsqueeze(1), discrepancies.chi_square, seed=4
    )
    expected = ((x - rate)[mask] ** 2 / rate[mask]).mean()
    assert result.heldout.item() == pytest.approx(expected.item(), rel=1e-12)
    assert result.local == "observed"
    assert result.n_new == 16


def test_masked_multivariate_normal_uses_its_marginals():
    covariance = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    law = MultivariateNormal(torch.zeros(3, 2, dtype=torch.float64), covariance)
    mask = torch.tensor([[True, False], [False, True], [True, False]])
    draw = next(iter(masked_draws([FunctionDraw(law.sample, lambda x: law)], mask)))
    x = torch.tensor([[0.3], [1.0], [-2.0]], dtype=torch.float64)
    scale = torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64).sqrt()
    expected = Normal(0.0, scale).log_prob(x.squeeze(1))
    assert draw.likelihood(x).log_prob(x) == pytest.approx(expected)


def test_latents_inferred_from_the_held_out_entries_are_found_out():
    mask = torch.tensor([[True, False], [False, True]])

    def copies(x):
        return Independent(Normal(x.sum(1, keepdim=True).expand(2, 2), 1.0), 1)

    draws = ObservedDraws([FunctionDraw(lambda: torch.zeros(2, 2), copies)])
    with pytest.raises(ValueError, match="changes with their values: local latents must"):
        pop_pc(masked_draws(draws, mask), torch.ones(2, 1), discrepancies.chi_square)


@pytest.mark.parametrize("local", ["prior", "posterior"])
def test_other_modes_are_refused(local):
    draws = ObservedDraws([])
    draws.local = local
    with pytest.raises(ValueError, match=f"local='observed'; got local='{local}'"):
        masked_draws(draws, torch.ones(2, 2, dtype=torch.bool))


def test_wrong_masks_and_likelihoods_are_refused():
    draws = [poisson_draw(torch.ones(2, 2))]
    with pytest.raises(TypeError, match="boolean mask of shape"):
        masked_draws(draws, torch.ones(2, 2))
    with pytest.raises(ValueError, match="hold something out, got shape"):
        masked_draws(draws, torch.zeros(2, 2, dtype=torch.bool))
    odd = masked_draws(draws, torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shape of the mask, \(3, 2\), got \(2, 2\)"):
        next(iter(odd)).likelihood(torch.ones(6, 1))


@pytest.mark.slow
def test_masked_entries_of_a_correct_factor_analysis_are_calibrated():
    """Known W and sd, exact posterior of z given the observed half; 400 sets, plug-in at E[z]."""
    p, dtype = torch.empty(400), torch.float64
    n, n_features, k = 30, 8, 2
    for seed in range(400):
        torch.manual_seed(seed)
        w = torch.randn(n_features, k, dtype=dtype)
        z, noise = torch.randn(n, k, dtype=dtype), torch.randn(n, n_features, dtype=dtype)
        x = z @ w.T + noise
        mask = mask_entries((n, n_features), 0.25, seed)
        seen = mask.observed.to(dtype)
        precision = torch.eye(k, dtype=dtype) + torch.einsum("ng,gk,gl->nkl", seen, w, w)
        covariance = precision.inverse()
        mean = torch.einsum("nkl,ng,gl->nk", covariance, seen * x, w)
        spread = torch.linalg.cholesky(covariance)

        def draw(z, w=w):
            law = Independent(Normal(z @ w.T, 1.0), 1)
            return FunctionDraw(law.sample, lambda x: law)

        normal = torch.randn(59, n, k, 1, dtype=dtype)
        draws = ObservedDraws([draw(mean), *map(draw, mean + (spread @ normal).squeeze(3))])
        found = pop_pc(
            masked_draws(draws, mask.heldout),
            x[mask.heldout].unsqueeze(1),
            discrepancies.mean_negative_log_likelihood,
            seed=seed,
        )
        p[seed] = found.p_rank
    two_sided = 2 * torch.minimum(p, 1 - p)
    assert 0.0175 <= (two_sided <= 0.05).double().mean() <= 0.0975
    assert kstest(p.numpy(), "uniform").statistic < 0.111


def test_masked_draws_keep_the_effective_number_of_draws():
    rate = torch.full((3, 2), 2.0)
    draws = ObservedDraws([poisson_draw(rate)] * 9)
    draws.n_effective = 4.0
    mask = torch.tensor([[True, False]] * 3)
    result = pop_pc(masked_draws(draws, mask), torch.full((3, 1), 2.0), discrepancies.mean)
    assert result.n_effective == 4


def test_capped_rows_are_few_enough_sorted_and_repeatable():
    index = cap_rows(140, 560, seed=3)
    assert len(index) == 56
    assert index.tolist() == sorted(set(index.tolist()))
    assert torch.equal(index, cap_rows(140, 560, seed=3))
    assert not torch.equal(index, cap_rows(140, 560, seed=4))
    assert cap_rows(20, 560, seed=0).tolist() == list(range(20))
    assert len(cap_rows(20, 3, seed=0)) == 1
    for bad, text in {(0, 5): "n_new must be at least 1, got 0", (5, 0): "n_obs must be"}.items():
        with pytest.raises(ValueError, match=text):
            cap_rows(*bad, seed=0)


def test_replicates_unlike_the_mask_are_refused():
    draws = ObservedDraws([poisson_draw(torch.full((3, 2), 2.0))] * 9)
    with pytest.raises(ValueError, match=r"the shape of the mask, \(2, 2\), got \(3, 2\)"):
        pop_pc(
            masked_draws(draws, torch.ones(2, 2, dtype=torch.bool)),
            torch.ones(4, 1),
            discrepancies.mean,
        )
