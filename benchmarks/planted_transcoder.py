"""Find planted features of three layers with every activation, over five seeds.

Each transcoder trains on 5,000 fresh batches of 512 tokens and is scored on 20,000 others: error
of the outputs with the sparse codes, number of active codes a layer, F1 score of which features
are active, and mean largest cosine of the decoders; with a prior of the decoders also precision
and recall of which layers the matched latents write to. The study appends one row a variant and
seed and leaves out those that are there.

    python benchmarks/planted_transcoder.py                          # all variants
    python benchmarks/planted_transcoder.py --variants B A --seeds 0
"""

import argparse
import csv
import time
from pathlib import Path

import torch

from probinterp.inference import fit
from probinterp.models import ActivationBatch, CrossLayerTranscoder
from probinterp.models.activation_priors import (
    BernoulliGaussian,
    BernoulliTruncatedNormal,
    HardConcrete,
    ReLUTopK,
    Truncated,
)
from probinterp.models.decoder_priors import GroupSpikeSlabLasso
from probinterp.simulate.transcoder import PlantedTranscoder
from probinterp.transcoder_recovery import match_features, normalized_error, support_f1

TRUE_L0 = 1.92
LATENTS = 32
BATCH, STEPS, EPOCHS, HELD_OUT, RATE = 512, 5_000, 10, 20_000, 3e-3
OUTPUT = Path(__file__).parents[1] / "docs" / "studies" / "planted_transcoder.csv"


def fixed(prior):
    """Prior at the true rate, which stays."""
    return prior(TRUE_L0, learn_rate=False)


VARIANTS = {
    "TopK k=2": lambda: {"activation": ReLUTopK(2)},
    "TopK k=3": lambda: {"activation": ReLUTopK(3)},
    "TopK k=4": lambda: {"activation": ReLUTopK(4)},
    "TopK k=6": lambda: {"activation": ReLUTopK(6)},
    "A": lambda: {"activation": fixed(BernoulliGaussian)},
    "A sampled": lambda: {"activation": fixed(BernoulliGaussian), "elbo": "meanfield"},
    "B": lambda: {"activation": fixed(BernoulliTruncatedNormal)},
    "B learned rates": lambda: {"activation": BernoulliTruncatedNormal(0.02 * LATENTS)},
    "C": lambda: {"activation": fixed(HardConcrete)},
    "D K=6": lambda: {"activation": Truncated(fixed(BernoulliTruncatedNormal), 6)},
    "D K=3": lambda: {"activation": Truncated(fixed(BernoulliTruncatedNormal), 3)},
    "E": lambda: {
        "activation": fixed(BernoulliTruncatedNormal),
        "decoder_prior": GroupSpikeSlabLasso(learning_rate=RATE),
    },
}
COLUMNS = (
    *("variant", "seed", "nmse", "nmse_mean", "l0", "inclusion", "f1", "mmcs"),
    *("block_precision", "block_recall", "seconds"),
)


class FreshTokens:
    """Tokens that are drawn when they are asked for, each once."""

    def __init__(self, planted, n):
        self.planted, self.n = planted, n

    def __len__(self):
        return self.n

    def batch(self, index):
        """As many tokens as there are indices."""
        drawn = self.planted.tokens(len(index))
        return ActivationBatch(drawn.x, drawn.inputs)


def trained(variant, seed):
    """A trained transcoder, its planted truth, and the seconds it took."""
    planted = PlantedTranscoder(100 + seed)
    torch.manual_seed(seed)
    model = CrossLayerTranscoder(3, 16, LATENTS, **VARIANTS[variant]())
    started = time.perf_counter()
    fit(
        model,
        FreshTokens(planted, BATCH * STEPS // EPOCHS),
        max_epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=RATE),
        schedule=lambda progress: min(1.0, (1 - progress) / 0.3),
        max_grad_norm=10.0,
        seed=seed,
        device="cpu",
        progress=False,
    )
    return model, planted, time.perf_counter() - started


@torch.no_grad()
def scores(model, planted):
    """Scores on tokens that nothing was trained on."""
    held_out = planted.tokens(HELD_OUT)
    codes = model.hard_codes(held_out.inputs)
    match = match_features(stacked_decoders(model), planted.decoders())
    posterior = model.posterior_codes(held_out.inputs)
    return {
        "nmse": normalized_error(model.decode(codes, held_out.inputs), held_out.x).mean(),
        "nmse_mean": normalized_error(model(held_out.inputs), held_out.x).mean(),
        "l0": (codes != 0).float().sum(2).mean(),
        "inclusion": posterior.inclusion.sum(2).mean(),
        "f1": support_f1(codes, held_out.codes, match).mean(),
        "mmcs": match.cosine.mean(),
        **block_scores(model, planted, match),
    }


def block_scores(model, planted, match):
    """Precision and recall of which layers the matched latents write to, where a prior says so."""
    if model.decoder_prior is None:
        return {}
    kept = model.decoder_prior.kept_blocks(model.decoders)
    found = kept.gather(2, match.latent.unsqueeze(1).expand(-1, model.n_layers, -1))
    agreed = (found & planted.connected).sum()
    return {
        "block_precision": agreed / found.sum(),
        "block_recall": agreed / planted.connected.sum(),
    }


def stacked_decoders(model):
    """Decoders of each latent for all layers side by side, (L, H, L D)."""
    blank = torch.zeros(model.n_latents, model.width)
    layers = range(model.n_layers)
    rows = [[model.decoder(i, j) if i <= j else blank for j in layers] for i in layers]
    return torch.stack([torch.cat(row, 1) for row in rows])


def known(path):
    """Variants and seeds that have a row."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["variant"], int(row["seed"])) for row in csv.DictReader(file)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for variant in options.variants:
            if (variant, seed) in known(options.output):
                continue
            model, planted, seconds = trained(variant, seed)
            found = {name: f"{value:.4f}" for name, value in scores(model, planted).items()}
            row = {"variant": variant, "seed": seed, **found, "seconds": f"{seconds:.0f}"}
            is_new = not options.output.exists()
            with options.output.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if is_new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
