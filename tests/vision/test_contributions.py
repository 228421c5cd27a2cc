import pytest
import torch

from probinterp.models import ActivationBatch, CrossLayerTranscoder
from probinterp.models.activation_priors import AbsTopK, ReLUTopK
from probinterp.vision.contributions import contributions

L, D, H = 3, 5, 12


def transcoder(activation=None, **options):
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(L, D, H, activation=activation or AbsTopK(4), **options)
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_(0, 0.5)
        for name, buffer in clt.named_buffers():
            if name in ("encoder.scale", "outputs.scale"):
                buffer.uniform_(0.5, 2)
    return clt.eval()


def tokens(n_images=6, n_tokens=4):
    generator = torch.Generator().manual_seed(1)
    n = n_images * n_tokens
    inputs = torch.randn(n, L, D, generator=generator)
    image = torch.arange(10, 10 + n_images).repeat_interleave(n_tokens)
    types = (torch.arange(n_tokens) > 0).long().repeat(n_images)
    return ActivationBatch(inputs, inputs, image, types)


def parts(clt, batch, i, j):
    return (clt.encode(batch.inputs)[:, i] @ clt.decoder(i, j)).double()


@pytest.mark.parametrize("kind", ["cls", "patch", "all"])
def test_scores_are_those_of_the_double_loop(kind):
    clt, batch = transcoder(), tokens()
    found = contributions(clt, batch, tokens=kind, batch_size=5)
    wanted = {"cls": [0], "patch": [1], "all": [0, 1]}[kind]
    per_image = torch.zeros(6, L, L, dtype=torch.float64)
    for n, image in enumerate(found.images):
        for j in range(L):
            rows = (batch.image == image) & torch.isin(batch.token_type, torch.tensor(wanted))
            of_image = batch.rows(rows.nonzero().flatten())
            whole = sum(parts(clt, of_image, i, j) for i in range(j + 1))
            for i in range(j + 1):
                ratio = (parts(clt, of_image, i, j) * whole).sum(1) / whole.square().sum(1)
                per_image[n, i, j] = ratio.mean()
    torch.testing.assert_close(found.per_image, per_image, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.matrix, per_image.mean(0), rtol=0, atol=1e-6)
    assert found.images.tolist() == list(range(10, 16))
    assert (found.matrix.tril(-1) == 0).all()


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("bias", ["exclude", "row"])
def test_columns_sum_to_one(centered, bias):
    clt = transcoder(skip=True)
    found = contributions(clt, tokens(), centered=centered, bias=bias)
    assert found.matrix.shape == (L + (bias == "row"), L)
    assert (found.matrix.sum(0) - 1).abs().max() < 1e-5
    assert (found.per_image.sum(1) - 1).abs().max() < 1e-5


def test_bias_inside_the_sum_is_a_row_of_its_own():
    clt, batch = transcoder(), tokens()
    found = contributions(clt, batch, bias="row")
    whole = clt(batch.inputs).double()
    direct = (clt.decoder_bias * whole).sum(2) / whole.square().sum(2)
    torch.testing.assert_close(found.matrix[L], direct.mean(0), rtol=0, atol=1e-5)


def test_centered_scores_are_shares_of_the_covariance():
    clt, batch = transcoder(), tokens()
    found = contributions(clt, batch, centered=True, batch_size=7)
    for j in range(L):
        written = torch.stack([parts(clt, batch, i, j) for i in range(j + 1)])
        whole = written.sum(0)
        for i in range(j + 1):
            covariance = torch.cov(torch.cat([written[i], whole], 1).T, correction=0)[:D, D:]
            share = covariance.trace() / whole.var(0, correction=0).sum()
            assert found.matrix[i, j].item() == pytest.approx(share.item(), abs=1e-6)
    # a constant source has none of it
    with torch.no_grad():
        clt.encoder.weight[0].zero_()
    constant = contributions(clt, batch, centered=True).matrix
    assert constant[:, 0].isnan().all()
    assert constant[0, 1:].abs().max() < 1e-9
    assert contributions(clt, batch).matrix[0, 1:].abs().max() > 0.01


def test_tokens_without_an_active_code_are_skipped_and_counted():
    clt, batch = transcoder(ReLUTopK(2)), tokens()
    with torch.no_grad():
        clt.encoder.bias.zero_()
    silent = batch.inputs.clone()
    silent[:4, 0] = 0  # first image, layer 0: relu(0) = 0
    silent[4, 0] = 0
    found = contributions(clt, batch._replace(inputs=silent))
    assert found.n_skipped.tolist() == [5, 0, 0]
    assert found.per_image[0, :, 0].isnan().all()
    assert found.per_image[1, 0, 0].item() == pytest.approx(1)
    assert (found.matrix.sum(0) - 1).abs().max() < 1e-9
    nothing = contributions(clt, batch._replace(inputs=silent).rows(slice(0, 4)))
    assert nothing.matrix[:, 0].isnan().all()
    assert not nothing.matrix[:, 1:].isnan().any()


def test_per_layer_transcoder_contributes_to_itself_alone():
    found = contributions(transcoder(cross_layer=False), tokens())
    torch.testing.assert_close(found.matrix, torch.eye(L, dtype=torch.float64))


def test_resampling_images_is_the_score_of_the_resampled_images():
    clt, batch = transcoder(), tokens()
    counts = torch.tensor([[2.0, 0, 1, 0, 2, 1], [1, 1, 1, 1, 1, 1]])
    for centered in (False, True):
        found = contributions(clt, batch, centered=centered)
        drawn = found.resampled(counts)
        torch.testing.assert_close(drawn[1], found.matrix)
        assert (drawn.sum(1) - 1).abs().max() < 1e-9
    images = found.images.repeat_interleave(counts[0].long())
    rows = torch.cat([(batch.image == image).nonzero().flatten() for image in images])
    new = batch.rows(rows)._replace(image=torch.arange(6).repeat_interleave(4))
    torch.testing.assert_close(
        contributions(clt, batch).resampled(counts)[0], contributions(clt, new).matrix
    )


def test_norms_of_what_is_written():
    clt, batch = transcoder(), tokens()
    found = contributions(clt, batch)
    assert found.norm[0, 2].item() == pytest.approx(
        parts(clt, batch, 0, 2).norm(dim=1).mean().item()
    )


def test_what_is_missing_is_named():
    clt, batch = transcoder(), tokens()
    with pytest.raises(ValueError, match="which image each token belongs to"):
        contributions(clt, batch._replace(image=None))
    with pytest.raises(ValueError, match="token types to choose cls"):
        contributions(clt, batch._replace(token_type=None), tokens="cls")
    with pytest.raises(ValueError, match="no patch tokens"):
        contributions(clt, batch._replace(token_type=torch.zeros(24).long()), tokens="patch")
    with pytest.raises(ValueError, match="tokens must be one of cls, patch, all"):
        contributions(clt, batch, tokens="class")
    with pytest.raises(ValueError, match='"exclude" or "row", got \'in\''):
        contributions(clt, batch, bias="in")
