"""Race the triangular decoders of a cross-layer transcoder against their usual forms.

Dense codes: one einsum a target, the full L x L block with a mask, gather and scatter over pairs,
plain slices with autograd, and the prefix view with its own backward pass. Sparse codes: one dense
product a pair of layers (and a target), ``embedding_bag`` on decoders packed by target, and wide
decoder rows. Steps: loss, all gradients and fused Adam of a whole TopK transcoder in both layouts.
Variants run in turn, A B C A B C; ratios are medians over the rounds of the ratio
within a round. No time is taken before all variants agree. One thread is timed in CPU time, more
threads in wall time, which needs a quiet machine. Beside the dense race stands the rate of one
large product of square matrices, which no decoder can be expected to beat. Where circuit-tracer is
installed (``pip install circuit-tracer``) its cross-layer decoder takes part in the sparse race.

    python benchmarks/triangular_decoding.py                 # two threads
    python benchmarks/triangular_decoding.py --threads 1 --csv docs/studies/decoding.csv
"""

import argparse
import csv
import statistics
import time

import torch
from torch.nn.functional import embedding_bag

try:
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder as Peer
except ImportError:
    Peer = None

from probinterp.inference.elbo import negative_bound
from probinterp.models import ActivationBatch, CrossLayerTranscoder
from probinterp.models.activation_priors import ReLUTopK
from probinterp.triangular_decoding import (
    SparseCodes,
    by_source,
    by_target,
    prefix_decode,
    reference_decode,
    sparse_decode,
)

SIZES = {  # B, L, D, H, k
    "B256 L12 D768 H1024": (256, 12, 768, 1024, 16),
    "B256 L6 D384 H3072 k32": (256, 6, 384, 3072, 32),
}
TOLERANCE = 1e-5


class Task:
    """Codes and decoders of one size, the same in every variant's layout."""

    def __init__(self, n_tokens, n_layers, width, n_latents, n_active):
        torch.manual_seed(0)
        self.shape = (n_tokens, n_layers, width, n_latents)
        pre = torch.randn(n_tokens, n_layers, n_latents)
        value, index = pre.topk(n_active)
        self.codes = SparseCodes(index, value.requires_grad_())
        self.z = self.codes.dense(n_latents).detach().requires_grad_()
        packed = [torch.randn((j + 1) * n_latents, width) / n_latents**0.5 for j in range(n_layers)]
        self.upstream = torch.randn(n_tokens, n_layers, width)
        self.by_target = [w.requires_grad_() for w in packed]
        self.by_source = [w.detach().requires_grad_() for w in by_source(packed, n_latents)]
        self.stacked = [w.detach().unflatten(0, (-1, n_latents)).requires_grad_() for w in packed]
        self.pairs = [(i, j) for j in range(n_layers) for i in range(j + 1)]
        blocks = [self.stacked[j][i].detach() for i, j in self.pairs]
        self.separate = [block.clone().requires_grad_() for block in blocks]
        self.in_pairs = torch.stack(blocks).requires_grad_()
        full = torch.zeros(n_layers, n_layers, n_latents, width)
        for (i, j), block in zip(self.pairs, blocks, strict=True):
            full[i, j] = block
        self.full = full.requires_grad_()
        self.mask = torch.ones(n_layers, n_layers).triu()[:, :, None, None]
        sources, targets = zip(*self.pairs, strict=True)
        self.sources, self.targets = torch.tensor(sources), torch.tensor(targets)

    def einsum(self):
        """One einsum a target."""
        outputs = [
            torch.einsum("bif,ifd->bd", self.z[:, : j + 1], w) for j, w in enumerate(self.stacked)
        ]
        return torch.stack(outputs, 1), [self.z, *self.stacked]

    def masked(self):
        """All pairs of layers at once, those that do not exist masked."""
        return torch.einsum("bif,ijfd->bjd", self.z, self.full * self.mask), [self.z, self.full]

    def gathered(self):
        """Codes copied for every pair, outputs added up by target."""
        copied = self.z.index_select(1, self.sources).transpose(0, 1)
        parts = torch.bmm(copied, self.in_pairs).transpose(0, 1)
        outputs = torch.zeros_like(self.upstream).index_add(1, self.targets, parts)
        return outputs, [self.z, self.in_pairs]

    def slices(self):
        """Slices of the flat codes, differentiated by autograd."""
        flat, n_latents = self.z.flatten(1), self.shape[3]
        outputs = [flat[:, : (j + 1) * n_latents] @ w for j, w in enumerate(self.by_target)]
        return torch.stack(outputs, 1), [self.z, *self.by_target]

    def prefix(self):
        """Prefix view."""
        return prefix_decode(self.z, self.by_target), [self.z, *self.by_target]

    def pairwise(self):
        """One dense product a pair of layers."""
        outputs = [0.0] * self.shape[1]
        for (i, j), w in zip(self.pairs, self.separate, strict=True):
            outputs[j] = outputs[j] + self.z[:, i] @ w
        return torch.stack(outputs, 1), [self.z, *self.separate]

    def bags(self):
        """``embedding_bag`` on decoders packed by target."""
        outputs = []
        for j, w in enumerate(self.by_target):
            offsets = torch.arange(j + 1).unsqueeze(1) * self.shape[3]
            index = (self.codes.indices[:, : j + 1] + offsets).flatten(1)
            value = self.codes.values[:, : j + 1].flatten(1)
            outputs.append(embedding_bag(index, w, mode="sum", per_sample_weights=value))
        return torch.stack(outputs, 1), [self.codes.values, *self.by_target]

    def wide(self):
        """One wide decoder row for every active latent."""
        return sparse_decode(self.codes, self.by_source), [self.codes.values, *self.by_source]

    def peer(self):
        """The decoder of circuit-tracer, from sparse codes in its own format."""
        n_tokens, n_layers, _, n_latents = self.shape
        layer, token, latent = self.peer_places
        values = self.codes.values.transpose(0, 1).flatten()
        codes = torch.sparse_coo_tensor(
            torch.stack([layer, token, latent]),
            values,
            (n_layers, n_tokens, n_latents),
            is_coalesced=True,
            check_invariants=False,
        )
        outputs = self.peer_model.decode(codes).transpose(0, 1)
        return outputs, [self.codes.values, *self.peer_model.W_dec]

    def add_peer(self):
        """Give circuit-tracer's model the same decoders; it wants latents in increasing order."""
        n_tokens, n_layers, width, n_latents = self.shape
        self.peer_model = Peer(
            n_layers, n_latents, width, lazy_decoder=False, dtype=torch.float32, device="cpu"
        )
        with torch.no_grad():
            for mine, theirs in zip(self.by_source, self.peer_model.W_dec, strict=True):
                theirs.copy_(mine.unflatten(1, (-1, width)))
        order = self.codes.indices.sort(2)
        values = self.codes.values.detach().gather(2, order.indices).requires_grad_()
        self.codes = SparseCodes(order.values, values)
        n_active = values.shape[2]
        self.peer_places = (
            torch.arange(n_layers).repeat_interleave(n_tokens * n_active),
            torch.arange(n_tokens).repeat_interleave(n_active).repeat(n_layers),
            order.values.transpose(0, 1).flatten(),
        )

    def forward(self, variant):
        """Outputs alone."""
        with torch.no_grad():
            return getattr(self, variant)()[0]

    def both(self, variant):
        """Outputs, and gradients by codes and decoders."""
        outputs, inputs = getattr(self, variant)()
        return outputs.detach(), torch.autograd.grad(outputs, inputs, self.upstream)


DENSE = ("einsum", "masked", "gathered", "slices", "prefix")
SPARSE = ("pairwise", "einsum", "prefix", "bags", "wide") + ("peer",) * (Peer is not None)


STEPS = ("target", "source")


class Steps:
    """A TopK transcoder in each layout, from the same weights, and its training step."""

    def __init__(self, n_tokens, n_layers, width, n_latents, n_active):
        torch.manual_seed(0)
        self.shape = (n_tokens, n_layers, width, n_latents)
        outputs, inputs = torch.randn(2, n_tokens, n_layers, width)
        self.batch, self.models, self.optimizers = ActivationBatch(outputs, inputs), {}, {}
        for layout in STEPS:
            model = CrossLayerTranscoder(
                n_layers, width, n_latents, activation=ReLUTopK(n_active), layout=layout
            )
            model.initialize(self.batch, n_tokens)
            model.decoders.start("uniform")
            if self.models:
                model.load_state_dict(self.models["target"].state_dict())
            self.models[layout] = model.train()
            self.optimizers[layout] = torch.optim.Adam(model.parameters(), lr=1e-9, fused=True)

    def forward(self, layout):
        """Loss alone."""
        with torch.no_grad():
            return negative_bound(self.models[layout], self.batch, len(self.batch.x))

    def both(self, layout):
        """Loss, gradients and the update; the weights hardly move."""
        self.optimizers[layout].zero_grad(set_to_none=True)
        loss = negative_bound(self.models[layout], self.batch, len(self.batch.x))
        loss.backward()
        self.optimizers[layout].step()
        return loss.detach()

    def check(self):
        """Loss and gradients of both layouts agree."""
        losses = [self.both(layout) for layout in STEPS]
        target, source = (self.models[layout] for layout in STEPS)
        pairs = [
            (source.encoder.weight.grad, target.encoder.weight.grad),
            (source.outputs.bias.grad, target.outputs.bias.grad),
            (
                torch.cat(by_target([w.grad for w in source.decoders.weights], self.shape[2])),
                torch.cat([w.grad for w in target.decoders.weights]),
            ),
            tuple(losses),
        ]
        worst = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
        assert worst < TOLERANCE, f"the layouts differ by {worst:.1e}"
        print(f"  source against target: off by {worst:.1e}")


def comparable(task, variant, gradients):
    """Gradients by codes (B, L, k) of the active latents, and by decoders (pairs, H, D)."""
    first, *rest = gradients
    index, n_latents = task.codes.indices, task.shape[3]
    codes = first if first.shape == index.shape else first.gather(2, index)
    if variant == "masked":
        return codes, rest[0][task.sources, task.targets]
    if variant == "gathered":
        return codes, rest[0]
    if variant == "pairwise":
        return codes, torch.stack(rest)
    if variant == "peer":
        return codes, torch.stack([rest[i][:, j - i] for i, j in task.pairs])
    if variant == "wide":
        width = task.shape[2]
        return codes, torch.stack([rest[i].split(width, 1)[j - i] for i, j in task.pairs])
    blocks = [w.reshape(-1, n_latents, w.shape[-1]) for w in rest]
    return codes, torch.stack([blocks[j][i] for i, j in task.pairs])


def check(task, variants):
    """Largest relative distance of values and gradients from the double loop."""
    outputs = reference_decode(task.z, task.by_target)
    gradients = torch.autograd.grad(outputs, [task.z, *task.by_target], task.upstream)
    reference = (outputs.detach(), *comparable(task, "reference", gradients))
    for variant in variants:
        value, gradients = task.both(variant)
        found = (value, *comparable(task, variant, gradients))
        worst = max(
            ((a - b).norm() / b.norm()).item() for a, b in zip(found, reference, strict=True)
        )
        assert worst < TOLERANCE, f"{variant} is off by {worst:.1e}"
        print(f"  {variant}: off by {worst:.1e}")


def race(task, variants, rounds, clock):
    """Seconds of every round by (variant, what is run)."""
    seconds = {(v, how): [] for v in variants for how in ("forward", "both")}
    for turn in range(rounds + 1):
        for (variant, how), times in seconds.items():
            started = clock()
            getattr(task, how)(variant)
            if turn:  # the first round warms up
                times.append(clock() - started)
    return seconds


def print_rate_of_products(task, variants, seconds, clock, n=2048):
    """Rate of one product of square matrices, and of the dense decoders beside it."""
    left, right = torch.randn(2, n, n)
    times = []
    for _ in range(10):
        started = clock()
        left @ right
        times.append(clock() - started)
    best = 2 * n**3 / statistics.median(times) / 1e9
    n_tokens, n_layers, width, n_latents = task.shape
    work = n_tokens * n_layers * (n_layers + 1) * n_latents * width / 1e9
    print(f"  a product of {n} x {n} matrices: {best:.0f} GFLOP/s")
    for variant in variants:
        rate = work / statistics.median(seconds[variant, "forward"])
        print(f"  {variant}, forward: {rate:.0f} GFLOP/s, {100 * rate / best:.0f} % of it")


def report(name, task, variants, seconds):
    """Print medians and ratios; return them as rows."""
    rows = []
    for variant in variants:
        row = {"size": name, "threads": torch.get_num_threads(), "variant": variant}
        for how in ("forward", "both"):
            times = seconds[variant, how]
            row[f"{how}_ms"] = round(1e3 * statistics.median(times), 2)
            for other in variants[: 2 if variants is DENSE else 1]:
                pairs = zip(seconds[other, how], times, strict=True)
                row[f"{how}_over_{other}"] = round(statistics.median(a / b for a, b in pairs), 2)
        row["tokens_per_s"] = round(1e3 * task.shape[0] / row["both_ms"])
        rows.append(row)
        shown = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("size", "threads"))
        print(f"  {shown}", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("dense", "sparse", "steps"))
    parser.add_argument("--csv", help="file to write the rows to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = []
    for (name, size), kind, variants in zip(
        SIZES.items(), ("dense", "sparse"), (DENSE, SPARSE), strict=True
    ):
        if options.only not in (None, kind):
            continue
        print(f"{name}, {kind} codes, {options.threads} threads, {options.rounds} rounds")
        task = Task(*size)
        if "peer" in variants:
            task.add_peer()
        check(task, variants)
        seconds = race(task, variants, options.rounds, clock)
        if kind == "dense":
            print_rate_of_products(task, [v for v in variants if v != "masked"], seconds, clock)
        rows += report(name, task, variants, seconds)
    if options.only in (None, "steps"):
        name, size = list(SIZES.items())[1]
        print(f"{name}, training steps, {options.threads} threads, {options.rounds} rounds")
        steps = Steps(*size)
        steps.check()
        rows += report(name, steps, STEPS, race(steps, STEPS, options.rounds, clock))
    if options.csv:
        names = list(dict.fromkeys(key for row in rows for key in row))
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
