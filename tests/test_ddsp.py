"""Signal processing in the model: oscillators and noise do what they are told, the pitch is found, densities are densities, and pitch and phase are right before any training."""
import math
from dataclasses import replace

import pytest
import torch

from sepnb.audio import RATE
from sepnb.coverage import PARAMETERS, PITCHES, SAMPLES, asked, coverage, hertz, scale_clips
from sepnb.ddsp import DDSP, MIDDLE, RECIPES_DDSP, DDSPConfig, Synthesiser, ddsp_loss, drawn, filtered, harmonic, load_ddsp, mixture, pitch_of, resynthesised, spectral_loss
from sepnb.toy import SOURCES, waveform
from sepnb.training import Recipe, fit

random = lambda k=0: torch.Generator().manual_seed(k)
TINY = dict(harmonics=16, bands=9, latents=2, hidden=12, components=4)


def tiny(**options):
    torch.manual_seed(0)
    return DDSP(DDSPConfig(**TINY | options)).eval().requires_grad_(False)


def test_the_bank_is_a_sum_of_sines():
    "A glide with changing amplitudes, sample by sample in float64."
    g, hop = random(), 8
    f, A, phase = 200 + 300 * torch.rand(2, 4, generator=g), torch.rand(2, 4, 5, generator=g), torch.rand(2, generator=g)
    out = harmonic(f, A, phase, hop)
    for b in range(2):
        turn = phase[b].double().item()
        for s in range(hop * 3):
            i, w = s // hop, (s % hop) / hop
            a = (1 - w) * A[b, i].double() + w * A[b, i + 1].double()
            want = sum(a[k - 1].item() * math.sin(2 * math.pi * k * turn) for k in range(1, 6))
            assert out[b, s].item() == pytest.approx(want, abs=1e-4)
            turn += ((1 - w) * f[b, i] + w * f[b, i + 1]).item() / RATE


def test_gradients_go_through_oscillators_and_noise():
    g, f, phase = random(), torch.full((1, 3), 300.0).double(), torch.tensor([0.2]).double()
    A, m = (torch.rand(1, 3, n, generator=g, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    noise = torch.randn(1, 16, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda A: harmonic(f.float(), A.float(), phase.float(), 8).double(), A, eps=1e-2, atol=1e-3, rtol=1e-3)
    assert torch.autograd.gradcheck(lambda m: filtered(m, noise, 8), m)


def test_noise_has_the_spectrum_that_it_is_given():
    want = torch.tensor([1.0, 0.1, 0.5, 0.0, 0.8])
    x = filtered(want.expand(1, 401, 5), torch.randn(1, 400 * 64, generator=random()), 64)[0]
    M = torch.stft(x, 256, 128, window=torch.hann_window(256) / torch.hann_window(256).norm(), return_complex=True).abs().square().mean(1).sqrt()
    assert torch.allclose(M[[2, 32, 64, 96, 126]], want, atol=0.08)


@pytest.mark.parametrize("shape", SOURCES)
@pytest.mark.parametrize("octaves", [-2, 0, 1])
def test_the_pitch_is_found(shape, octaves):
    pitches = PITCHES[0] + torch.tensor([0.0, 4.3, 11.5, 18.6, 23.0]) + 12 * octaves
    x = waveform(shape, hertz(pitches.double()), 0.5, 1.0, SAMPLES * 2 ** max(0, -octaves))
    off = pitch_of(x, PITCHES[0] - 1.5 + 12 * octaves, PITCHES[-1] + 1.5 + 12 * octaves) - pitches
    assert off.abs().max() < 0.05


def test_the_pitch_is_found_in_noise():
    clips = scale_clips("valid")
    x = clips.waves[:200] + 0.1 * torch.randn(200, SAMPLES, generator=random())
    assert ((pitch_of(x) - clips.pitches[:200] - PITCHES[0]).abs() < 0.5).float().mean() > 0.97


def test_what_has_no_pitch_gets_one_in_the_range():
    x = torch.cat([torch.zeros(1, SAMPLES), torch.randn(20, SAMPLES, generator=random()), torch.linspace(0, 1, SAMPLES)[None]])
    p = pitch_of(x)
    assert p.isfinite().all() and p.min() >= PITCHES[0] - 1.5 and p.max() <= PITCHES[-1] + 1.5


def test_no_harmonic_is_above_half_the_rate():
    synthesiser = Synthesiser(DDSPConfig(**TINY | dict(harmonics=64)))
    for pitch in (PITCHES[0] - 24.0, float(PITCHES[0]), float(PITCHES[-1]), 112.0):
        A, _ = synthesiser.controls(torch.tensor([pitch]), torch.randn(1, 2), 3)
        k = int(RATE / 2 / hertz(pitch))
        assert (A[..., :k] > 0).all() and (A[..., k:] == 0).all() and A.sum(-1).max() <= 6.001


def test_densities_are_densities():
    grid = torch.linspace(-8, 8, 401)
    of = mixture(torch.randn(3, 5, generator=random()))  # one dimension would be (3, 3)
    points = torch.cartesian_prod(grid, grid)
    assert of.log_prob(points).exp().sum().item() * (grid[1] - grid[0]).item() ** 2 == pytest.approx(1, abs=0.02)
    x = drawn(of, (20_000,), random())
    assert torch.allclose(x.mean(0), of.mean, atol=0.05) and torch.equal(drawn(of, (5,), random(1)), drawn(of, (5,), random(1)))
    state = torch.get_rng_state()
    drawn(of, (5,), random())
    assert torch.equal(state, torch.get_rng_state()), "nobody else's random numbers are used up"


def test_pitch_and_phase_are_right_before_any_training():
    "An oscillator has not to be learned: an untrained model that is told a pitch plays it, at any phase, wherever it is moved."
    model, told = tiny(classes=4), asked("scale", 400, random())
    goal = told[:, 4:].argmax(1) + PITCHES[0]
    x = model.sample(400, SAMPLES, random(), told=told)
    assert (pitch_of(x) - goal).abs().max() < 0.1 and coverage(x, "scale")["phase"] < 0.12
    for by in (-12.0, 12.0):
        y = model.sample(40, 4 * SAMPLES, random(), told=told[:40], transpose=by)
        assert (pitch_of(y, PITCHES[0] - 8 + by, PITCHES[-1] + 8 + by) - goal[:40] - by).abs().max() < 0.1


def test_the_peak_is_the_one_that_was_drawn():
    model = tiny()
    x = model.sample(100, 700, random())
    with torch.no_grad():
        g = random()
        level = [drawn(one, (100,), g)[:, 0] for one in model.densities.pitch_level()][1].exp()
    assert x.shape == (100, 700) and torch.allclose(x.abs().amax(1), level, rtol=1e-4)


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="must be told"):
        tiny(classes=4).sample(2, 300)
    with pytest.raises(ValueError, match="cannot be told"):
        tiny().sample(2, 300, told=asked("scale", 2))
    with pytest.raises(ValueError, match="unknown sounds 'whale'"):
        load_ddsp("whale", "smoke", told=True)


def test_the_class_reaches_the_density():
    model, pitch = tiny(classes=4), torch.full((4,), float(MIDDLE))
    logs = model.densities.timbre(pitch, torch.eye(4)).log_prob(torch.zeros(4, 2))
    assert logs.unique().numel() == 4


def test_the_loss_hears_no_phase_and_no_sign():
    x = waveform("saw", hertz(PITCHES[0]), 0.5, torch.tensor([0.0, 2.0, 4.0]), SAMPLES)
    assert spectral_loss(x, -x) < 1e-5 and spectral_loss(x[:1], x[1:2]) < 0.5 * spectral_loss(x[:1], waveform("saw", hertz(PITCHES[0] + 1), 0.5, 0.0, SAMPLES)[None])


@pytest.mark.parametrize("told", [False, True])
def test_a_few_steps_lower_the_loss(told):
    clips = scale_clips("valid")
    rows = torch.cat([clips.waves, clips.told], 1)[:64] if told else clips.waves[:64]
    torch.manual_seed(0)
    model = DDSP(DDSPConfig(**TINY | dict(classes=4 * told)))
    with torch.no_grad():
        before = ddsp_loss(model, rows, random())
    fit(model, ddsp_loss, list(rows), Recipe(steps=40, batch=8, frame=rows.shape[1], lr=1e-2, clip=1.0), progress=False)
    with torch.no_grad():
        assert ddsp_loss(model, rows, random()) < before - 0.5


def test_what_is_played_again_has_its_pitch():
    model, clips = tiny(), scale_clips("valid")
    y = resynthesised(model, clips.waves[:50], generator=random())
    assert (pitch_of(y) - clips.pitches[:50] - PITCHES[0]).abs().max() < 0.1


@pytest.mark.parametrize("preset", RECIPES_DDSP)
def test_recipes_fit_the_clips(preset):
    config, recipe = RECIPES_DDSP[preset]
    assert recipe.frame == SAMPLES and SAMPLES % config.hop == 0
    assert preset == "paper" or all(sum(p.numel() for p in DDSP(replace(config, classes=n)).parameters()) <= PARAMETERS for n in (0, len(SOURCES)))
