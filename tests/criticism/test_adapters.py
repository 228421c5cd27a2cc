import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, PredictiveDraw, from_arrays, from_callable, pop_pc
from probinterp.criticism.discrepancies import (
    mean,
    mean_negative_log_likelihood,
    zero_fraction,
)


def normal(location):
    return Independent(Normal(location, 1.0), 1)


def counts(seed):
    return np.random.default_rng(seed).poisson(1.0, size=(6, 5, 2))


def test_p_value_of_an_array_computed_by_hand(device):
    """Means of the replicates 1, 2, 2, 3, of the held-out data 2; no draw is set aside."""
    array = np.array([1.0, 2.0, 2.0, 3.0])[:, None, None] * np.ones((4, 4, 2))
    x = torch.full((4, 2), 2.0, dtype=torch.float64, device=device)
    result = pop_pc(from_arrays(array, device=device), x, mean)
    assert result.replicated.tolist() == [1.0, 2.0, 2.0, 3.0]
    assert result.p_value.item() == 0.75
    assert result.mc_error.item() == pytest.approx(math.sqrt(0.75 * 0.25 / 4), abs=1e-12)
    assert result.reference == "draws.reference"


def test_arrays_callables_and_hand_made_draws_agree():
    array, x = counts(0), torch.as_tensor(counts(1)[0]).double()
    by_seed = {}

    def replicate(seed):
        return by_seed.setdefault(seed, array[len(by_seed)])

    by_hand = [FunctionDraw(lambda r=r: torch.as_tensor(r).double(), normal) for r in array]
    expected = pop_pc(by_hand, x, zero_fraction, reference=by_hand[0])
    for draws in (from_arrays(array), from_callable(replicate, 6)):
        assert all(isinstance(draw, PredictiveDraw) for draw in draws)
        result = pop_pc(draws, x, zero_fraction)
        assert result.p_value.tolist() == expected.p_value.tolist()
        assert result.p_two_sided.tolist() == expected.p_two_sided.tolist()
        assert result.z.tolist() == expected.z.tolist()


def test_chunks_are_the_replicates_of_the_draws():
    array = counts(0)
    draws = from_arrays(array)
    assert len(draws) == 6
    assert draws.replicate_chunk(2, 5).tolist() == array[2:5].tolist()
    assert [draw.replicate().tolist() for draw in draws] == array.tolist()
    made = from_callable(lambda seed: np.random.default_rng(seed).normal(size=(3, 2)), 4, seed=1)
    one_by_one = torch.stack([draw.replicate() for draw in made])
    assert torch.equal(made.replicate_chunk(0, 4), one_by_one)
    assert len(one_by_one.unique()) == 24


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (0, 7)])
def test_chunks_outside_the_draws_are_refused(start, stop):
    with pytest.raises(IndexError, match=f"0 <= start < stop <= 6, got {start} to {stop}"):
        from_arrays(counts(0)).replicate_chunk(start, stop)


def test_a_file_is_read_in_pieces(tmp_path):
    array = counts(0).astype(np.float32)
    np.save(tmp_path / "replicated.npy", array)
    asked = []

    class Stored:
        shape, dtype = array.shape, array.dtype

        def __getitem__(self, index):
            asked.append(index)
            return np.load(tmp_path / "replicated.npy", mmap_mode="r")[index]

    draws = from_arrays(Stored())
    assert draws.replicate_chunk(2, 4).tolist() == array[2:4].tolist()
    assert [draw.replicate().tolist() for draw in draws] == array.tolist()
    assert asked == [slice(2, 4)] + [slice(s, s + 1) for s in range(6)]
    read_only = np.load(tmp_path / "replicated.npy", mmap_mode="r")
    assert from_arrays(read_only).replicate_chunk(0, 6).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (np.int64, None, torch.float64),
        (np.uint8, None, torch.float64),
        (np.bool_, None, torch.float64),
        (np.int32, torch.float32, torch.float32),
        (np.float32, None, torch.float32),
        (np.dtype(">f4"), None, torch.float32),
        (np.longdouble, None, torch.float64),
        (np.float64, torch.bfloat16, torch.bfloat16),
    ],
)
def test_floating_type_of_the_replicates(stored, asked, expected):
    array = np.array([0, 1, 1, 0], dtype=stored).reshape(2, 2, 1)
    draws = from_arrays(array, dtype=asked)
    assert draws.replicate_chunk(0, 2).dtype == expected
    assert draws.replicate_chunk(0, 2).flatten().tolist() == [0, 1, 1, 0]


def test_tensors_keep_their_type_unless_they_are_counts():
    assert from_arrays(torch.ones(2, 3, 1)).replicate_chunk(0, 2).dtype == torch.float32
    assert from_arrays(torch.ones(2, 3, 1).int()).replicate_chunk(0, 2).dtype == torch.float64
    learned = torch.ones(2, 3, 1, requires_grad=True)
    assert not from_arrays(learned).replicate_chunk(0, 2).requires_grad


def test_likelihood_knows_its_draw():
    """Location of draw s is s: the reference is the first draw, set aside, unless one is given."""
    array, x = np.zeros((4, 5, 1)), torch.zeros(5, 1, dtype=torch.float64)
    constant = 0.5 * math.log(2 * math.pi)
    draws = from_arrays(array, likelihood=lambda x, s: normal(torch.full_like(x, s)))
    values = [mean_negative_log_likelihood(x, draw).item() for draw in draws]
    assert values == pytest.approx([constant + s**2 / 2 for s in range(4)])
    assert pop_pc(draws, x, mean_negative_log_likelihood).n_draws == 3
    centred = from_arrays(array, reference=lambda x: normal(torch.full_like(x, 1.5)))
    result = pop_pc(centred, x, mean_negative_log_likelihood)
    assert result.n_draws == 4
    assert result.heldout.item() == pytest.approx(constant + 1.5**2 / 2)
    both = from_arrays(
        array, likelihood=lambda x, s: normal(torch.full_like(x, s)), reference=normal
    )
    assert pop_pc(both, x, mean_negative_log_likelihood).heldout.item() == pytest.approx(constant)


def test_likelihood_of_a_callable_gets_the_seed_that_replicated():
    def location(seed):
        return float(np.random.default_rng(seed).normal())

    draws = from_callable(
        lambda seed: np.full((2, 1), location(seed)),
        5,
        likelihood=lambda x, seed: normal(torch.full_like(x, location(seed))),
    )
    for draw in draws:
        x = draw.replicate()
        assert torch.equal(draw.likelihood(x).mean, x)
    repeated = [draw.replicate().tolist() for draw in draws]
    assert repeated == [draw.replicate().tolist() for draw in draws]


def test_facts_about_the_fit_reach_the_result():
    x = torch.as_tensor(counts(1)[0]).double()
    draws = from_arrays(counts(0), local="prior", n_obs=100, n_effective=2.5, point_estimate=True)
    result = pop_pc(draws, x, mean)
    assert (result.local, result.n_obs) == ("prior", 100)
    assert "Global parameters are point estimates." in result.notes
    assert draws.n_effective == 2.5
    with pytest.warns(match="local latents were inferred from the held-out rows"):
        labelled = pop_pc(from_arrays(counts(0), local="posterior"), x, mean)
    assert not labelled.calibrated


@pytest.mark.parametrize(
    "draws",
    [from_arrays(counts(0)), from_callable(lambda seed: counts(seed)[0], 6)],
    ids=["arrays", "callable"],
)
def test_without_a_likelihood_only_statistics_can_be_checked(draws):
    x = torch.as_tensor(counts(1)[0]).double()
    with pytest.raises(ValueError, match=r"only statistics.*Pass reference=.* or likelihood="):
        pop_pc(draws, x, mean_negative_log_likelihood)
    with pytest.raises(ValueError, match="the reference at the posterior mean scores data"):
        draws.reference.replicate()
    with pytest.raises(ValueError, match="these draws cannot score data"):
        next(iter(draws)).likelihood(x)


@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        (np.ones((3, 4)), ValueError, r"must have shape \(draws, units, features\).*\(3, 4\)"),
        (np.ones((0, 4, 1)), ValueError, r"not empty, got \(0, 4, 1\)"),
        ([[1.0]], TypeError, "replicated must be an array, got list"),
        (np.ones((1, 2, 1), dtype=complex), TypeError, "real numbers, got an array of complex128"),
        (torch.ones(1, 2, 1) * 1j, TypeError, "real numbers, got an array of torch.complex64"),
        (np.array([[["a"]]]), TypeError, "real numbers, got an array of <U1"),
    ],
)
def test_bad_arrays_are_refused(array, error, text):
    with pytest.raises(error, match=text):
        from_arrays(array)


def test_bad_options_are_refused():
    with pytest.raises(TypeError, match=r"dtype must be a floating type of torch, got torch.int64"):
        from_arrays(counts(0), dtype=torch.int64)
    with pytest.raises(ValueError, match="n_effective must be positive, got 0"):
        from_arrays(counts(0), n_effective=0)
    with pytest.raises(TypeError, match=r"function of a seed, got ndarray; for an array use from"):
        from_callable(counts(0), 6)
    with pytest.raises(ValueError, match="n_draws must be a positive integer, got 0"):
        from_callable(counts, 0)


@pytest.mark.parametrize(
    ("made", "error", "text"),
    [
        ([[1.0]], TypeError, r"replicate\(seed\) must return an array or a tensor, got list"),
        (np.ones(3), ValueError, r"data of shape \(units, features\), not empty, got \(3,\)"),
        (np.array([["a"]]), TypeError, "replicates must be real numbers"),
        (np.array([[np.nan]]), ValueError, "the replicate of draw 0 has NaN"),
    ],
)
def test_bad_replicates_are_refused_when_they_are_made(made, error, text):
    draws = from_callable(lambda seed: made, 3)
    with pytest.raises(error, match=text):
        next(iter(draws)).replicate()


def test_nan_is_found_with_the_draw_that_has_it():
    array = np.zeros((5, 2, 2))
    array[3, 1, 0] = np.nan
    with pytest.raises(ValueError, match="the replicate of draw 3 has NaN"):
        from_arrays(array).replicate_chunk(1, 5)


def test_exact_posterior_replicates_give_uniform_p_values():
    """Normal location, flat prior, n = 20 observed and 20 held-out rows, 400 data sets."""
    random, p = np.random.default_rng(0), []
    for seed in range(400):
        observed, held_out = random.normal(size=(2, 20))
        location = observed.mean() + random.normal(size=(99, 1, 1)) / math.sqrt(20)
        draws = from_arrays(location + random.normal(size=(99, 20, 1)))
        x = torch.as_tensor(held_out[:, None])
        p.append(pop_pc(draws, x, mean, seed=seed).p_rank.item())
    assert stats.kstest(p, "uniform").statistic < 0.111
