"""The generators of one model each give the numbers that published figures were made with."""

import pytest
import torch

from probinterp import simulate

SUMS = {  # sum and sum of squares of x under seed 7
    "sparse_vae_toy": (lambda: simulate.sparse_vae_toy(0.3, 200, seed=7), 762.48124, 24556.46434),
    "sparse_decoder": (lambda: simulate.sparse_decoder(100, 20, 3, seed=7), 176.78463, 1598.73826),
    "factor_analysis": (lambda: simulate.factor_analysis(100, 8, 3, seed=7), -139.2923, 2819.15596),
    "sparse_counts": (lambda: simulate.sparse_counts(100, 20, 3, seed=7), 7171, 96675),
    "topics": (lambda: simulate.topics(50, seed=7), 4910, 13402),
    "bursts": (lambda: simulate.topics(50, burst_concentration=20.0, seed=7), 5045, 20711),
}


@pytest.mark.parametrize(("make", "total", "square"), SUMS.values(), ids=SUMS)
def test_numbers_of_a_seed_stay(make, total, square):
    x = make().x.double()
    assert x.sum().item() == pytest.approx(total, rel=1e-6)
    assert x.square().sum().item() == pytest.approx(square, rel=1e-6)


def test_all_names_are_public():
    missing = [name for name in simulate.__all__ if not callable(getattr(simulate, name))]
    assert missing == []
    assert len(simulate.__all__) == 14


def test_generators_leave_the_global_stream_alone():
    state = torch.get_rng_state()
    simulate.multistudy(likelihood="negative_binomial", n_obs=20)
    simulate.linear_multistudy()
    simulate.platelet_like(n_features=200)
    assert torch.equal(torch.get_rng_state(), state)
