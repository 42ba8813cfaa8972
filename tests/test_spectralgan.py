"""The GAN on instantaneous frequency: the image is the sound, phases turn as shifts say, the discriminator minds its own weights, what is told is heeded."""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sepnb.audio import RATE
from sepnb.coverage import PARAMETERS, PITCHES, SAMPLES, hertz, items, parted, scale_clips
from sepnb.spectralgan import (BINS, FLOOR, HOP, RECIPES_SPECTRALGAN, TARGETS, WINDOW, SpectralGAN, SpectralGANConfig, cells_of, different_cells,
                               from_if, seen, sound, spectralgan_loss, spectrum, to_if, to_phase, wrapped)
from sepnb.toy import waveform

random = lambda k=0: torch.Generator().manual_seed(k)
TINY = SpectralGANConfig(latents=4, width=8, judge=8)


def tiny(**options):
    torch.manual_seed(0)
    return SpectralGAN(replace(TINY, **options)).eval()


@pytest.mark.parametrize("target", TARGETS)
def test_images_are_sounds(target):
    "A waveform without the highest bin comes back; an image that is one of a sound comes back, too."
    to, back = TARGETS[target]
    x = scale_clips("valid").waves[:50]
    y = sound(spectrum(x))
    assert (back(to(x), SAMPLES) - y).abs().max() < 1e-3
    assert ((y - x).norm(dim=1) / x.norm(dim=1)).max() < 0.03
    z = back(to(x), SAMPLES)
    near = (spectrum(x).abs() > 0.01) & (spectrum(y).abs() > 0.01)
    assert (to(z)[:, 0] - to(y)[:, 0])[near].abs().max() < 0.02
    assert (spectrum(z) - spectrum(y)).abs().max() < 1e-3


def test_the_first_bin_and_silence_are_no_trouble():
    assert from_if(to_if(torch.zeros(1, SAMPLES)), SAMPLES).abs().max() < 1e-5
    assert (from_if(to_if(torch.full((1, SAMPLES), 0.3)), SAMPLES) - 0.3).abs().max() < 1e-3


def test_a_sine_has_its_frequency_around_its_peak_and_magnitude_one():
    f = 1003.0
    x = waveform("sine", f, 1.0, 0.4, SAMPLES)[None]
    k = round(f / RATE * WINDOW)
    at = to_if(x)[0, 1, k - 1 : k + 2, 3:-3]
    assert wrapped(math.pi * at - 2 * math.pi * f * HOP / RATE).abs().max() < 1e-3
    assert 0.8 < spectrum(x)[0].abs().max() <= 1.001
    phases = to_phase(x)[0, 1, k - 1 : k + 2, 5] * math.pi
    assert wrapped(phases - phases[1]).abs().max() < 0.05, "bins of one partial have one phase"


def test_a_shift_by_a_hop_shifts_frames():
    x = waveform("saw", hertz(PITCHES[0]), 0.5, 0.4, SAMPLES + HOP)
    a, b = to_if(x[None, :SAMPLES])[0, :, :, 4:-3], to_if(x[None, HOP:])[0, :, :, 3:-4]
    strong = a[0] > 0
    assert (a[0] - b[0]).abs().max() < 1e-2 and wrapped(math.pi * (a[1] - b[1]))[strong].abs().max() < 1e-2


def test_whole_turns_are_not_seen():
    image = to_if(scale_clips("valid").waves[:4])
    more = image + 2 * torch.randint(-2, 3, image.shape, generator=random()) * torch.tensor([0.0, 1.0])[:, None, None]
    assert torch.allclose(seen(more), seen(image), atol=1e-4)
    assert (from_if(more, SAMPLES) - from_if(image, SAMPLES)).abs().max() < 1e-3


def test_angles_weigh_as_much_as_their_magnitude():
    image = torch.stack([torch.linspace(-1.2, 1.2, 13).expand(SAMPLES // HOP, -1).T.repeat(20, 1)[:BINS], torch.rand(BINS, SAMPLES // HOP, generator=random())])[None]
    circle = seen(image)[:, 1:].norm(dim=1)
    assert torch.allclose(circle, ((image[:, 0] + 1) / 2).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("told", [0, 28])
def test_each_player_moves_its_own_weights(told):
    "The gradient of the generator is that of its own term alone, and likewise the discriminator's."
    model = tiny(told=told, penalty=0.0).train()
    rows = torch.stack([items("scale", "valid", told=bool(told))[i] for i in range(6)])
    spectralgan_loss(model, rows, random(1)).backward()
    both = {k: p.grad.clone() for k, p in model.named_parameters()}
    x, what = parted(rows) if told else (rows, None)
    g = random(1)
    model.zero_grad()
    fake = model.draw(len(x), g, what)
    logit, names = model.discriminator(fake)
    alone = F.softplus(-logit).mean() + (model.config.naming * F.cross_entropy(names, what / 2) if told else 0)
    alone.backward()
    assert all(torch.allclose(both[k], p.grad, atol=1e-5) for k, p in model.named_parameters() if k.startswith("generator"))
    model.zero_grad()
    (true, names), (false, _) = model.discriminator(TARGETS["if"][0](x)), model.discriminator(fake.detach())
    (F.softplus(-true).mean() + F.softplus(false).mean() + (model.config.naming * F.cross_entropy(names, what / 2) if told else 0)).backward()
    assert all(torch.allclose(both[k], p.grad, atol=1e-5) for k, p in model.named_parameters() if k.startswith("discriminator"))


def test_samples_follow_generator_and_what_is_told():
    model = tiny(told=28)
    told = scale_clips("valid").told[:3]
    a, b = (model.sample(3, SAMPLES // 2, random(), told=told) for _ in range(2))
    assert a.shape == (3, SAMPLES // 2) and torch.equal(a, b)
    assert not torch.allclose(a, model.sample(3, SAMPLES // 2, random(), told=told.flip(0)))
    assert torch.equal(model.sample(3, SAMPLES, random(), told=told)[:, : SAMPLES // 2], a)


@pytest.mark.parametrize("call, says", [(lambda: spectrum(torch.zeros(2, SAMPLES - 24)), f"multiple of {HOP}"), (lambda: from_if(torch.zeros(1, 2, BINS, 4), SAMPLES), f"{4 * HOP} samples"),
                                        (lambda: tiny().sample(2, SAMPLES, told=torch.zeros(2, 28)), "not told"), (lambda: tiny(told=28).sample(2, SAMPLES), "told"),
                                        (lambda: tiny().sample(2, 2 * SAMPLES), str(SAMPLES)), (lambda: tiny(target="angle"), "if, phase")])
def test_errors_say_what_is_right(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_cells_differ_where_something_is_missing():
    "True clips differ in few of the cells, chance being one in twenty; half of the clips in many."
    centres, counts = cells_of("scale", 50)
    waves, classes = scale_clips("valid").waves, scale_clips("valid").classes
    assert centres.shape == (50, BINS * SAMPLES // HOP) and counts.sum() == 4000
    assert different_cells(waves, "scale") <= 8 < different_cells(waves[classes < 2], "scale")


@pytest.mark.parametrize("preset", RECIPES_SPECTRALGAN)
def test_the_generator_keeps_to_the_budget(preset):
    config, recipe = RECIPES_SPECTRALGAN[preset]
    model = SpectralGAN(replace(config, told=28))
    assert recipe.frame == SAMPLES and model.discriminator is not None
    if preset != "paper":
        assert sum(p.numel() for p in model.generator.parameters()) <= PARAMETERS


def test_floor_is_at_minus_one():
    assert to_if(torch.zeros(1, SAMPLES))[:, 0].max() == -1 and FLOOR == 1e-3
