"""Train the tiny two-tower CLIP of handwritten digits that is shipped with the package.

An image tower of four blocks on 8 x 8 pixels and a text tower of two learn to say which of ten
prompts goes with a picture. The result is an ordinary open_clip checkpoint.

    python examples/train_tiny_clip.py --epochs 25 --out tiny-digits-clip.safetensors
"""

import argparse

import torch
from torch.nn.functional import cross_entropy

from probinterp.vision import save_clip
from probinterp.vision.extra import open_clip_module
from probinterp.vision.tiny_clip import (
    CLASS_NAMES,
    MEAN,
    NAME,
    STD,
    TEMPLATES,
    digits,
    register_config,
)
from probinterp.vision.tokenizer import ReducedTokenizer

PROMPTS = [[template.format(word) for word in CLASS_NAMES] for template in TEMPLATES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="tiny-digits-clip.safetensors")
    options = parser.parse_args()
    train, heldout = digits()
    model, tokenizer = trained(train, options.epochs, options.seed)
    print(
        f"zero-shot accuracy on {len(heldout.labels)} held-out images: "
        f"{accuracy(model, tokenizer, heldout):.4f}"
    )
    save_clip(
        model,
        options.out,
        quick_gelu=False,
        preprocess={"mean": [MEAN] * 3, "std": [STD] * 3},
        token_ids=list(tokenizer.token_ids),
    )


def trained(train, epochs: int, seed: int):
    """A network of these images, and its tokenizer."""
    torch.manual_seed(seed)
    register_config()
    model = open_clip_module().create_model(NAME)
    tokenizer = ReducedTokenizer.of([p for prompts in PROMPTS for p in prompts], 8)
    fit(model, tokenizer, train, epochs)
    return model.eval(), tokenizer


def fit(model, tokenizer, train, epochs: int, batch_size: int = 100) -> None:
    """Cross-entropy of an image against the ten prompts of each template, averaged."""
    tokens = torch.cat([tokenizer(prompts) for prompts in PROMPTS])
    with torch.no_grad():
        model.token_embedding.weight.mul_(10)  # texts must differ before they can be learnt
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = epochs * -(-len(train.labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(train.labels)).split(batch_size):
            text = model.encode_text(tokens, normalize=True).unflatten(0, (len(PROMPTS), -1))
            image = model.encode_image(train.images[index], normalize=True)
            logits = model.logit_scale.exp() * image @ text.mT  # (templates, images, words)
            target = train.labels[index].expand(len(PROMPTS), -1)
            loss = cross_entropy(logits.flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        print(f"epoch {epoch + 1}: loss {total / len(train.labels):.4f}", flush=True)


@torch.no_grad()
def accuracy(model, tokenizer, images) -> float:
    """Share of images that the mean embedding of the right digit's three prompts wins."""
    text = torch.stack([model.encode_text(tokenizer(p), normalize=True) for p in PROMPTS]).mean(0)
    scores = model.encode_image(images.images, normalize=True) @ text.T / text.norm(dim=1)
    return (scores.argmax(1) == images.labels).double().mean().item()


if __name__ == "__main__":
    main()
