"""Every sampler against the exact posterior of Gaussian sources, mean and covariance; samplers that are wrong must fail."""

import math
from functools import partial

import pytest
import torch

from sepnb.langevin import langevin
from sepnb.samplers import Wiener, coordinate, dirac, falling, misfit, projection, shared, wiener_posterior
from sepnb.training import PriorBank

N, T, DRAWS, LEVELS = 3, 3, 1500, falling(1, 1e-3, 300)


@pytest.fixture(scope="module")
def case(): # three sources whose covariances share no axes, and one mix of them -> bank, mixes (draws, t), mean, covariance
    g = torch.Generator().manual_seed(5)
    covs = []
    for loud in (0.03, 0.015, 0.01):
        axes = torch.linalg.qr(torch.randn(T, T, generator=g, dtype=torch.float64))[0]
        covs.append(loud * axes @ torch.diag(torch.tensor([1, 0.4, 0.15], dtype=torch.float64)) @ axes.T)
    bank = PriorBank({str(k): Wiener(c) for k, c in enumerate(covs)})
    y = sum(p.sample(1, generator=g)[0] for p in bank.priors)
    return bank, (y / N).expand(DRAWS, T), *wiener_posterior(bank, y)


def chance(samples, mean, cov):
    "The probability that samples of the posterior look as wrong as these."
    said = misfit(samples, mean, cov)
    return 2 * min(said["p_mean"], said["p_spread"])


def flow(mixes, bank, sigmas, generator, on_plane): # the probability flow with equal shares; off the plane it is the old `projection`
    x = sigmas[0] * torch.randn(len(mixes), N, T, generator=generator, dtype=mixes.dtype)
    x = mixes[:, None] + x - x.mean(1, keepdim=True) if on_plane else x
    for a, b in zip(sigmas, (*sigmas[1:], 0.0)):
        clean = shared(mixes, bank, x, a)
        x = clean + (x - clean) * b / a
    return x


def noisy(mixes, bank, sigmas, generator, level): # Langevin steps with independent noise
    x = mixes[:, None].expand(-1, N, -1)
    for a, b in zip(sigmas, (*sigmas[1:], 0.0)):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = shared(mixes, bank, x, a) + level * b * (z - z.mean(1, keepdim=True))
    return x


EXACT = {"projection": projection, "langevin": partial(langevin, steps=4, eta=0.3 * LEVELS[-1] ** 2)}
WRONG = {"flow with equal shares": partial(flow, on_plane=True), "the old projection": partial(flow, on_plane=False),
         "all noise new": partial(noisy, level=1.0), "too hot": partial(noisy, level=1.6), "dirac as released": dirac,
         "dirac without churn": partial(dirac, churn=0.0), "too few levels": lambda m, bank, sigmas, **o: projection(m, bank, sigmas[::25], **o)}


@pytest.mark.parametrize("name", [*EXACT, *WRONG])
def test_against_the_exact_posterior(case, name):
    bank, mixes, mean, cov = case
    samples = (EXACT | WRONG)[name](mixes, bank, LEVELS, generator=torch.Generator().manual_seed(1))
    p = chance(samples, mean, cov)
    assert p > 1e-3 if name in EXACT else p < 1e-9, (name, misfit(samples, mean, cov))
    if name != "langevin":  # whose mixture term is soft
        assert (samples.mean(1) - mixes).abs().max() < 1e-6, "the sources add up to the mix"


def test_the_check_accepts_exact_samples_and_little_else(case):
    _, _, mean, cov = case
    power, basis = torch.linalg.eigh(cov)
    draw = lambda seed: mean + (torch.randn(DRAWS, N * T, generator=torch.Generator().manual_seed(seed), dtype=mean.dtype)
                                * power.clamp_min(0).sqrt() @ basis.T).view(DRAWS, N, T)
    p = torch.tensor([chance(draw(seed), mean, cov) for seed in range(100)])
    assert p.min() > 1e-3 / 100 and (p < 0.05).double().mean() < 0.15
    x = draw(0)
    moved = x + 0.15 * x.std(0).max() * torch.tensor([1.0, -1.0, 0.0], dtype=x.dtype)[:, None]
    for wrong in (moved, mean + 0.9 * (x - mean), mean + 1.1 * (x - mean), mean + (x - mean).flip(2)):
        assert chance(wrong, mean, cov) < 1e-3


@pytest.mark.parametrize("sigma", [0.03, 0.3])
def test_a_level_that_does_not_fall_is_sampled_with_the_right_variance(case, sigma):
    bank, mixes, _, _ = case
    there = wiener_posterior(PriorBank({n: Wiener(p.cov + sigma**2 * torch.eye(T)) for n, p in zip(bank.names, bank.priors)}), N * mixes[0])
    seen = {}
    levels = falling(sigma * (1 + 1e-9), sigma, 300)
    projection(mixes, bank, levels, torch.Generator().manual_seed(1), lambda state: seen.update({state["step"]: state["sources"]}))
    assert chance(seen[298], *there) > 1e-3  # the last step goes down to no noise


def test_with_equal_sources_the_flow_on_the_plane_is_right_and_the_share_is_equal(case):
    bank, mixes, _, _ = case
    equal = PriorBank({str(k): bank.priors[0] for k in range(N)})
    mean, cov = wiener_posterior(equal, N * mixes[0])
    samples = flow(mixes, equal, LEVELS, torch.Generator().manual_seed(1), on_plane=True)
    assert chance(samples, mean, cov) > 1e-3


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_coordinate_denoising_is_block_gauss_seidel(case, order):
    bank, mixes, mean, _ = case
    m, y, sigma, eye = mixes[:1], N * mixes[0], 0.1, torch.eye(T, dtype=torch.float64)
    A = torch.block_diag(*(p.cov.inverse() for p in bank.priors)).view(N, T, N, T) + eye[None, :, None] / sigma**2
    s, by_hand = torch.zeros(1, N, T, dtype=torch.float64), torch.zeros(N, T, dtype=torch.float64)
    for _ in range(300):
        s = coordinate(m, bank, (sigma,), order=order, start=s)
        for k in order:
            rest = y / sigma**2 - torch.einsum("ijl,jl->i", A[k], by_hand) + A[k, :, k] @ by_hand[k]
            by_hand[k] = torch.linalg.solve(A[k, :, k], rest)
        assert (s[0] - by_hand).abs().max() < 1e-10
    total = sum(p.cov for p in bank.priors)
    fixed = torch.stack([p.cov @ (total + sigma**2 * eye).inverse() @ y for p in bank.priors])
    assert (s[0] - fixed).abs().max() < 1e-5 * fixed.abs().max(), "the posterior's mean for a mix with noise"
    error = [(coordinate(m, bank, falling(0.3, 1e-3, n), order=order)[0] - mean).abs().max() / mean.abs().max() for n in (50, 500)]
    assert error[1] < error[0] / 5 and error[1] < 0.02, "with falling levels, the posterior's mean"
    assert math.isclose(coordinate(mixes, bank, LEVELS[:50], order=order).std(0).max(), 0, abs_tol=1e-9), "an estimate, without spread"


def test_a_gradient_that_explodes_leaves_the_waveform():
    from sepnb.samplers import denoised

    class Cliff(torch.nn.Module):
        config = None

        def log_prob(self, x, sigma=None):
            return (x.clamp_min(0.5) ** 40).sum(-1) * 1e20

    x = torch.tensor([[0.1, 0.2], [0.1, 0.9]])
    assert torch.equal(denoised(Cliff(), x, 0.1), x)
