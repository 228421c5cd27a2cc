import torch

from probinterp.simulate.transcoder import PlantedTranscoder


def test_directions_have_the_sizes_that_were_planted():
    planted = PlantedTranscoder(0, n_layers=4, width=16, n_features=500)
    torch.testing.assert_close(planted.read.norm(dim=2), torch.ones(4, 500))
    own = planted.connected.diagonal(dim1=0, dim2=1)
    assert own.all()
    assert not planted.connected[1, 0].any()
    later = torch.stack([planted.connected[i, j] for i in range(4) for j in range(i + 1, 4)])
    assert abs(later.float().mean() - 0.4) < 4 * (0.24 / later.numel()) ** 0.5
    written = planted.write[planted.connected]
    assert abs(written.square().sum(1).mean() - 1) < 0.02
    assert (planted.write[~planted.connected] == 0).all()
    decoders = planted.decoders()
    assert decoders.shape == (4, 500, 64)
    assert torch.equal(decoders[1, 3, 32:48], planted.write[1, 2, 3])


def test_tokens_follow_the_formula():
    planted = PlantedTranscoder(3)
    tokens = planted.tokens(20_000)
    assert tokens.x.shape == tokens.inputs.shape == (20_000, 3, 16)
    active = tokens.codes != 0
    assert abs(active.float().sum(2).mean() - 1.92) < 0.02
    values = tokens.codes[active]
    assert values.min() >= 0.1
    assert abs(values.mean() - 1.0) < 0.01
    mean = torch.stack(
        [sum(tokens.codes[:, i] @ planted.write[i, j] for i in range(j + 1)) for j in range(3)], 1
    )
    assert abs((tokens.x - mean).std() - 0.05) < 1e-3
    read = torch.stack([tokens.codes[:, i] @ planted.read[i] for i in range(3)], 1)
    assert abs((tokens.inputs - read).std() - 0.02) < 1e-3


def test_the_first_numbers_are_drawn_in_the_stated_order():
    generator = torch.Generator().manual_seed(7)
    read = torch.randn(3, 24, 16, generator=generator)
    write = torch.randn(3, 3, 24, 16, generator=generator) / 4
    uniform = torch.rand(3, 3, 24, generator=generator)
    planted = PlantedTranscoder(7)
    assert torch.equal(planted.read, read / read.norm(dim=2, keepdim=True))
    assert torch.equal(planted.write[0, 0], write[0, 0])
    assert torch.equal(planted.connected[0, 2], uniform[0, 2] < 0.4)
    gates = torch.rand(5, 3, 24, generator=generator) < 0.08
    sizes = (1 + 0.3 * torch.randn(5, 3, 24, generator=generator)).clamp_min(0.1)
    assert torch.equal(planted.tokens(5).codes, gates * sizes)


def test_every_call_gives_other_tokens_and_every_seed_the_same():
    first, again = PlantedTranscoder(1), PlantedTranscoder(1)
    a, b = first.tokens(10), first.tokens(10)
    assert not torch.equal(a.x, b.x)
    assert torch.equal(again.tokens(10).x, a.x)
