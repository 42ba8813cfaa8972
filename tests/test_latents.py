"""Latents of spectra: a bound that is one, a sampler that samples, masks that add up, a class that hears no other."""
from dataclasses import replace
from functools import partial

import pytest
import torch

from sepnb import latents
from sepnb.audio import stft
from sepnb.experts import Experts
from sepnb.frames import SourceFrames
from sepnb.latents import SpectralVAE, VAEConfig, bands, begin, bound, bound_loss, climb, divergence, freely, likely_gains, log_gaussian, log_joint, mcem, metropolis, noise_floor, variances
from sepnb.presets import load_bank, new_prior, recipe_for
from sepnb.registry import DATA
from sepnb.training import PriorBank

CONFIG = VAEConfig(256, 3, 8, 6, 20)


@pytest.fixture
def bank():
    torch.manual_seed(0)
    return PriorBank({s: SpectralVAE(CONFIG) for s in ("low", "high")}).requires_grad_(False)


def test_the_divergence_is_what_samples_say():
    mean, log_std = torch.tensor([0.7, -1.2]), torch.tensor([-0.5, 0.3])
    q = torch.distributions.Normal(mean, log_std.exp())
    z = q.sample((200_000,))
    sampled = (q.log_prob(z) - torch.distributions.Normal(0, 1).log_prob(z)).sum(-1).mean()
    assert abs(sampled - divergence(mean, log_std)) < 0.02


def test_the_bound_lies_below_the_evidence():
    "One latent, integrated on a grid: the mean of the bound is smaller, by less where the encoder is the posterior than where it is shifted."
    torch.manual_seed(0)
    vae, P = SpectralVAE(replace(CONFIG, latents=1)).requires_grad_(False), torch.rand(1, 1, 129)
    grid = torch.linspace(-8, 8, 4001)
    given = P / P.mean() + CONFIG.floor
    v = vae.decode(grid[:, None]) + CONFIG.floor
    density = log_gaussian(given[0], v * (given[0] / v).mean(-1, keepdim=True)) + torch.distributions.Normal(0, 1).log_prob(grid)
    evidence = density.logsumexp(0) + (grid[1] - grid[0]).log()
    posterior = (density - density.logsumexp(0)).exp()
    mean = (posterior * grid).sum()
    std = (posterior * (grid - mean).square()).sum().sqrt()
    bounds = []
    for shift in (0.0, 1.0):
        vae.encode = partial(lambda m, s, P: (m.expand(4000, 1, 1), s.expand(4000, 1, 1)), mean + shift, std.log())
        recon, kl, _ = bound(vae, P.expand(4000, -1, -1), generator=torch.Generator().manual_seed(0))
        bounds.append((recon - kl).mean())
    assert bounds[1] < bounds[0] < evidence + 0.05 and evidence - bounds[0] < 0.5


def test_bands_tile_all_frequencies():
    B = bands(1025, 160)
    assert (B > 0).any(0).all() and torch.allclose(B.sum(1), torch.ones(160))
    assert (B @ torch.arange(1025.0)).diff().min() > 0


def test_the_chain_samples_a_linear_gaussian_posterior():
    A, x, s = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, -1.0, 0.5, 0.8]), 0.7
    log_p = lambda z: -((x - z @ A.T) / s).square().sum(1) / 2 - z.square().sum(1) / 2
    cov = torch.linalg.inv(torch.eye(3) + A.T @ A / s**2)
    z, generator = torch.full((6000, 3), 2.0), torch.Generator().manual_seed(0)
    at = log_p(z)
    for _ in range(200):
        z, at, _ = metropolis(log_p, z, at, 0.5, generator)
    assert (z.mean(0) - cov @ A.T @ x / s**2).abs().max() < 0.04
    assert (z.T.cov() - cov).abs().max() < 0.04
    assert torch.allclose(at, log_p(z))


def test_a_gain_never_makes_a_mix_less_likely(bank):
    P = 3 * variances(bank, torch.randn(2, 10, 3)).sum(0) * torch.rand(10, 129)
    z, log_std, g = begin(bank, P, P.expand(2, -1, -1))
    V, floor = variances(bank, z), noise_floor(bank, P)
    values = [log_gaussian(P, (likely_gains(P, V, torch.ones(2, 10), floor, n)[..., None] * V).sum(0) + floor).sum() for n in (0, 1, 3, 10, 30)]
    assert all(a < b for a, b in zip(values, values[1:]))


def test_a_climb_ends_higher_and_starts_where_it_was_told(bank):
    P = variances(bank, torch.randn(2, 10, 3)).sum(0)
    z, _, g = begin(bank, P, freely(bank, P))
    joint = lambda z, g: log_joint(P, (g[..., None] * variances(bank, z)).sum(0) + noise_floor(bank, P), z).sum()
    assert joint(*climb(bank, P, z, g)) > joint(z, g)
    assert torch.equal(climb(bank, P, z, g, steps=0)[0], z)


def test_masks_of_the_chain_add_up_and_repeat(bank):
    P = variances(bank, torch.randn(2, 10, 3)).sum(0)
    start = begin(bank, P, P.expand(2, -1, -1))
    a, b = (mcem(bank, P, *start, 2, 2, 2, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(a, b) and torch.allclose(a.sum(0), torch.ones(10, 129), atol=1e-4)


def test_evidence_is_the_log_power_of_each_class_at_any_level():
    bank = load_bank("spectral-vae", "songs", "smoke")
    X = stft(0.1 * torch.randn(2, 4000), 256)
    soft, loud = SpectralVAE.evidence(bank, X), SpectralVAE.evidence(bank, 30 * X)
    assert soft.shape == (2, 4, 129, X.shape[2])
    assert torch.allclose(soft.softmax(1), loud.softmax(1), atol=0.02)
    assert SpectralVAE.evidence(bank, 0 * X).isfinite().all()
    experts = Experts({"spectral-vae": bank, "solo": load_bank("solo", "songs", "smoke")}, {"spectral-vae": 0.5, "solo": 0.5})
    assert torch.allclose(experts.masks(X).sum(1), torch.ones(2, 129, X.shape[2]), atol=1e-4)


def test_silence_has_a_finite_loss_and_gradient():
    vae = SpectralVAE(replace(CONFIG, clips=6))
    loss = bound_loss(vae, torch.zeros(2, 4096), torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in vae.parameters())


class _Deaf:
    "Songs in which everything but one source is noise."

    def __init__(self, song, keep):
        self.song, self.keep, self.path, self.sources, self.rate, self.samples = song, keep, song.path, song.sources, song.rate, song.samples

    def __getitem__(self, span):
        x = self.song[span].clone()
        others = torch.arange(len(x)) != self.keep
        x[others] = torch.randn(x[others].shape)
        return x


def test_the_experiment_reads_validation_songs_alone(monkeypatch):
    opened, real = [], DATA["songs"].items
    monkeypatch.setitem(latents.DATA, "songs", replace(DATA["songs"], items=lambda split, **k: (opened.append(split), real(split, **k))[1]))
    frame = latents.vae_valid("smoke")
    assert set(opened) == {"valid"} and frame.si_sdri.notna().all() and not frame.duplicated(["start", "inference", "song"]).any()
