"""The training loop: reproducible, interruptible, resumable, and loud about bad numbers."""

import math
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from probinterp import simulate
from probinterp.inference import (
    ArrayData,
    Checkpoint,
    EarlyStopping,
    NonFiniteError,
    cosine,
    fit,
    fit_restarts,
    full_objective,
)
from probinterp.inference.data import csr_tensor, minibatch_order
from probinterp.inference.elbo import heldout_loss
from probinterp.inference.svi import resolve_device
from probinterp.likelihoods import NegativeBinomialLikelihood
from probinterp.models import VAE, FactorAnalysis, SparseVAE


@pytest.fixture
def data():
    return ArrayData(simulate.factor_analysis(150, 6, 2, seed=4).x)


def made(seed=0, cls=FactorAnalysis):
    torch.manual_seed(seed)
    return SparseVAE(6, 3, n_hidden=8) if cls is SparseVAE else cls(6, 2)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("cls", [FactorAnalysis, VAE, SparseVAE])
def test_same_seed_same_bits_and_the_callers_random_state_is_left_alone(data, cls):
    first, second, third = made(cls=cls), made(cls=cls), made(cls=cls)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    fit(first, data, max_epochs=4, batch_size=40, seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    fit(second, data, max_epochs=4, batch_size=40, seed=3, progress=False)
    fit(third, data, max_epochs=4, batch_size=40, seed=4, progress=False)
    assert_same_bits(weights(first), weights(second))
    assert any(not torch.equal(v, weights(third)[k]) for k, v in weights(first).items())


@pytest.mark.parametrize("block_size", [1, 8])
def test_every_observation_stands_in_one_minibatch(block_size):
    order = minibatch_order(101, 20, seed=1, epoch=2, block_size=block_size)
    assert sorted(torch.cat(order).tolist()) == list(range(101))
    assert [len(batch) for batch in order] == [20, 20, 20, 20, 21]
    again = minibatch_order(101, 20, seed=1, epoch=2, block_size=block_size)
    assert all(torch.equal(a, b) for a, b in zip(order, again, strict=True))
    other = minibatch_order(101, 20, seed=1, epoch=3, block_size=block_size)
    assert not torch.equal(order[0], other[0])


def test_sparse_rows_give_the_same_fit_as_dense_ones():
    counts = simulate.sparse_counts(60, 12, 2, seed=0)
    fitted = []
    rows, columns = counts.x.nonzero(as_tuple=True)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), rows.bincount(minlength=60).cumsum(0)])
    sparse = csr_tensor(crow, columns, counts.x[rows, columns], tuple(counts.x.shape))
    for x in (counts.x, sparse):
        torch.manual_seed(0)
        model = VAE(12, 2, n_hidden=8, likelihood=NegativeBinomialLikelihood(12))
        source = ArrayData(x, counts.size_factor)
        fit(model, source, max_epochs=3, batch_size=25, progress=False)
        fitted.append(weights(model))
    assert_same_bits(*fitted)


class Interrupting(ArrayData):
    """Data that raise after a number of minibatches."""

    def __init__(self, x, after, error):
        super().__init__(x)
        self.after, self.error = after, error

    def batch(self, index=None):
        self.after -= 1
        if self.after < 0:
            raise self.error
        return super().batch(index)


@pytest.mark.parametrize("cls", [FactorAnalysis, VAE, SparseVAE])
@pytest.mark.parametrize("after", [1, 7, 13])
def test_resume_after_a_crash_gives_the_same_bits(data, tmp_path, cls, after):
    options = {
        "max_epochs": 5,
        "batch_size": 40,
        "seed": 2,
        "progress": False,
        "schedule": cosine,
        "max_grad_norm": 5.0,
    }
    whole = made(cls=cls)
    history = fit(whole, data, **options, heldout=data, early_stopping=EarlyStopping(every=1))
    crashed, path = made(cls=cls), Checkpoint(tmp_path / "state", every_minutes=0)
    source = Interrupting(data.x, after + 1, RuntimeError("power cut"))  # + 1: initialisation
    with pytest.raises(RuntimeError, match="power cut"):
        fit(
            crashed,
            source,
            **options,
            checkpoint=path,
            heldout=data,
            early_stopping=EarlyStopping(every=1),
        )
    resumed = made(seed=99, cls=cls)
    again = fit(
        resumed,
        data,
        **options,
        checkpoint=path,
        heldout=data,
        early_stopping=EarlyStopping(every=1),
    )
    assert_same_bits(weights(whole), weights(resumed))
    assert [r[:4] for r in history.records] == [r[:4] for r in again.records]


SCRIPT = """
    import sys, torch
    torch.set_num_threads(1)
    from probinterp import simulate
    from probinterp.inference import ArrayData, Checkpoint, fit
    from probinterp.models import SparseVAE
    torch.manual_seed(0)
    model = SparseVAE(7, 3, n_hidden=16)
    data = ArrayData(simulate.sparse_vae_toy(n=200, seed=1).x)
    checkpoint = Checkpoint(sys.argv[1], every_minutes=0)
    print("start", flush=True)
    fit(model, data, max_epochs=60, batch_size=50, seed=5, checkpoint=checkpoint, progress=False)
    torch.save({k: v for k, v in model.state_dict().items()}, sys.argv[2])
"""


@pytest.mark.engine
def test_kill_during_fit_then_resume_equals_an_uninterrupted_run(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def start(state, out):
        command = [sys.executable, str(script), str(tmp_path / state), str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("straight", "straight.pt") as straight:
        assert straight.wait(timeout=120) == 0
    for delay in (0.15, 0.3):  # killed twice, then left to finish
        with start("killed", "killed.pt") as process:
            assert process.stdout.readline() == "start\n"
            deadline = time.monotonic() + 60
            while not (tmp_path / "killed").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    with start("killed", "killed.pt") as last:
        assert last.wait(timeout=120) == 0
    assert_same_bits(
        torch.load(tmp_path / "straight.pt", weights_only=True),
        torch.load(tmp_path / "killed.pt", weights_only=True),
    )


def test_a_finished_checkpoint_returns_at_once(data, tmp_path):
    first, second = made(), made(seed=9)
    options = {"max_epochs": 3, "batch_size": 50, "progress": False, "checkpoint": tmp_path / "c"}
    fit(first, data, **options)
    history = fit(second, data, **options)
    assert_same_bits(weights(first), weights(second))
    assert len(history.records) == 3


def test_a_checkpoint_of_another_fit_is_refused(data, tmp_path):
    options = {"batch_size": 50, "progress": False, "checkpoint": tmp_path / "c"}
    fit(made(), data, max_epochs=2, **options)
    with pytest.raises(ValueError, match="belongs to another fit: its settings"):
        fit(made(), data, max_epochs=3, **options)
    with pytest.raises(ValueError, match="belongs to another fit: its seed"):
        fit(made(), data, max_epochs=2, seed=1, **options)
    with pytest.raises(ValueError, match="belongs to another fit: its model"):
        fit(FactorAnalysis(6, 3), data, max_epochs=2, **options)
    (tmp_path / "c").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is damaged or not written by probinterp"):
        fit(made(), data, max_epochs=2, **options)


def test_keyboard_interrupt_keeps_what_was_learned(data):
    model, reference = made(), made()
    source = Interrupting(data.x, 9, KeyboardInterrupt())  # initialisation + 8 of 4 per epoch
    history = fit(model, source, max_epochs=50, batch_size=40, progress=False)
    assert history.stopped == "interrupted"
    assert len(history.records) == 2
    start = {name: value.clone() for name, value in reference.state_dict().items()}
    assert not torch.equal(model.state_dict()["loadings"], start["loadings"])
    assert all(torch.isfinite(value).all() for value in weights(model).values())


def test_early_stopping_restores_the_best_weights(data):
    model = VAE(6, 2, n_hidden=64, kl_warmup=0.0)
    train, heldout = data.subset(torch.arange(40)), data.subset(torch.arange(40, 150))
    rule = EarlyStopping(patience=3, every=2, after=0.0)
    history = fit(
        model,
        train,
        max_epochs=400,
        batch_size=40,
        heldout=heldout,
        early_stopping=rule,
        progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    evaluated = {r.epoch: r.heldout_loss for r in history.records if r.heldout_loss is not None}
    assert history.stopped == "early_stopping"
    assert history.best_epoch == min(evaluated, key=evaluated.get)
    assert len(history.records) - 1 == history.best_epoch + 3 * 2
    loss = heldout_loss(model, heldout, 40, torch.device("cpu"), 0)
    assert loss == pytest.approx(evaluated[history.best_epoch], rel=1e-6)


def test_heldout_loss_of_the_exact_model_is_its_evidence():
    truth = simulate.factor_analysis(500, 6, 2, seed=4)
    model, data = made(), ArrayData(truth.x)
    model.initialize(data.batch(), 500)
    with torch.no_grad():
        covariance, gain = model._posterior_terms()
        model.encoder.copy_(gain * model.likelihood.spread)
        model.raw_scale.copy_(torch.linalg.cholesky(covariance))
    exact = -model.log_marginal_likelihood(truth.x).mean().item()
    losses = [heldout_loss(model, data, 64, torch.device("cpu"), seed) for seed in range(20)]
    assert sum(losses) / 20 == pytest.approx(exact, abs=0.02)
    assert full_objective(model, data, n_samples=20) == pytest.approx(-exact, abs=0.02)


@pytest.mark.parametrize("where", ["data", "parameter", "gradient"])
def test_non_finite_numbers_stop_the_fit_and_name_the_culprit(data, where):
    model = made(cls=VAE)
    source, poison = data, None
    if where == "data":
        x = data.x.clone()
        x[77, 2] = float("nan")
        source = ArrayData(x)
        expected = "the observations hold NaN or infinite values"
    elif where == "parameter":
        expected = "parameter 'decoder.0.weight' is not finite"
    else:
        poison = model.encoder.loc.weight.register_hook(lambda g: g * float("inf"))
        expected = "the gradient of 'encoder.loc.weight' is not finite"
    if where == "parameter":
        with torch.no_grad():
            model.decoder[0].weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=expected):
        fit(model, source, max_epochs=2, batch_size=50, progress=False)
    if poison is not None:
        assert all(torch.isfinite(value).all() for value in weights(model).values())


def test_an_overflowing_site_is_named(data):
    model = made(cls=VAE)
    fit(model, data, max_epochs=1, progress=False)
    with torch.no_grad():
        model.likelihood.log_scale.fill_(-200.0)
    model.initialize = lambda batch, n_total: None
    with pytest.raises(NonFiniteError, match="site 'x' of the model has a log density"):
        fit(model, data, max_epochs=1, progress=False)


@pytest.mark.parametrize("cls", [FactorAnalysis, SparseVAE])
def test_a_second_fit_goes_on_where_the_first_ended(data, cls):
    model = made(cls=cls)
    first = fit(model, data, max_epochs=40, batch_size=50, progress=False)
    before = weights(model)
    tiny = lambda p: torch.optim.SGD(p, lr=1e-12)  # noqa: E731
    fit(model, data, max_epochs=1, batch_size=50, progress=False, optimizer=tiny)
    for name, value in weights(model).items():
        if "rate" not in name and name not in ("sparse.penalty", "kl_weight"):
            torch.testing.assert_close(value, before[name], msg=name)
    assert len(first.records) == 40


def test_gradient_clipping_bounds_the_step(data):
    norms = []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))
            return super().step(closure)

    fit(
        made(),
        data,
        max_epochs=2,
        batch_size=50,
        max_grad_norm=0.01,
        progress=False,
        optimizer=lambda p: Recording(p, lr=1e-3),
    )
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_stays_close_to_float32(data):
    losses = []
    for precision in ("fp32", "bf16"):
        model = made(cls=VAE)
        history = fit(model, data, max_epochs=30, precision=precision, progress=False)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        losses.append(history.records[-1].loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_cosine_schedule_sets_the_learning_rate(data):
    history = fit(made(), data, max_epochs=4, batch_size=150, schedule=cosine, progress=False)
    expected = [5e-3 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert [r.learning_rate for r in history.records] == pytest.approx(expected)


def test_restarts_keep_the_largest_objective(data):
    result = fit_restarts(
        lambda: VAE(6, 2, n_hidden=8),
        data,
        seeds=(0, 1, 2),
        max_epochs=5,
        batch_size=50,
        progress=False,
    )
    assert result.objectives[result.best_index] == max(result.objectives)
    assert result.best is result.models[result.best_index]
    for model, objective, seed in zip(result.models, result.objectives, result.seeds, strict=True):
        assert full_objective(model, data, seed=seed) == pytest.approx(objective, rel=1e-6)
    assert len(set(result.objectives)) == 3


def test_history_frame_and_text(data):
    history = fit(made(), data, max_epochs=5, batch_size=50, heldout=data, progress=False)
    frame = history.to_frame()
    assert list(frame.index) == [0, 1, 2, 3, 4]
    assert frame["heldout_loss"].notna().tolist() == [False] * 4 + [True]
    assert frame["loss"].tolist() == [r.loss for r in history.records]
    assert "5 epochs (max_epochs)" in str(history)


BAD_OPTIONS = [
    ({"max_epochs": 0}, ValueError, "max_epochs must be a positive integer, got 0"),
    ({"max_epochs": 2.5}, ValueError, "max_epochs must be a positive integer, got 2.5"),
    ({"batch_size": -1}, ValueError, "batch_size must be a positive integer, got -1"),
    ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be positive or None, got 0.0"),
    ({"precision": "fp16"}, ValueError, 'must be "fp32" or "bf16", got \'fp16\''),
    ({"early_stopping": EarlyStopping()}, ValueError, "early_stopping needs heldout data"),
    ({"early_stopping": EarlyStopping(patience=0)}, ValueError, "patience must be at least 1"),
    ({"early_stopping": EarlyStopping(min_delta=-1)}, ValueError, "min_delta must not be neg"),
    ({"early_stopping": EarlyStopping(after=2)}, ValueError, "after must be a share"),
    ({"device": "nonsense"}, ValueError, "device must be auto, cpu, cuda or cuda:0, got .nonsense"),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD_OPTIONS)
def test_bad_options_are_refused_before_the_first_step(data, options, error, text):
    model = made()
    before = weights(model)
    with pytest.raises(error, match=text):
        fit(model, data, progress=False, **options)
    assert_same_bits(before, weights(model))


def test_bad_data_are_refused(data):
    with pytest.raises(TypeError, match=r"must have len\(\) and batch\(index\), got Tensor"):
        fit(made(), torch.zeros(3, 6))
    with pytest.raises(ValueError, match="at least one observation, got none"):
        fit(made(), ArrayData(torch.zeros(0, 6)))
    with pytest.raises(ValueError, match=r"size_factor must have shape \(3,\), got \(2,\)"):
        ArrayData(torch.zeros(3, 6), torch.ones(2))
    with pytest.raises(ValueError, match=r"x must have shape \(N, G\), got \(3,\)"):
        ArrayData(torch.zeros(3))
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        ArrayData([[1.0]])
    with pytest.raises(ValueError, match="seeds must be distinct and not empty, got"):
        fit_restarts(made, data, seeds=(1, 1))
    with pytest.raises(ValueError, match="seed belongs to a single fit"):
        fit_restarts(made, data, seed=1)
    with pytest.raises(ValueError, match="every_minutes must not be negative, got -1"):
        Checkpoint("x", every_minutes=-1)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            resolve_device("cuda")
