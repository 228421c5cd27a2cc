import pytest
import torch
from torch.distributions import (
    Exponential,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
)

from probinterp.criticism import discrepancies, tiles

ONES = torch.ones(50, 7, dtype=torch.float64)
LAWS = {
    "normal": Normal(0.3 * ONES, torch.linspace(1, 2, 7).double()),
    "normal, scales of the units": Normal(0.3 * ONES, torch.linspace(1, 2, 50)[:, None].double()),
    "laplace": Laplace(0.3 * ONES, 2 * ONES),
    "log-normal": LogNormal(0.3 * ONES, 0.5 * ONES),
    "student": StudentT(5.0, 0.3 * ONES, 2 * ONES),
    "gamma": Gamma(2 * ONES, 3 * ONES),
    "exponential": Exponential(2 * ONES),
    "poisson": Poisson(2 * ONES),
}


@pytest.mark.parametrize("name", LAWS)
def test_tiles_give_the_density_of_the_whole(name, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_VALUES", 60)  # eight rows a tile
    law = Independent(LAWS[name], 1)
    x = law.sample()
    torch.testing.assert_close(tiles.log_density(law, x), law.log_prob(x), rtol=1e-12, atol=1e-12)


def test_other_laws_are_scored_whole(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_VALUES", 60)
    law = MultivariateNormal(torch.zeros(50, 7), torch.eye(7))
    x = law.sample()
    assert torch.equal(tiles.log_density(law, x), law.log_prob(x))
    twice = Independent(Normal(torch.zeros(2, 50, 7), 1.0), 2)
    assert tiles.log_density(twice, torch.zeros(2, 50, 7)).shape == (2,)


def test_laws_that_score_in_their_own_way_are_asked_themselves(monkeypatch):
    class Doubled(Normal):
        def log_prob(self, value):
            return 2 * super().log_prob(value)

    monkeypatch.setattr(tiles, "TILE_VALUES", 60)
    law = Independent(Doubled(torch.zeros(50, 7), 1.0), 1)
    x = law.sample()
    assert torch.equal(tiles.log_density(law, x), law.log_prob(x))


@pytest.mark.parametrize(("name", "value"), [("poisson", 1.5), ("gamma", -1.0), ("normal", -1.0)])
@pytest.mark.parametrize("validated", [True, False])
def test_values_out_of_the_support_are_refused_as_they_are_in_small_data(
    name, value, validated, monkeypatch
):
    """A Poisson law gives log-normalised counts a density if nobody looks."""
    monkeypatch.setattr(tiles, "TILE_VALUES", 60)
    base, x = LAWS[name], torch.full((50, 7), value, dtype=torch.float64)
    parameters = {p: getattr(base, p) for p in tiles.PARAMETERS[type(base)]}
    law = Independent(type(base)(**parameters, validate_args=validated), 1)
    if validated and name != "normal":
        with pytest.raises(ValueError, match="to be within the support"):
            tiles.log_density(law, x)
    else:
        torch.testing.assert_close(tiles.log_density(law, x), law.log_prob(x), equal_nan=True)


def test_column_statistics_do_not_depend_on_the_tiles(monkeypatch):
    x = torch.poisson(torch.full((50, 7), 1.3, dtype=torch.float64))
    whole = [d(x, None) for d in (discrepancies.feature_variance, discrepancies.zero_fraction)]
    monkeypatch.setattr(tiles, "TILE_VALUES", 60)
    tiled = [d(x, None) for d in (discrepancies.feature_variance, discrepancies.zero_fraction)]
    torch.testing.assert_close(tiled[0], whole[0], rtol=1e-13, atol=0)
    assert torch.equal(tiled[1], whole[1])
    torch.testing.assert_close(whole[0], x.var(0, correction=0))
    assert [len(rows) for rows in tiles.row_tiles(x)] == [8] * 6 + [2]
