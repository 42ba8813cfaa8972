"""The vocoder: one hop to a frame, who gets which gradient, what a network of convolutions cannot do without a source."""
import math

import pytest
import torch
import torch.nn.functional as F

from sepnb.coverage import PITCHES, SAMPLES, hertz, items, scale_clips
from sepnb.toy import waveform
from sepnb.vocoder import (MEL_BANDS, MEL_HOP, TRAINED, Generator, Judges, Source, Vocoder, VocoderConfig, adversarial_loss, by_griffin_lim, from_mels, load_vocoder, log_mels, nearness, oscillators,
                           some_of, spectrum, stft_loss, vocoder_loss)

TINY = VocoderConfig((8, 8, 8), partials=4, judges=2)


@pytest.mark.parametrize("partials", [0, 4])
@pytest.mark.parametrize("frames", [5, 17, 31])
def test_a_hop_to_a_frame(partials, frames):
    torch.manual_seed(0)
    y, logits = Generator(VocoderConfig((8, 8, 8), partials=partials))(torch.randn(2, MEL_BANDS, frames))
    assert y.shape == (2, (frames - 1) * MEL_HOP) and y.abs().max() <= 1
    assert logits is None if partials == 0 else logits.shape == (2, len(PITCHES), frames)


def test_a_frame_reaches_its_own_place():
    "A change of one frame changes the samples around it most, and none that are far away."
    torch.manual_seed(0)
    net, L = Generator(VocoderConfig((8, 8, 8), partials=4)), torch.randn(1, MEL_BANDS, 100)
    other = L.clone()
    other[..., 50] += 1
    with torch.no_grad():
        off = (net(L)[0] - net(other)[0]).abs()[0]
    assert 45 * MEL_HOP < off.argmax() < 55 * MEL_HOP and off[: 25 * MEL_HOP].max() == 0 == off[75 * MEL_HOP :].max()


def test_the_source_plays_the_pitch_that_it_is_told():
    waves = oscillators(SAMPLES, 3, 4).unflatten(1, (3, 4)).transpose(2, 3).flatten(2) # (pitches, partials, t)
    for i in (0, 11, 23):
        for k in range(3):
            peak = torch.fft.rfft(waves[i, k] * torch.hann_window(SAMPLES), 16 * SAMPLES).abs().argmax() / (16 * SAMPLES) * 16000
            assert abs(peak / ((k + 1) * hertz(PITCHES[i])) - 1) < 0.003
    torch.manual_seed(0)
    source, pitch = Source(8, 8, 4, 4), F.one_hot(torch.tensor([3, 3, 9]), len(PITCHES)).float()
    with torch.no_grad():
        h, _ = source(torch.ones(3, 8, 64), torch.zeros(3, MEL_BANDS, 3), torch.ones(3, 8, 3), pitch)
    assert torch.equal(h[0], h[1]) and not torch.allclose(h[0], h[2])


def test_judges_and_generator_have_their_own_gradients():
    torch.manual_seed(0)
    judges, x = Judges(TINY), scale_clips("valid").waves[:2]
    y = (0.1 * torch.randn_like(x)).requires_grad_()
    loss = lambda v, w: (sum(F.relu(1 - a[-1]).mean() + F.relu(1 + b[-1]).mean() for a, b in zip(judges(x), judges(v))) / len(judges.judges), w)[0]
    by_y, *by_w = torch.autograd.grad(adversarial_loss(judges, y, x), [y, *judges.parameters()])
    for a, b in zip(by_w, torch.autograd.grad(loss(y.detach(), None), [*judges.parameters()])):
        assert torch.allclose(a, b, atol=1e-6)
    assert by_y.abs().max() > 0
    again = adversarial_loss(judges, x, x)
    hinge = loss(x, None) - sum(o[-1].mean() for o in judges(x)) / len(judges.judges)
    assert abs(again - hinge) < 1e-5, "features of the truth match themselves"


def test_losses_of_the_ways():
    torch.manual_seed(0)
    model, rows = Vocoder(TINY), torch.stack(items("scale", "valid", True).__getitems__([0, 1]))
    parts = {how: vocoder_loss(model, rows, None, **weights) for how, (weights, source) in TRAINED.items()}
    assert all(v.isfinite() for v in parts.values()) and parts["both"] > max(parts["STFT loss"], parts["adversary"]) - 1.5
    parts["STFT loss"].backward()
    assert all(p.grad is None for p in model.judges.parameters()), "nobody judges"
    assert all(p.grad is not None for n, p in model.generator.named_parameters()), [n for n, p in model.generator.named_parameters() if p.grad is None]


def test_stft_loss_hears_no_phase_of_a_steady_tone():
    a, b, c = (waveform("sine", f, 0.5, phase, SAMPLES)[None] for f, phase in ((hertz(80), 0.0), (hertz(80), 2.0), (hertz(81), 0.0)))
    assert stft_loss(a, a) == 0 and stft_loss(b, a) < 0.1 * stft_loss(c, a)


def test_griffin_lim_from_mels():
    clips = some_of(scale_clips("test"), 6)
    L = log_mels(clips.waves)
    M = from_mels(L, 100)
    assert M.min() >= 0 and (from_mels(L, 100).sub(spectrum(clips.waves)).norm() < from_mels(L, 1).sub(spectrum(clips.waves)).norm())
    y, again = by_griffin_lim(L, 8, seed=1), by_griffin_lim(L, 8, seed=1)
    assert torch.equal(y, again) and y.shape == clips.waves.shape
    found, noise = nearness(by_griffin_lim(L, 32), clips, "scale"), nearness(0.1 * torch.randn_like(clips.waves), clips, "scale")
    assert all(found[k] < noise[k] - 1 for k in ("lsd", "convergence", "ear")) and found["pitch"] > 0.8


def test_refusals():
    with pytest.raises(ValueError, match=f"{MEL_BANDS} log-mel bands"):
        Vocoder(TINY)(torch.zeros(1, MEL_BANDS + 16, 17))
    with pytest.raises(ValueError, match="choose one of STFT loss, adversary, both, MelGAN"):
        load_vocoder("scale", "magic", "smoke")


def test_nearness_of_half_the_level():
    few = some_of(scale_clips("test"), 10)
    assert abs(nearness(few.waves / 2, few, "scale")["convergence"] - 20 * math.log10(0.5)) < 1e-3
