"""The amortised posterior."""

import torch

from probinterp.models.encoder import GaussianEncoder


def test_a_forgotten_factor_has_a_standard_normal_posterior():
    torch.manual_seed(0)
    encoder = GaussianEncoder(5, 3, 8, full=True)
    encoder.forget([1])
    law = encoder(torch.randn(4, 5))
    assert (law.mean[:, 1] == 0).all()
    covariance = law.covariance_matrix
    torch.testing.assert_close(covariance[:, 1], torch.eye(3)[1].expand(4, 3), atol=1e-3, rtol=0)
    assert (law.mean[:, [0, 2]] != 0).all()
