"""The whole way with a real-sized tower on the CPU: record, fit in one pass, replace, judge.

Random weights: what is measured is time, and that every step takes towers of open_clip's own kind
and of timm. Prints seconds a step.

    python benchmarks/vit_b32_walkthrough.py                     # 64 images, both towers
    python benchmarks/vit_b32_walkthrough.py --images 4 --latents 64 --windows 1
"""

import argparse
import time

import torch

from probinterp import fit
from probinterp.criticism.comparison import paired_accuracy, verdict
from probinterp.models import CrossLayerTranscoder
from probinterp.models.activation_priors import ReLUTopK
from probinterp.vision import evaluate_replacement, load_clip, record_activations, resolve

TOWERS = ("ViT-B-32", "vit_medium_patch16_gap_256")  # the second one is timm's
NAMES, TEMPLATES = ("cat", "dog", "car", "tree"), ("a photo of a {}",)
MARGIN = 0.05


def walk(name, n_images, n_latents, n_windows, device="cpu"):
    """Seconds of each step, and the verdict on all windows together."""
    clip = load_clip(name, None, device=device)
    tower = resolve(clip.model)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_images, 3, *tower.image_size, generator=generator)
    labels = torch.arange(n_images) % len(NAMES)
    seconds, started = {}, time.perf_counter()

    def lap(step):
        nonlocal started
        seconds[step], started = time.perf_counter() - started, time.perf_counter()

    data = record_activations(tower, images, labels=labels, store="both", progress=False)
    lap("record")
    clt = CrossLayerTranscoder(
        tower.n_layers,
        tower.width,
        n_latents,
        activation=ReLUTopK(min(32, n_latents // 2)),
        metadata={"backbone": data.manifest["backbone"]},
    )
    fit(clt, data, max_epochs=1, batch_size=256, seed=0, device=device, progress=False)
    lap("fit")
    clt = clt.to(device).eval()
    windows = [range(first, tower.n_layers) for first in range(tower.n_layers)][:n_windows]
    # texts need a tokenizer that may have to be downloaded: random tokens say as much here
    context = clip.model.context_length
    tokens = {text.format(n): i for i, n in enumerate(NAMES) for text in TEMPLATES}

    def tokenizer(texts):
        rows = [torch.full((context,), 1 + tokens[text], dtype=torch.int64) for text in texts]
        return torch.stack(rows).to(device)

    found = evaluate_replacement(
        tower, clt, images, labels, NAMES, TEMPLATES,
        windows=windows, data=data, tokenizer=tokenizer,
    )  # fmt: skip
    lap("replace and evaluate")
    judged = verdict(paired_accuracy(found.correct, found.windows[-1].correct), margin=MARGIN)
    lap("judge")
    return seconds, judged


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--latents", type=int, default=768)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--towers", nargs="+", default=TOWERS)
    given = parser.parse_args()
    for tower_name in given.towers:
        taken, said = walk(tower_name, given.images, given.latents, given.windows)
        steps = ", ".join(f"{step} {value:.1f} s" for step, value in taken.items())
        print(f"{tower_name}: {steps}; in all {sum(taken.values()):.1f} s.\n  {said}", flush=True)
