"""Cross-layer transcoder of CLIP ViT-B/32 on COCO 2017: the largest object.

Needs network, a GPU and `pip install 'probinterp[vision]'`. The margin of one percentage point is
fixed here, before any image of the test part is looked at.

    python examples/recipes/coco_clt.py --data DATA --out OUT
    python examples/recipes/coco_clt.py --dry-run   # no network
"""

import argparse
from pathlib import Path

import torch
from torchvision.datasets import CocoDetection

from probinterp.inference import save
from probinterp.jobs import classification, evaluate_proxy, fit_transcoder, make_transcoder
from probinterp.vision import load_clip, record_activations, resolve

MARGIN = 0.01
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a photo with a {} in it.")


class LargestObject(torch.utils.data.Dataset):
    """Images with at least one object; the class is that of the object of largest area.

    Expects train2017/, val2017/ and annotations/ of https://cocodataset.org in the folder.
    """

    def __init__(self, folder, part, preprocess):
        annotations = folder / "annotations" / f"instances_{part}2017.json"
        self.images = CocoDetection(folder / f"{part}2017", annotations, transform=preprocess)
        coco = self.images.coco
        kinds = sorted(coco.getCatIds())
        self.names = [kind["name"] for kind in coco.loadCats(kinds)]
        self.index, self.labels = [], []
        for place, image in enumerate(self.images.ids):
            objects = coco.loadAnns(coco.getAnnIds(image, iscrowd=False))
            if objects:
                largest = max(objects, key=lambda found: found["area"])
                self.index.append(place)
                self.labels.append(kinds.index(largest["category_id"]))

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        return self.images[self.index[i]][0], self.labels[i]


def images_of(folder, preprocess):
    """Training part, validation part and names of the objects."""
    train, test = (LargestObject(folder, part, preprocess) for part in ("train", "val"))
    return (train, train.labels), (test, test.labels), test.names


def random_images():
    """Two images and classes that stand for both parts."""
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return (images, torch.tensor([0, 1])), (images, torch.tensor([0, 1])), ["cat", "dog"]


def main(arguments):
    """Record, fit, replace, judge."""
    dry = arguments.dry_run
    device = "cuda" if torch.cuda.is_available() and not dry else "cpu"
    weights = None if dry else "openai"
    clip = load_clip("ViT-B-32", weights, quick_gelu=True, device=device)
    parts = random_images() if dry else images_of(arguments.data, clip.preprocess)
    (train, train_labels), (test, labels), names = parts
    options = {"dtype": torch.bfloat16, "num_workers": 0 if dry else 8}
    path = None if dry else arguments.out / "train"
    data = record_activations(clip.model, train, labels=train_labels, path=path, **options)
    sizes = {"n_latents": 64, "target_l0": 8} if dry else {"n_latents": 6144, "target_l0": 64}
    clt = make_transcoder(data, **sizes)
    epochs, batch_size = (1, 64) if dry else (arguments.epochs, 4096)
    history = fit_transcoder(
        clt, data, epochs=epochs, batch_size=batch_size, learning_rate=4e-4, device=device
    )
    clt = clt.to(device).eval()
    path = None if dry else arguments.out / "test"
    heldout = record_activations(clip.model, test, labels=labels, path=path, **options)
    task = classification(resolve(clip.model), test, labels, names, TEMPLATES, heldout)
    windows = [range(12)] if dry else None
    found = evaluate_proxy(clt, task, margin=MARGIN, windows=windows)
    print(f"{found.primary}: {found.verdict}")
    for label, judged in found.verdicts.items():
        print(f"{label}: {judged}")
    if not dry:
        save(clt, arguments.out / "model", history, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("coco_clt"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true")
    main(parser.parse_args())
