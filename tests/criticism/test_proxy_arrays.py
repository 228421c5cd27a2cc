"""Checks of units that are arrays, (N, L, D), and a transcoder from end to end."""

import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import (
    FunctionDraw,
    TokenLayout,
    check_proxy,
    pop_pc,
    pop_pc_suite,
    ppc,
    proxy_suite,
)
from probinterp.inference import predictive_draws

sys.path.append(str(Path(__file__).parents[1] / "models"))
from transcoder_cases import made, tokens  # noqa: E402

N, L, D = 24, 3, 4
FITTED = 10**6  # so many units that point-estimated parameters do no harm


def by_layer(x, draw):
    return (x - draw.likelihood(x).mean).square().mean((0, 2))


by_layer.axis, by_layer.labels = "group", ("a", "b", "c")


class Stacked:
    """Draws whose replicates come in stacks."""

    def __init__(self, replicates, law):
        self.replicates = replicates
        self.reference = FunctionDraw(law.sample, lambda x: law)

    def __len__(self):
        return len(self.replicates)

    def __iter__(self):
        for one in self.replicates:
            yield FunctionDraw(lambda one=one: one, lambda x: self.reference.likelihood(x))

    def replicate_chunk(self, start, stop):
        return self.replicates[start:stop]


@pytest.fixture
def law():
    return Independent(Normal(torch.zeros(N, L, D), 1.0), 2)


@pytest.mark.parametrize("kind", ["plugin", "predictive", "realised"])
def test_arrays_are_checked_as_their_rows_laid_out_are(law, kind):
    torch.manual_seed(0)
    replicates, x = law.sample((40,)), law.sample()
    flat_law = Independent(Normal(torch.zeros(N, L * D), 1.0), 1)

    def flat(y, draw):
        return by_layer(y.unflatten(1, (L, D)), FunctionDraw(None, lambda _: law))

    arrays = [FunctionDraw(lambda r=r: r, lambda _: law) for r in replicates]
    rows = [FunctionDraw(lambda r=r: r.flatten(1), lambda _: flat_law) for r in replicates]
    found = pop_pc(arrays, x, by_layer, kind=kind, n_reference=8)
    wanted = pop_pc(rows, x.flatten(1), flat, kind=kind, n_reference=8)
    assert found.n_features == wanted.n_features == L * D
    torch.testing.assert_close(found.replicated, wanted.replicated)
    assert torch.equal(found.p_value, wanted.p_value)
    assert found.regime == pytest.approx(wanted.regime) if kind == "realised" else not found.regime


def test_stacks_of_arrays_give_what_single_ones_give(law):
    torch.manual_seed(0)
    replicates, x = law.sample((40,)), law.sample()
    stacked = pop_pc(Stacked(replicates, law), x, by_layer)
    reference = Stacked(replicates, law).reference
    single = pop_pc(list(Stacked(replicates, law)), x, by_layer, reference=reference)
    torch.testing.assert_close(stacked.replicated, single.replicated)
    assert torch.equal(stacked.p_value, single.p_value)


def test_suites_and_classical_checks_take_arrays(law):
    torch.manual_seed(0)
    draws = [FunctionDraw(law.sample, lambda _: law) for _ in range(30)]
    suite = pop_pc_suite(draws, law.sample(), {"one": by_layer, "two": by_layer})
    assert suite["two"].labels == ("a", "b", "c")
    assert ppc(draws, law.sample(), by_layer).p_value.shape == (3,)


def test_replicates_of_another_shape_are_refused(law):
    draws = [FunctionDraw(lambda: law.sample().flatten(1), lambda _: law)] * 3
    with pytest.raises(ValueError, match=r"shape of the data, \(24, 3, 4\), got \(24, 12\)"):
        pop_pc(draws, law.sample(), by_layer)


@pytest.mark.parametrize("activation", ["relu", "gaussian"])
def test_a_transcoder_passes_its_own_data_and_fails_those_of_others(activation):
    model, batch = made(activation), tokens()
    kind = batch.token_type
    layout = TokenLayout(torch.arange(20).repeat_interleave(3), kind, 3)
    draws = predictive_draws(model, batch, 299, seed=1)
    assert draws.local == "covariates"
    own = model.predictive(batch.inputs).sample(1, seed=2)[0]
    right = check_proxy(draws, own, layout, n_obs=FITTED)
    assert not right.flagged(0.05 / len(right.pooled))
    assert right.n_images == 20
    wrong = check_proxy(draws, own + 2 * torch.randn_like(own) * own.std(), layout, n_obs=FITTED)
    assert {"chi_square", "cosine"} <= set(wrong.flagged(0.05 / len(right.pooled)))


def test_the_discrepancies_work_in_a_plain_check_as_well():
    model, batch = made(), tokens()
    layout = TokenLayout(torch.arange(20).repeat_interleave(3), batch.token_type, 3)
    draws = predictive_draws(model, batch, 20, seed=1)
    plain = pop_pc_suite(draws, batch.x, proxy_suite(layout), n_obs=FITTED)
    panel = check_proxy(draws, batch.x, layout, n_obs=FITTED)
    for name, result in plain.items():
        torch.testing.assert_close(
            result.heldout.double(), panel.pooled[name].heldout, rtol=1e-5, atol=1e-6
        )
        assert torch.equal(result.p_value, panel.pooled[name].p_value)


def test_shares_that_tie_are_tied(law):
    """Sums of fractions are rounded, counts are not: equal shares must not differ by an ulp."""
    layout = TokenLayout(torch.arange(N) // 3, torch.tensor([0, 1, 1] * (N // 3)), L)
    torch.manual_seed(0)
    draws = [FunctionDraw(law.sample, lambda _: law) for _ in range(60)]
    result = check_proxy(draws, law.sample(), layout).pooled["interval_coverage(0.9)"]
    shares = torch.cat([result.heldout, result.replicated])
    counts = shares * torch.tensor([8 * D] * L + [16 * D] * L)
    torch.testing.assert_close(counts, counts.round())
    for column, count in zip(shares.T, counts.round().T, strict=True):
        assert len(column.unique()) == len(count.unique())


def test_a_level_that_the_draws_cannot_reach_is_refused(law):
    layout = TokenLayout(torch.arange(N), torch.ones(N).long(), L)
    draws = [FunctionDraw(law.sample, lambda _: law) for _ in range(20)]
    result = check_proxy(draws, 9 * law.sample(), layout)
    assert "chi_square" in result.flagged(0.05)
    with pytest.raises(ValueError, match=r"19 replicates.* of 1 / 20 and more, got 0.01"):
        result.flagged(0.01)
