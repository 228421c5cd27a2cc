import time

import joblib
import pytest
import torch

from probinterp.criticism.parallel import seeded_map, spawn_seeds


def draw(item, seed):
    torch.manual_seed(seed)
    time.sleep(0.002)  # lets other threads in, if they were let in
    return item, torch.rand(3).tolist()


def draw_many(item, seed):
    return seeded_map(draw, range(3), seed=seed, n_jobs=2)


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
@pytest.mark.parametrize("task", [draw, draw_many])
def test_every_backend_gives_the_same_bits_nested_or_not(backend, task):
    expected = [task(item, seed) for item, seed in enumerate(spawn_seeds(5, 6))]
    with joblib.parallel_config(backend=backend):
        assert seeded_map(task, range(6), seed=5, n_jobs=2) == expected


def test_a_failed_task_lets_the_next_ones_run():
    def fail(item, seed):
        raise ValueError(f"task {item}")

    with pytest.raises(ValueError, match="task 0"):
        seeded_map(fail, range(2), seed=0)
    assert len(seeded_map(draw, range(2), seed=0)) == 2


def test_seeds_are_distinct_and_do_not_depend_on_how_many_there_are():
    assert spawn_seeds(3, 5)[:2] == spawn_seeds(3, 2)
    assert len(set(spawn_seeds(3, 1000))) == 1000
    assert all(0 <= seed < 2**32 for seed in spawn_seeds(3, 10))


def careless(item, seed):
    return torch.rand(3).tolist()


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
def test_tasks_that_ignore_their_seed_have_one_all_the_same(backend):
    expected = [
        torch.rand(3, generator=torch.Generator().manual_seed(s)) for s in spawn_seeds(5, 4)
    ]
    state = torch.get_rng_state()
    with joblib.parallel_config(backend=backend):
        found = seeded_map(careless, range(4), seed=5, n_jobs=2)
    assert found == [values.tolist() for values in expected]
    assert torch.equal(torch.get_rng_state(), state)
