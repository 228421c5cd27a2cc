import math

import numpy as np
import pytest
import torch
from torch.distributions import Dirichlet, Independent, MultivariateNormal, Normal, Poisson

from probinterp.criticism import FunctionDraw, discrepancies, pop_pc
from probinterp.criticism.discrepancies import group_gap, per_feature, per_group, per_unit

SCALARS = {
    name: getattr(discrepancies, name)
    for name in (
        "chi_square",
        "kurtosis",
        "mean_negative_log_likelihood",
        "mean_squared_residual",
        "pit_uniformity",
        "residual_skewness",
        "third_moment",
        "variance",
    )
}
GROUPS = np.array([2, 0, 2, 1, 0, 2, 1, 0, 0, 1, 2, 2])


class Shrunk:
    """A draw that infers the mean of every row from the row, like a model with local latents."""

    def __init__(self, n_features, scale):
        self.weights = torch.linspace(0.5, 1.5, n_features, dtype=torch.float64)
        self.scale, self.n_calls = scale, 0

    def replicate(self):
        return torch.arange(48, dtype=torch.float64).reshape(12, 4)

    def likelihood(self, x):
        self.n_calls += 1
        mean = x.mean(1, keepdim=True) * self.weights
        return Independent(Normal(mean, self.scale, validate_args=False), 1)


class Restricted:
    """The same for chosen rows and columns, by computing everything anew."""

    def __init__(self, draw, x, rows, columns):
        self.draw, self.x, self.rows, self.columns = draw, x, rows, columns

    def likelihood(self, part):
        whole = self.x.clone()
        whole[np.ix_(self.rows, self.columns)] = part
        base = self.draw.likelihood(whole).base_dist
        index = np.ix_(self.rows, self.columns)
        return Independent(Normal(base.loc[index], base.scale[index], validate_args=False), 1)


@pytest.fixture
def data():
    x = torch.randn(12, 4, dtype=torch.float64).exp()
    return x, Shrunk(4, torch.rand(12, 4, dtype=torch.float64) + 0.5)


def by_hand(function, x, draw, parts):
    values = []
    for rows, columns in parts:
        restricted = Restricted(draw, x, rows, columns)
        values.append(function(x[np.ix_(rows, columns)], restricted).item())
    return values


def standardised_log(x, draw):
    """Scores data that are not those it was given."""
    return -draw.likelihood(x.log1p()).log_prob(x.log1p()).mean()


@pytest.mark.parametrize("name", [*SCALARS, "standardised_log"])
def test_wrappers_equal_a_loop_over_restricted_data(name, data):
    function, (x, draw) = SCALARS.get(name, standardised_log), data
    every_row, every_column = list(range(12)), list(range(4))
    for wrapped, parts in {
        per_feature(function): [(every_row, [j]) for j in every_column],
        per_unit(function): [([i], every_column) for i in every_row],
        per_group(function, GROUPS): [(np.where(GROUPS == m)[0], every_column) for m in range(3)],
    }.items():
        expected = by_hand(function, x, draw, parts)
        assert wrapped(x, draw).tolist() == pytest.approx(expected, rel=1e-10), wrapped.__name__


@pytest.mark.parametrize("wrap", [per_feature, per_unit, lambda d: per_group(d, GROUPS)])
def test_the_likelihood_is_computed_once(wrap, data):
    x, draw = data
    wrap(discrepancies.mean_negative_log_likelihood)(x, draw)
    assert draw.n_calls == 1
    wrap(discrepancies.mean)(x, draw)
    assert draw.n_calls == 1


def test_values_add_up_to_that_of_the_whole(data):
    x, draw = data
    nll = discrepancies.mean_negative_log_likelihood
    whole = nll(x, draw).item()
    assert per_feature(nll)(x, draw).sum().item() == pytest.approx(whole)
    assert per_unit(nll)(x, draw).mean().item() == pytest.approx(whole)
    sizes = torch.tensor([4.0, 3.0, 5.0], dtype=torch.float64)
    assert (per_group(nll, GROUPS)(x, draw) @ sizes / 12).item() == pytest.approx(whole)


def test_wrappers_nest(data):
    x, draw = data
    nll = discrepancies.mean_negative_log_likelihood
    gap = per_feature(group_gap(nll, GROUPS))(x, draw)
    table = torch.stack([per_feature(nll)(x, draw)])
    each = torch.stack(
        [
            torch.tensor(by_hand(nll, x, draw, [(np.where(GROUPS == m)[0], [j]) for j in range(4)]))
            for m in range(3)
        ]
    )
    assert table.shape == (1, 4)
    assert gap.tolist() == pytest.approx((each.amax(0) - each.mean(0)).tolist(), abs=1e-6)


def test_names_axes_and_labels():
    feature = per_feature(discrepancies.mean, labels=["a", "b"])
    assert (feature.__name__, feature.axis, feature.labels) == (
        "per_feature(mean)",
        "feature",
        ("a", "b"),
    )
    unit = per_unit(discrepancies.quantile(0.5))
    assert (unit.__name__, unit.axis) == ("per_unit(quantile(0.5))", "unit")
    studies = ["south", "north", "south"]
    group = per_group(discrepancies.mean, studies)
    assert (group.axis, group.labels) == ("group", ("north", "south"))
    assert per_group(discrepancies.mean, studies, labels=["N", "S"]).labels == ("N", "S")
    assert group_gap(discrepancies.mean, studies).__name__ == "group_gap(mean)"


def test_functions_whose_control_flow_depends_on_the_data_are_evaluated_one_by_one():
    def first_positive(x, draw):
        positive = x[x > 0]
        return positive[0] if len(positive) else x.new_zeros(())

    x = torch.tensor([[-1.0, 2.0], [3.0, -4.0], [-5.0, -6.0]])
    assert per_feature(first_positive)(x, None).tolist() == [3.0, 2.0]
    assert per_unit(first_positive)(x, None).tolist() == [2.0, 3.0, 0.0]


@pytest.mark.parametrize("n_features", [255, 256, 257, 600])
def test_many_features_are_evaluated_in_chunks(n_features):
    x = torch.randn(5, n_features, dtype=torch.float64)
    value = per_feature(discrepancies.variance)(x, None)
    assert torch.allclose(value, x.var(0, correction=0))


def test_a_column_of_correlated_normals_is_scored_by_its_marginal():
    covariance = torch.tensor([[2.0, 1.5], [1.5, 3.0]], dtype=torch.float64)
    law = MultivariateNormal(torch.zeros(6, 2, dtype=torch.float64), covariance)
    x, draw = law.sample(), FunctionDraw(law.sample, lambda data: law)
    value = per_feature(discrepancies.mean_negative_log_likelihood)(x, draw)
    expected = [
        -Normal(0.0, math.sqrt(v)).log_prob(x[:, j]).mean().item() for j, v in enumerate((2.0, 3.0))
    ]
    assert value.tolist() == pytest.approx(expected)


def test_part_of_a_replicate(data):
    x, draw = data

    def first_new_entry(part, view):
        return view.replicate()[0, 0]

    assert per_group(first_new_entry, GROUPS)(x, draw).tolist() == [4.0, 12.0, 0.0]
    assert per_feature(first_new_entry)(x, draw).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_study_that_the_model_fits_badly_is_found():
    study = np.repeat(["good", "bad"], [90, 10])
    law = Independent(Poisson(torch.full((100, 5), 3.0)), 1)
    draws = [FunctionDraw(law.sample, lambda data: law) for _ in range(200)]
    x = law.sample()
    x[90:] = torch.poisson(torch.full((10, 5), 6.0))
    nll = discrepancies.mean_negative_log_likelihood
    result = pop_pc(draws, x, per_group(nll, study), kind="plugin")
    assert result.p_two_sided.tolist()[0] == pytest.approx(2 / 200, abs=1e-4)  # "bad" is first
    assert result.p_two_sided[1] > 0.02
    assert pop_pc(draws, x, group_gap(nll, study)).p_value.item() == 0


def test_what_is_no_scalar_is_refused():
    x = torch.rand(3, 2)
    with pytest.raises(ValueError, match=r"zero_fraction must return a scalar tensor.*got \(1,\)"):
        per_feature(discrepancies.zero_fraction)(x, None)
    with pytest.raises(ValueError, match="<lambda> must return a scalar tensor.*got float"):
        per_group(lambda x, draw: 1.0, [0, 0, 1])(x, None)


def test_a_likelihood_without_marginals_cannot_be_split():
    law = Dirichlet(torch.ones(4, 3))
    draw = FunctionDraw(law.sample, lambda data: law)
    nll = discrepancies.mean_negative_log_likelihood
    with pytest.raises(TypeError, match="values per feature need the marginals.*Dirichlet"):
        per_feature(nll)(law.sample(), draw)
    x = law.sample()
    assert torch.allclose(per_unit(nll)(x, draw), -law.log_prob(x))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: per_feature([1.0]), "per_feature"),
        (lambda: per_unit([1.0]), "per_unit"),
        (lambda: per_group([1.0], [0, 1]), "per_group"),
        (lambda: group_gap([1.0], [0, 1]), "group_gap"),
    ],
)
def test_what_is_no_function_is_refused_before_it_is_called(make, name):
    with pytest.raises(TypeError, match=f"{name} needs a discrepancy, .* got list"):
        make()
