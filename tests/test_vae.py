"""The variational autoencoder: bounds are bounds, evidence is evidence, likelihoods are distributions."""
import itertools

import pytest
import torch

from sepnb.training import fit
from sepnb.vae import DIGITS, LIKELIHOODS, Digits, PlainConfig, digits_loss, divergence_by_latent, elbo_loss, ink, plain_vae

random = lambda k=0: torch.Generator().manual_seed(k)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    m = plain_vae(PlainConfig(3, hidden=32))
    fit(m, digits_loss, Digits("train"), DIGITS["smoke"], progress=False)
    return m.eval().requires_grad_(False)


def test_bernoulli_adds_up_to_one():
    h = torch.randn(3, 1, generator=random())
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    assert LIKELIHOODS["bernoulli"].log_prob(every, h.expand(8, 3, 1)).sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_normal_is_that_of_torch():
    h, x = torch.randn(4, 5, 2, generator=random()), torch.randn(4, 5, generator=random(1))
    theirs = torch.distributions.Normal(h[..., 0], h[..., 1].exp()).log_prob(x)
    assert torch.allclose(LIKELIHOODS["normal"].log_prob(x, h), theirs, atol=1e-5)


def test_evidence_grows_with_samples_and_is_above_the_bound(model):
    x = ink(Digits("test").images[:100], random())
    g = random(1)
    bound = torch.stack([torch.stack(model.bound(x, g)) for _ in range(200)]).mean(0)
    few, many = (model.evidence(x, n, random(2)).mean().item() for n in (5, 2000))
    assert (bound[0] - bound[1]).mean().item() < few < many


def test_evidence_is_an_integral():
    "One latent: the sum over a fine grid of z says the same."
    torch.manual_seed(0)
    m = plain_vae(PlainConfig(1, hidden=16)).eval().requires_grad_(False)
    x = ink(Digits("test").images[:5], random())
    z = torch.linspace(-8, 8, 4001)
    log = m.decoder.log_prob(x, z[:, None, None].expand(-1, 5, 1)) + torch.distributions.Normal(0, 1).log_prob(z)[:, None]
    exact = log.logsumexp(0) + torch.log(z[1] - z[0])
    assert torch.allclose(m.evidence(x, 20_000, random(1)), exact, atol=0.05)


def test_divergence_is_the_sum_over_latents(model):
    x = Digits("test").images
    assert divergence_by_latent(model, x).sum().item() == pytest.approx(model.bound(x, random())[1].mean().item(), rel=1e-4)


def test_a_loss_is_minus_the_bound(model):
    x = Digits("test").images[:8].round()
    a, b = model.bound(x, random())
    assert elbo_loss(model, x, random()).item() == pytest.approx((b - a).mean().item(), rel=1e-5)
    assert model.sample(3, generator=random()).shape == (3, 64) and torch.equal(model.sample(3, generator=random()), model.sample(3, generator=random()))


def test_digits_are_apart_and_splits_have_names():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1297, 500) and 0 <= train.images.min() and train.images.max() == 1
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        Digits("valid")


def test_stopped_and_started_again_it_ends_the_same(tmp_path):
    class Stop(Exception): pass

    def stop(step, model): raise Stop

    def begin():
        torch.manual_seed(0)
        return plain_vae(PlainConfig(2, hidden=16))

    whole, again = begin(), begin()
    fit(whole, digits_loss, Digits("train"), DIGITS["smoke"], run=tmp_path / "a", every=8, progress=False)
    with pytest.raises(Stop):
        fit(begin(), digits_loss, Digits("train"), DIGITS["smoke"], run=tmp_path / "b", every=8, callback=stop, progress=False)
    fit(again, digits_loss, Digits("train"), DIGITS["smoke"], run=tmp_path / "b", every=8, progress=False)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
