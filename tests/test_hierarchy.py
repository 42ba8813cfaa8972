"""Codes and what is decoded from them: a bound that is one term of the sum over all codes, a decoder that sees what it says it sees, pieces that make up the whole, a codebook that stays alive."""
from dataclasses import replace

import pytest
import torch

from sepnb.coverage import FAMILIES, SAMPLES
from sepnb.hierarchy import RECIPES_AUTOENCODER, RECIPES_CODES, CodeAutoencoder, Codebook, Codes, CodesConfig, autoencoder_loss, codes_loss, load_codes, piece_nll
from sepnb.quantize import mulaw_decode, mulaw_encode
from sepnb.rqtransformer import RQTransformerConfig
from sepnb.training import fit
from sepnb.vq import nearest

random = lambda k=0: torch.Generator().manual_seed(k)


def tiny(**options):
    torch.manual_seed(0)
    prior = RQTransformerConfig(1, 3, 8, 2, 1, 8, 8, 0)
    model = Codes(CodesConfig(**dict(dict(strides=(2, 2), hidden=8, codes=3, size=4, wait=1, layers=2, width=4, skip=4, cond=4, prior=prior), **options)))
    model.autoencoder.book.codebook.copy_(torch.randn(model.config.codes, model.config.size))
    return model.eval().requires_grad_(False)


def waves(n, t, k=0):
    return mulaw_decode(torch.randint(256, (n, t), generator=random(k)))


def test_bound_is_one_term_of_the_sum_over_all_codes():
    model, x = tiny(), waves(1, 16)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    terms = model.prior.log_prob(every[..., None]).sum((1, 2)) + model.autoencoder.log_prob_given(x.expand(81, -1), every)
    chosen = (every == model.autoencoder.encode(x)).all(1)
    assert chosen.sum() == 1 and torch.allclose(model.log_prob(x), terms[chosen], atol=1e-3)
    assert model.log_prob(x) < terms.logsumexp(0)


def test_masses_of_a_sample_add_up():
    "What the decoder says of the last sample is a distribution, given what comes before and any codes."
    model = tiny()
    codes = torch.tensor([[2, 1]])
    x = waves(1, 8).repeat(256, 1)
    x[:, 7] = mulaw_decode(torch.arange(256))
    last = model.autoencoder.log_prob_given(x, codes.expand(256, -1)).double().logsumexp(0)
    local = model.autoencoder.steer(model.autoencoder.book.codebook[codes])
    before = -torch.nn.functional.cross_entropy(model.autoencoder.wavenet(mulaw_encode(x[:1]), local=local), mulaw_encode(x[:1]), reduction="none")[0, :7].sum()
    assert abs(last - before) < 1e-3


@pytest.mark.parametrize("layers", [1, 3])
def test_decoder_sees_what_it_says(layers):
    model = tiny(layers=layers, width=8, skip=32).autoencoder
    field, t = model.wavenet.receptive_field, 24
    codes, c = torch.randint(3, (1, t // 4), generator=random()), torch.randint(256, (1, t), generator=random(1))
    local = model.steer(model.book.codebook[codes])
    other = c.clone()
    other[0, 4] = (other[0, 4] + 100) % 256
    changed = (model.wavenet(c, local=local) - model.wavenet(other, local=local)).abs().amax(1)[0] > 1e-7
    assert not changed[:5].any() and not changed[5 + field :].any() and changed[5] and changed[4 + field]


def test_transformer_sees_codes_before_it():
    model = tiny()
    codes = torch.randint(3, (1, 6, 1), generator=random())
    other = codes.clone()
    other[0, 3] = (other[0, 3] + 1) % 3
    changed = (model.prior(codes) - model.prior(other)).abs().amax((0, 2, 3)) > 1e-7
    assert not changed[:4].any() and changed[4:].all()


def test_samples_are_drawn_codes_decoded_and_follow_from_the_generator():
    model = tiny()
    assert torch.equal(model.sample(3, 14, random()), model.sample(3, 14, random()))
    g = random()
    codes = model.prior.sample(3, 4, g)[..., 0]
    assert torch.equal(model.sample(3, 14, random()), model.autoencoder.decode(codes, g)[:, :14])
    assert torch.equal(codes, model.prior.sample(3, 4, random(), cached=False)[..., 0]), "rings of keys give what is computed anew"


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_pieces_make_up_the_whole(layers):
    model, x = tiny(layers=layers).autoencoder, waves(4, 32)
    local = model.steer(model.book.codebook[model.encode(x)])
    found = {round(piece_nll(model.wavenet, x, 8, random(k), local, None).item(), 5) for k in range(60)}
    assert len(found) == 4 and abs(sum(found) / 4 + model.log_prob_given(x, model.encode(x)).mean() / 32) < 1e-4


def test_codebook_waits_starts_and_revives():
    g, book = random(), Codebook(8, 2, wait=2)
    x = torch.randn(64, 2, generator=g)
    for _ in range(2):
        same, codes = book(x, g)
        assert same is x and codes is None
    book(x, g)
    assert book.codebook.abs().sum() > 0 and nearest(x, book.codebook).unique().numel() == 8
    book.codebook[3], book.total[3], book.count[3] = 100.0, 0.0, 0.0
    book(x, g)
    assert (book.codebook[3, None] - x).norm(dim=1).min() < 1e-6, "a dead code starts again at a vector of the batch"
    kept = book.codebook.clone()
    book.eval()(x)
    assert torch.equal(kept, book.codebook), "nothing moves in evaluation"


def test_gradients_pass_the_codebook():
    model = CodeAutoencoder(replace(tiny().config, wait=0)).train()
    autoencoder_loss(model, waves(8, 128), random()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.down[0].parameters())


def test_second_training_leaves_the_first_level_alone():
    model = tiny()
    model.autoencoder.requires_grad_(False)
    model.prior.requires_grad_(True)
    was = {k: v.clone() for k, v in model.state_dict().items()}
    recipe = replace(RECIPES_CODES["smoke"][1], steps=3, frame=16)
    fit(model, codes_loss, waves(8, 16), recipe, progress=False)
    moved = {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, was[k])}
    assert moved == {"prior"}


def test_family(artifacts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, meta = FAMILIES["codes"].load("scale", "smoke")
    assert meta["steps"] == RECIPES_AUTOENCODER["smoke"][1].steps + RECIPES_CODES["smoke"][1].steps and meta["cpu_seconds"] >= 0
    assert (model.log_prob(torch.zeros(2, SAMPLES)) < 0).all()
    again, _ = load_codes("scale", "smoke")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_bad_input():
    model = tiny()
    with pytest.raises(ValueError, match="multiple of 4 samples, got 15"):
        model.log_prob(torch.zeros(1, 15))
