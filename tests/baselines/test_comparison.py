"""The comparison against numbers computed by hand, and methods in one run."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch

from probinterp import simulate
from probinterp.baselines import (
    PerStudy,
    StackedFactorAnalysis,
    StudyMeans,
    compare,
    multistudy_factor_analysis,
    multistudy_sparse_vae,
    sparse_vae,
)
from probinterp.inference import ArrayData
from probinterp.likelihoods import GaussianLikelihood, NegativeBinomialLikelihood
from probinterp.models import Batch
from probinterp.recovery import relative_frobenius, rv_coefficient


class StubFit(NamedTuple):
    values: tuple
    matrix: torch.Tensor
    support: torch.Tensor | None = None
    block: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    covariance_draws: int | None = 7

    def log_density(self, batch):
        return torch.tensor(self.values)

    def covariance(self, study):
        return self.matrix * (study + 1)

    def scores(self, batch):
        return self.codes


@dataclass(frozen=True)
class Stub:
    name: str
    fitted: StubFit

    def fit(self, train, seed):
        return self.fitted


@dataclass(frozen=True)
class StubTruth:
    support: torch.Tensor | None = None
    block: torch.Tensor | None = None
    z: torch.Tensor | None = None

    def covariance(self, study):
        return torch.eye(2)


STUDY = torch.tensor([0, 0, 1, 1])
TRAIN = ArrayData(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), study=STUDY)
MATRIX = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
ONE = Stub("one", StubFit((1.0, 2.0, 3.0, 4.0), MATRIX))
TWO = Stub("two", StubFit((1.5, 1.0, 5.0, 8.5), torch.eye(2)))


def test_paired_differences_by_hand():
    found = compare([ONE, TWO], TRAIN, TRAIN)
    assert found.best == "two"
    first, second = found.table()
    assert (first["method"], first["log density"], first["difference"]) == ("two", 4.0, 0.0)
    assert second["log density"] == 2.5
    # differences -.5, 1, -2, -4.5: mean -1.5, sd sqrt((1 + 6.25 + .25 + 9) / 3)
    assert second["difference"] == -1.5
    assert second["its standard error"] == pytest.approx(math.sqrt(16.5 / 3) / 2)
    (worse,) = [row for row in found.table(against="one") if row["method"] == "two"]
    assert worse["difference"] == 1.5
    rows = {(row["method"], row["study"]): row for row in found.study_table()}
    assert rows["one", 0]["difference"] == 0.25
    assert rows["one", 0]["its standard error"] == pytest.approx(0.75)
    assert rows["one", 1]["difference"] == -3.25
    assert rows["one", 1]["its standard error"] == pytest.approx(1.25)
    assert [rows["two", m]["observations"] for m in (0, 1)] == [2, 2]
    assert torch.equal(found.result("one").log_density, torch.arange(1.0, 5.0).double())


def test_covariances_are_compared_with_the_truth_or_the_held_out_sample():
    by_truth = compare([ONE], TRAIN, TRAIN, truth=StubTruth())
    assert by_truth.covariances_of == "truth"
    result = by_truth.result("one")
    assert result.rv.tolist() == pytest.approx([4 / math.sqrt(20)] * 2)
    assert result.frobenius.tolist() == pytest.approx([math.sqrt(2), math.sqrt(26) / math.sqrt(2)])
    assert by_truth.table()[0]["covariance draws"] == 7
    by_sample = compare([ONE], TRAIN, TRAIN)
    assert by_sample.covariances_of == "held-out sample"
    sample = TRAIN.x[2:].double().T.cov()
    assert by_sample.result("one").rv[1].item() == pytest.approx(
        rv_coefficient(2 * MATRIX.double(), sample)
    )
    few = compare([ONE], TRAIN, ArrayData(TRAIN.x[:4], study=torch.tensor([0, 0, 0, 1])))
    assert math.isnan(few.result("one").rv[1])


def test_standardised_covariances_do_not_depend_on_units():
    units = torch.tensor([1.0, 1000.0])
    scaled = ArrayData(TRAIN.x * units, study=STUDY)
    other = Stub("one", ONE.fitted._replace(matrix=MATRIX * torch.outer(units, units)))
    plain = compare([ONE], TRAIN, TRAIN, standardised=True).result("one")
    changed = compare([other], scaled, scaled, standardised=True).result("one")
    torch.testing.assert_close(plain.rv, changed.rv, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plain.frobenius, changed.frobenius, rtol=1e-4, atol=1e-6)
    raw = compare([other], scaled, scaled).result("one").rv
    assert raw[0].item() == pytest.approx(1.0, abs=1e-4)  # the large feature alone
    assert relative_frobenius(MATRIX, MATRIX) == 0.0


def test_recovery_is_judged_by_block_and_pooled_codes_count_as_shared():
    shared, own = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    z = torch.zeros(8, 3)
    z[:, 0] = torch.cat([shared, shared])
    z[:4, 1], z[4:, 2] = own, own
    data = ArrayData(torch.zeros(8, 2), study=torch.tensor([0] * 4 + [1] * 4))
    support = torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()
    truth = StubTruth(support, torch.tensor([-1, 0, 1]), z)
    blocks = StubFit((0.0,) * 8, MATRIX, support[:, [0, 2, 1]], torch.tensor([-1, 0, 1]), z)
    pooled = StubFit((0.0,) * 8, MATRIX, support, None, z)
    found = compare([Stub("blocks", blocks), Stub("pooled", pooled)], data, data, truth=truth)
    result = found.result("blocks")
    assert result.support["all"].consensus == 1.0
    assert result.support["shared"].consensus == 1.0
    assert result.support["specific"].consensus == 0.0  # in each other's blocks
    rows = {row["method"]: row for row in found.table()}
    assert rows["blocks"]["block accuracy"] == 1.0
    assert rows["blocks"]["consensus (specific)"] == 0.0
    assert rows["pooled"]["block accuracy"] == 0.0
    assert rows["pooled"]["consensus (all)"] == 1.0
    assert math.isnan(rows["pooled"]["consensus (shared)"])


def simulated(**options):
    truth = simulate.multistudy(2, 100, 2, 1, features_per_factor=4, seed=0, **options)
    held = truth.more(60, seed=1)
    data = [ArrayData(t.x, size_factor=t.size_factor, study=t.study) for t in (truth, held)]
    return truth, *data


def test_processes_give_the_same_numbers():
    truth, train, held = simulated()
    methods = [
        StackedFactorAnalysis(3),
        PerStudy(StackedFactorAnalysis(2), "per-study FA"),
        multistudy_factor_analysis(2, 1),
        sparse_vae(3, n_hidden=8, fitting={"max_epochs": 2}),
    ]
    one = compare(methods, train, held, truth=truth)
    two = compare(methods, train, held, truth=truth, n_jobs=2)
    for a, b in zip(one.results, two.results, strict=True):
        assert torch.equal(a.log_density, b.log_density)
        assert torch.equal(a.rv, b.rv)


def test_linear_methods_are_ranked_as_they_should_on_linear_studies():
    truth = simulate.linear_multistudy(3, 200, seed=0)
    held = truth.more(200, seed=1)
    train, held = (ArrayData(t.x, study=t.study) for t in (truth, held))
    methods = [
        StudyMeans(GaussianLikelihood),
        StackedFactorAnalysis(4),
        PerStudy(StackedFactorAnalysis(4), "per-study FA"),
        multistudy_factor_analysis(3, 1),
    ]
    found = compare(methods, train, held, truth=truth)
    assert found.best == "multi-study FA (ECM)"
    rows = {row["method"]: row for row in found.table()}
    ours = rows["multi-study FA (ECM)"]
    for name in ("study means", "stacked FA", "per-study FA"):
        assert rows[name]["difference"] + 4 * rows[name]["its standard error"] < 0
        assert rows[name]["RV"] < ours["RV"]
        assert rows[name]["Frobenius"] > ours["Frobenius"]
    assert ours["RV"] > 0.98


def test_counts_are_compared_by_their_own_density():
    truth, train, held = simulated(likelihood="negative_binomial")
    fitting = {"max_epochs": 60, "batch_size": 50}
    methods = [
        StudyMeans(NegativeBinomialLikelihood),
        multistudy_sparse_vae(
            3,
            1,
            likelihood=NegativeBinomialLikelihood,
            fitting=fitting,
            mended=False,
            n_hidden=16,
            start="components",
        ),
    ]
    found = compare(methods, train, held, truth=truth, standardised=True)
    rows = {row["method"]: row for row in found.table()}
    lead = rows["study means"]
    assert lead["difference"] + 4 * lead["its standard error"] < 0
    assert rows["multi-study sparse VAE"]["RV"] > lead["RV"]
    assert rows["multi-study sparse VAE"]["covariance draws"] == 20_000


def test_refusals_say_what_came():
    held = Batch(TRAIN.x, STUDY)
    with pytest.raises(ValueError, match="distinct names and not be empty"):
        compare([ONE, ONE], TRAIN, held)
    with pytest.raises(ValueError, match="distinct names and not be empty"):
        compare([], TRAIN, held)
    with pytest.raises(ValueError, match=r"studies \[2\] were not among the fitted data"):
        compare([ONE], TRAIN, held._replace(study=STUDY + 1))
    with pytest.raises(ValueError, match="same features, got 2 and 1"):
        compare([ONE], TRAIN, held._replace(x=TRAIN.x[:, :1]))
    with pytest.raises(ValueError, match="both have study or neither"):
        compare([ONE], TRAIN, held._replace(study=None))
    with pytest.raises(ValueError, match="row for each of 2 features, got 3"):
        compare([ONE], TRAIN, held, truth=StubTruth(support=torch.ones(3, 1)))
    with pytest.raises(ValueError, match="the 4 training observations, got 3"):
        compare([ONE], TRAIN, held, truth=replace(StubTruth(), z=torch.ones(3, 1)))
    with pytest.raises(ValueError, match="one: expected one log density an observation"):
        compare([Stub("one", ONE.fitted._replace(values=(1.0, 2.0)))], TRAIN, held)
    with pytest.raises(KeyError, match="no method 'three'"):
        compare([ONE], TRAIN, held).table(against="three")
