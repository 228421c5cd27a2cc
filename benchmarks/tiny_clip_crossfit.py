"""Judge transcoders in the place of a small CLIP's MLPs on every digit, each held out once.

397 held-out images can show preservation within one point only where next to nothing changes. Here
the 1,797 images are divided into five parts; for each part a CLIP is trained on the other four (by
``examples/train_tiny_clip.py``), its MLPs are recorded on the same four, transcoders are fitted to
them, and network and proxy classify the part that neither has seen. The pairs of all parts are one
paired comparison of network and proxy, as good as they are on average over the five trainings.

The main comparison is of all layers and all tokens, margin one point, one-sided level 5 %; the
variants of VARIANTS are corrected together by Holm's method.

    python benchmarks/tiny_clip_crossfit.py
    python benchmarks/tiny_clip_crossfit.py --parts 0 --variants mean --csv build/crossfit.csv
"""

import argparse
import importlib.util
import time
from pathlib import Path

import pandas as pd
import torch
from tiny_clip_study import EPOCHS, MARGIN, TOKENS
from tiny_clip_study import VARIANTS as STUDIED

from probinterp import vision
from probinterp.criticism import comparison
from probinterp.jobs.clt_fitting import codeless_proxies, fit_transcoder
from probinterp.models import CrossLayerTranscoder
from probinterp.vision.tiny_clip import CLASS_NAMES, TEMPLATES, DigitImages

N_PARTS, CLIP_EPOCHS = 5, 25
VARIANTS = (
    *("CLT H=512 k=32", "CLT k=8", "PLT k=8", "CLT k=4", "CLT truncated normal", "ridge", "mean"),
)
ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "studies" / "tiny_clip_crossfit.csv"
CELLS = ("both", "network_only", "proxy_only", "neither")


def recipe():
    """The script that trained the network of the package."""
    path = ROOT / "examples" / "train_tiny_clip.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(part):
    """Images to train on and those of one part, which is spread evenly over the file."""
    both = vision.digits()
    images, labels = (torch.cat(pair) for pair in zip(*both, strict=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[order[part::N_PARTS]] = True
    return (DigitImages(images[which], labels[which]) for which in (~held_out, held_out))


def fitted(variant, tower, data, codeless, seed):
    """A proxy of this network."""
    if variant in codeless:
        return codeless[variant]
    torch.manual_seed(seed)
    record = {"backbone": data.manifest["backbone"], "tokens": "all"}
    clt = CrossLayerTranscoder(tower.n_layers, tower.width, **STUDIED[variant](), metadata=record)
    fit_transcoder(clt, data, epochs=EPOCHS, seed=seed, device="cpu", progress=False)
    return clt.eval()


def cells_of_part(part, variants, script):
    """Rows of counts by variant and token type for the images of one part."""
    train, held_out = parts(part)
    model, tokenizer = script.trained(train, CLIP_EPOCHS, part)
    tower = vision.resolve(model)
    data = vision.record_activations(tower, train.images, store="both", progress=False)
    codeless = codeless_proxies(data, tower)
    text = vision.text_embeddings(tower, CLASS_NAMES, TEMPLATES, tokenizer=tokenizer)
    prompts = (held_out.images, CLASS_NAMES, TEMPLATES)
    options = {"labels": held_out.labels, "text": text}
    network = vision.zero_shot(tower, *prompts, **options)
    rows = []
    for variant in variants:
        started = time.process_time()
        proxy = fitted(variant, tower, data, codeless, part)
        for tokens in TOKENS:
            with vision.replace_mlps(tower, proxy, tokens=tokens):
                replaced = vision.zero_shot(tower, *prompts, **options)
            compared = comparison.paired_accuracy(network.correct, replaced.correct)
            rows.append({"variant": variant, "part": part, "tokens": tokens})
            rows[-1] |= compared.cells._asdict()
        print(f"part {part}, {variant}: {time.process_time() - started:.0f} s", flush=True)
        print(f"  {rows[-1]}", flush=True)
    return rows


def verdicts(table):
    """One row a variant and token type: all parts together, Holm's correction over variants."""
    rows = []
    for tokens, group in table.groupby("tokens", sort=False):
        sums = group.groupby("variant", sort=False)[list(CELLS)].sum()
        compared = {
            name: comparison.accuracy_of_cells([int(n) for n in row])
            for name, row in zip(sums.index, sums.to_numpy(), strict=True)
        }
        corrected = comparison.family("variants", compared, margin=MARGIN).verdicts
        for name, found in compared.items():
            alone = comparison.noninferiority(found, margin=MARGIN)
            rows.append(
                {
                    **{"variant": name, "part": "all", "tokens": tokens},
                    **found.cells._asdict(),
                    "change": found.difference,
                    "tango_low": found.tango.low,
                    "tango_high": found.tango.high,
                    "lower_bound": alone.bounds.low,
                    "p_midp": found.p_midp,
                    "p_noninferior": alone.p_value,
                    "p_noninferior_holm": corrected[name].p_preserved,
                    "verdict_holm": corrected[name].decision,
                }
            )
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", type=int, default=list(range(N_PARTS)))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--csv", type=Path, default=OUTPUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    script = recipe()
    rows = [r for part in given.parts for r in cells_of_part(part, given.variants, script)]
    table = pd.DataFrame(rows)
    found = verdicts(table)
    print(found.to_string(index=False))
    pd.concat([table, found]).to_csv(given.csv, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
