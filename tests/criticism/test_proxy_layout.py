import pytest
import torch

from probinterp.criticism import TokenLayout


def whole(values):
    return torch.tensor(values, dtype=torch.int64)


def test_tokens_are_grouped_by_image_then_type_in_their_order():
    layout = TokenLayout(whole([7, 3, 7, 3, 7, 3]), whole([1, 1, 0, 1, 1, 0]), 1)
    tokens = torch.arange(6.0).reshape(6, 1, 1)
    assert layout.by_image(tokens).squeeze().tolist() == [[5, 1, 3], [2, 0, 4]]
    assert layout.slice_of(0) == slice(0, 1)
    assert layout.slice_of(1) == slice(1, 3)
    assert layout.n_tokens_of == {0: 1, 1: 2}
    assert (layout.n_images, layout.n_tokens) == (2, 3)


def test_tokens_in_order_are_not_copied():
    layout = TokenLayout(whole([0, 0, 1, 1]), whole([0, 1, 0, 1]), 2)
    x = torch.randn(4, 2, 3)
    assert layout.by_image(x).data_ptr() == x.data_ptr()
    shared = torch.randn(2, 3).expand(4, 2, 3)
    assert layout.by_image(shared).stride()[:2] == (0, 0)


def test_blocks_cover_every_image_once():
    layout = TokenLayout(whole([4, 4, 2, 2, 9, 9]), whole([0, 1] * 3), 1, (1, 1))
    parts = list(layout.blocks(2))
    assert [part.images.tolist() for _, part in parts] == [[2, 4], [9]]
    assert torch.cat([index for index, _ in parts]).sort().values.tolist() == list(range(6))
    assert parts[0][0].tolist() == [0, 1, 2, 3]
    assert parts[1][1].grid == (1, 1)


REFUSED = {
    "floating image": (lambda: TokenLayout(torch.zeros(2), whole([0, 0]), 1), "whole number"),
    "type shape": (lambda: TokenLayout(whole([0, 1]), whole([0]), 1), r"shape \(2,\) like image"),
    "type": (lambda: TokenLayout(whole([0]), whole([3]), 1), r"2 \(register\), got \[3\]"),
    "layers": (lambda: TokenLayout(whole([0]), whole([0]), 0), "at least 1, got 0"),
    "unequal": (
        lambda: TokenLayout(whole([0, 0, 1]), whole([0, 1, 0]), 1),
        "the first has 1 class, 1 patch, another 1 class, 0 patch",
    ),
    "grid": (
        lambda: TokenLayout(whole([0, 0]), whole([1, 1]), 1, (2, 2)),
        "a grid of 2 x 2 needs as many patches in each image, got 2",
    ),
    "no such type": (
        lambda: TokenLayout(whole([0]), whole([0]), 1).slice_of(1),
        "of type class; none is patch",
    ),
    "tokens": (
        lambda: TokenLayout(whole([0]), whole([0]), 1).by_image(torch.zeros(2, 1, 1)),
        "has 1 tokens, the data have 2",
    ),
    "blocks": (
        lambda: list(TokenLayout(whole([0]), whole([0]), 1).blocks(0)),
        "n_images must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()
