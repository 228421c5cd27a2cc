import math
import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats
from torch.distributions import Normal, Poisson

from probinterp.criticism import LocalDoubleUseWarning, PointEstimateWarning, pop_pc
from probinterp.criticism.discrepancies import chi_square, mean, mean_negative_log_likelihood
from probinterp.genomics import from_posterior_predictive_sample

N_CELLS, N_GENES = 400, 4


def cells(matrix=np.asarray):
    counts = np.random.default_rng(0).poisson(3.0, (N_CELLS, N_GENES)).astype("f4")
    return ad.AnnData(matrix(counts))


class Sampler:
    """Replicates a cell as Poisson around its own counts, like an autoencoder that fits well."""

    def __init__(self, adata, train=None):
        self.adata, self.train_indices, self.asked = adata, train, []

    def posterior_predictive_sample(self, adata, *, indices, n_samples):
        self.asked.append((len(indices), n_samples))
        x = adata.X[indices]
        return torch.poisson(torch.as_tensor(x.toarray() if sp.issparse(x) else x)).numpy()


class VAE(torch.nn.Module):
    """The interface of the module of scvi-tools: log rate = z + log library, q(z | x) = N(1, 0)."""

    class z_encoder:  # noqa: N801
        @staticmethod
        def z_transformation(z):
            return z

    def __init__(self, library_is_latent=False):
        super().__init__()
        self.library_is_latent = library_is_latent

    def _get_inference_input(self, tensors):
        return {"x": tensors["X"]}

    def inference(self, x):
        qz = Normal(torch.ones(len(x), 1), 1e-6)
        return {"z": qz.sample(), "qz": qz, "ql": None, "library": x.sum(1, keepdim=True).log()}

    def _get_generative_input(self, tensors, inferred):
        return {"z": inferred["z"], "library": inferred["library"]}

    def generative(self, z, library):
        px = Poisson((0.5 * z + library).exp().expand(-1, N_GENES) / N_GENES)
        prior = Normal(torch.full_like(library, math.log(50)), 1e-6)
        return {"px": px, "pl": prior if self.library_is_latent else None}


class Autoencoder(Sampler):
    """A sampler with a module and the loaders of scvi-tools."""

    def __init__(self, adata, train=None, *, module):
        super().__init__(adata, train)
        self.module = module

    def _validate_anndata(self, adata):
        return adata

    def _make_data_loader(self, adata, indices, batch_size):
        for start in range(0, len(indices), batch_size):
            yield {"X": torch.as_tensor(adata.X[indices[start : start + batch_size]])}


@pytest.mark.parametrize("matrix", [np.asarray, sp.csr_matrix])
def test_samples_of_the_posterior_predictive_are_labelled(matrix):
    model = Sampler(cells(matrix), np.arange(200))
    indices = [399, 200, 300]
    draws, x = from_posterior_predictive_sample(
        model, indices=indices, n_draws=60, local="posterior"
    )
    dense = model.adata.X.toarray() if sp.issparse(model.adata.X) else model.adata.X
    assert x.tolist() == dense[indices].tolist()
    with pytest.warns(LocalDoubleUseWarning, match="inferred from the held-out rows themselves"):
        result = pop_pc(draws, x, mean)
    assert not result.calibrated
    assert (result.local, result.n_obs, result.n_draws) == ("posterior", 200, 60)
    assert set(model.asked) == {(3, 1)}
    assert abs(result.z.item()) < 1  # replicates lie around the very cells
    with pytest.raises(ValueError, match="these draws cannot score data"):
        draws.reference.likelihood(x)


def test_same_seed_same_replicates_and_the_caller_keeps_the_generator():
    model, state = Sampler(cells()), torch.get_rng_state()

    def replicates(seed):
        draws, _ = from_posterior_predictive_sample(
            model, indices=[0, 1], n_draws=3, local="posterior", seed=seed
        )
        return torch.stack([draw.replicate() for draw in draws])

    assert torch.equal(replicates(1), replicates(1))
    assert not torch.equal(replicates(1), replicates(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_module_the_prior_is_refused():
    for model in (Sampler(cells()), Autoencoder(cells(), module=torch.nn.Linear(1, 1))):
        with pytest.raises(TypeError, match="cannot be drawn from their prior here.*no calibrated"):
            from_posterior_predictive_sample(model, indices=[0], n_draws=3)


@pytest.mark.parametrize("library_is_latent", [False, True])
def test_latents_from_the_prior(library_is_latent):
    """Row sums have mean l E exp(z / 2) = l exp(1 / 8), l observed or 50; q would give more."""
    model = Autoencoder(cells(), np.arange(200), module=VAE(library_is_latent))
    draws, x = from_posterior_predictive_sample(
        model, indices=np.arange(200, 400), n_draws=200, batch_size=64
    )
    assert draws.local == "prior"
    assert draws.point_estimate
    depth = 50.0 if library_is_latent else x.sum(1).mean().item()
    sums = draws.replicate_chunk(0, 200).sum(2).mean(1)
    error = sums.std().item() / math.sqrt(200)
    assert sums.mean().item() == pytest.approx(depth * math.exp(1 / 8), abs=4 * error)
    assert depth * math.exp(1 / 2) > sums.mean().item() + 20 * error


def test_likelihood_has_its_latents_inferred_from_the_data_it_scores():
    model = Autoencoder(cells(), module=VAE())
    draws, x = from_posterior_predictive_sample(
        model, indices=np.arange(10), n_draws=50, batch_size=4
    )
    twice = 2 * x + 1
    rate = math.exp(0.5) * twice.sum(1, keepdim=True).numpy() / N_GENES
    law = draws.reference.likelihood(twice)
    expected = stats.poisson(rate).logpmf(twice.numpy()).sum(1)
    assert law.log_prob(twice).numpy() == pytest.approx(expected, rel=1e-5)
    assert law.variance.numpy() == pytest.approx(np.broadcast_to(rate, (10, 4)), rel=1e-5)
    for discrepancy in (mean_negative_log_likelihood, chi_square):
        with pytest.warns(PointEstimateWarning, match="Global parameters are point estimates"):
            assert pop_pc(draws, x, discrepancy).n_draws == 50


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"indices": [0]}, ValueError, "1 of 1 cells are among the model's train_indices"),
        ({"indices": [300, 300]}, ValueError, "indices holds cells twice"),
        ({"indices": [400]}, ValueError, "indices must lie in 0 to 399"),
        ({"indices": []}, ValueError, "indices must be a list of positions, not empty"),
        ({"indices": [True]}, ValueError, "of bool"),
        ({"local": "observed"}, ValueError, "local must be 'prior' or 'posterior'"),
    ],
)
def test_bad_arguments_are_refused(options, error, text):
    model = Sampler(cells(), np.arange(200))
    options = {"indices": [300], "n_draws": 3, "local": "posterior"} | options
    with pytest.raises(error, match=text):
        from_posterior_predictive_sample(model, **options)


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="object has no method posterior_predictive_sample"):
        from_posterior_predictive_sample(object(), cells(), indices=[0], n_draws=3)
    model = Sampler(cells())
    model.is_trained = False
    with pytest.raises(ValueError, match="the Sampler is not fitted yet"):
        from_posterior_predictive_sample(model, indices=[0], n_draws=3)


def test_cells_of_another_object_cannot_be_fitted_ones():
    model = Sampler(cells(), np.arange(200))
    _, x = from_posterior_predictive_sample(
        model, cells(), indices=[0], n_draws=3, local="posterior"
    )
    assert x.shape == (1, N_GENES)


@pytest.fixture(scope="module", params=["zinb", "nb", "poisson"])
def fitted_scvi(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi = pytest.importorskip(
            "scvi", reason="scvi-tools is not installed", exc_type=ImportError
        )
        scvi.settings.seed = 0
        adata = cells()
        adata.obs["batch"] = np.resize(["a", "b"], N_CELLS)
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = scvi.model.SCVI(adata, n_hidden=16, n_latent=2, gene_likelihood=request.param)
        quiet = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
        model.train(max_epochs=40, train_size=0.9, validation_size=0.1, **quiet)
    return model


@pytest.mark.parametrize("local", ["prior", "posterior"])
def test_a_model_of_scvi_tools(fitted_scvi, local):
    """Independent Poisson counts: the mean count of a cell is its observed library size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws, x = from_posterior_predictive_sample(
            fitted_scvi, indices=fitted_scvi.validation_indices, n_draws=50, local=local
        )
        result = pop_pc(draws, x, mean)
        scored = pop_pc(draws, x, chi_square)
        law = draws.reference.likelihood(x)
    assert x.shape == (40, N_GENES)
    assert (result.n_obs, result.local) == (360, local)
    assert abs(result.z.item()) < 4
    assert torch.isfinite(scored.replicated).all()
    sampled = draws.replicate_chunk(0, 50)
    assert law.mean.mean().item() == pytest.approx(sampled.mean().item(), rel=0.1)
