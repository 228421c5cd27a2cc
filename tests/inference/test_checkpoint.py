"""Saved models: complete, exact, and never silently different."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from probinterp.inference import fit, load, posterior, predictive_draws, save
from probinterp.inference.checkpoint import read_config
from probinterp.inference.data import data_of
from probinterp.inference.storage import write_atomically
from probinterp.likelihoods import NegativeBinomialLikelihood
from probinterp.models import VAE, ProbabilisticModel

sys.path.append(str(Path(__file__).parents[1] / "models"))
from cases import MODELS, batch_for  # noqa: E402


@pytest.mark.parametrize("name", MODELS)
def test_every_model_survives_a_round_trip(name, tmp_path):
    torch.manual_seed(0)
    model, batch = MODELS[name](), batch_for(name)
    history = fit(model, data_of(batch), max_epochs=4, progress=False)
    save(model, tmp_path / "model", history)
    again = load(tmp_path / "model")
    assert again.configuration == model.configuration
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[k], other[k]) for k in state)
    found, expected = posterior(again, batch), posterior(model, batch)
    assert all(torch.equal(found[name].mean, expected[name].mean) for name in expected)
    draws = [next(iter(predictive_draws(m, batch, 1, seed=7))) for m in (model, again)]
    assert torch.equal(draws[0].replicate(), draws[1].replicate())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    files = sorted(p.name for p in (tmp_path / "model").iterdir())
    assert files == ["config.json", "history.csv", "params.safetensors"]
    config = read_config(tmp_path / "model")
    assert config["fit"]["stopped"] == "max_epochs"
    assert config["fit"]["settings"]["n_obs"] == 40


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = VAE(6, 2, n_hidden=8, likelihood=NegativeBinomialLikelihood(6))
    return save(model, tmp_path / "model")


def test_byte_flips_never_load_silently_different(saved):
    reference = load(saved).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name in ("params.safetensors", "config.json"):
        original = (saved / name).read_bytes()
        for _ in range(100):
            position = int(torch.randint(len(original), (), generator=generator))
            bit = 1 << int(torch.randint(8, (), generator=generator))
            damaged = bytearray(original)
            damaged[position] ^= bit
            (saved / name).write_bytes(bytes(damaged))
            try:
                found = load(saved).state_dict()
            except ValueError:
                continue
            assert all(torch.equal(reference[k], found[k]) for k in reference), (name, position)
        (saved / name).write_bytes(original)


HOSTILE = {
    "an unknown class": ({"class": "os.system", "arguments": {"command": "id"}}, "no class"),
    "a class that is no model": (
        {"class": "GaussianLikelihood", "arguments": {"n_features": 2}},
        "not a model",
    ),
    "an unknown argument": (
        {"class": "VAE", "arguments": {"n_features": 2, "exec": "id"}},
        "cannot make VAE again",
    ),
    "no description": ("VAE", "is damaged"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configurations_are_refused(saved, case):
    described, text = HOSTILE[case]
    config = json.loads((saved / "config.json").read_text())
    config["model"] = described
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=text):
        load(saved)


def test_damaged_and_missing_files_say_so(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a saved model"):
        load(tmp_path / "nothing")
    (saved / "params.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing or differs from the checksum"):
        load(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load(saved)
    (saved / "config.json").write_text(
        '{"format": 99, "checksum": "", "model": {"class": "VAE", "arguments": {}}}'
    )
    with pytest.raises(ValueError, match="has format 99; this version of probinterp reads 1"):
        load(saved)


def test_existing_directories_are_replaced_only_on_request(saved, tmp_path):
    other = VAE(6, 2, n_hidden=8)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        save(other, saved)
    save(other, saved, overwrite=True)
    assert torch.equal(load(saved).decoder[0].weight, other.decoder[0].weight)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="is not a saved model: not replaced"):
        save(other, tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "x"


def test_a_replacement_that_was_cut_between_its_renames_is_found(saved):
    saved.rename(saved.with_name(".model.replaced"))
    assert isinstance(load(saved), VAE)


def test_failed_writes_leave_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def failing(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, failing)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


class Custom(ProbabilisticModel):
    """A user's model that keeps a tensor among its arguments."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights))

    def model(self, batch, n_total=None):
        raise AssertionError

    guide = model


def test_users_models_are_saved_with_plain_arguments(tmp_path):
    save(Custom([1.0, 2.0]), tmp_path / "good")
    assert load(tmp_path / "good").weights.tolist() == [1.0, 2.0]
    with pytest.raises(TypeError, match=r"cannot save Custom.arguments.weights: expected a number"):
        save(Custom(torch.ones(2)), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
