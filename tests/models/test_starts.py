"""Starting values against what they should find."""

import torch

from probinterp.models.starts import components_by_block, rotated_components, varimax


def test_components_find_a_planted_block_structure():
    torch.manual_seed(0)
    support = torch.block_diag(*[torch.ones(20, 1)] * 3)  # 60 features, 3 blocks
    z = torch.randn(500, 3)
    x = z @ support.mT + 0.3 * torch.randn(500, 60)
    loadings = rotated_components(x, 3).abs()
    order = (loadings.mT @ support).argmax(0)
    assert sorted(order.tolist()) == [0, 1, 2]
    matched = loadings[:, order]
    assert matched[support.bool()].min() > 5 * matched[~support.bool()].max()
    assert 0.9 < matched.max() < 1.3


def test_varimax_is_a_rotation_that_does_not_lower_the_criterion():
    torch.manual_seed(1)
    loadings = torch.randn(30, 4, dtype=torch.float64)
    rotated = varimax(loadings)
    torch.testing.assert_close(rotated @ rotated.mT, loadings @ loadings.mT)

    def criterion(values):
        return values.square().var(0).sum()

    assert criterion(rotated) > criterion(loadings)
    angle = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    torch.testing.assert_close(
        criterion(varimax(rotated @ angle)), criterion(rotated), rtol=1e-3, atol=1e-3
    )


def test_columns_beyond_the_rank_are_zero():
    x = torch.randn(3, 5)
    loadings = rotated_components(x, 5)
    assert (loadings[:, 3:] == 0).all()
    assert torch.isfinite(loadings).all()
    assert torch.isfinite(rotated_components(torch.zeros(4, 3), 2)).all()


def test_a_component_without_room_in_its_blocks_takes_one_shared_column():
    torch.manual_seed(0)
    study = torch.arange(3).repeat_interleave(200)
    z = torch.randn(600, 2)
    z[study == 2, 1] = 0  # the second factor is of two studies, which have no columns
    support = torch.block_diag(torch.ones(15, 1), torch.ones(15, 1))
    x = z @ support.mT + 0.3 * torch.randn(600, 30)
    loadings = components_by_block(x, study, torch.full((4,), -1))
    large = (loadings.abs() > 0.6).float()  # small random numbers elsewhere
    assert sorted((large.mT @ support).amax(1).tolist()) == [0, 0, 15, 15]
