"""Representations of sound: ways there and back, and a model of the same size whatever their width."""
import pytest
import torch

from sepnb.coverage import PITCHES, SAMPLES, hertz, note_clips, packed, scale_clips, unpacked
from sepnb.representation import PARTIALS, REPRESENTATIONS, count, dsp_parameters, found_pitch, from_dsp, sized
from sepnb.toy import waveform
from sepnb.vocoder import nearness, some_of


@pytest.mark.parametrize("name, back, least", [("samples", "as they are", 100), ("mu-law codes", "rounded", 30), ("complex", "inverse transform", 80), ("DSP", "oscillators", 15)])
def test_there_and_back(name, back, least):
    clips, how = some_of(scale_clips("test"), 20), REPRESENTATIONS[name]
    values = how.there(clips.waves)
    assert values.ndim == 2 and values.isfinite().all()
    assert nearness(how.back[back](values, "scale", "smoke"), clips, "scale")["si_sdr"] > least


@pytest.mark.parametrize("name, back", [("magnitudes", "Griffin-Lim"), ("mel", "Griffin-Lim")])
def test_magnitudes_keep_what_is_heard(name, back):
    clips, how = some_of(scale_clips("test"), 8), REPRESENTATIONS[name]
    found = nearness(how.back[back](how.there(clips.waves), "scale", "smoke"), clips, "scale")
    assert found["pitch"] >= 0.75 and found["ear"] < -10


def test_dsp_parameters_of_known_sines():
    f = hertz(torch.tensor([PITCHES[0] + 0.3, PITCHES[0] + 12, PITCHES[-1] + 0.2]).double())
    n = torch.arange(SAMPLES).double() - (SAMPLES - 1) / 2
    x = (0.4 * torch.cos(2 * torch.pi * f[:, None] / 16000 * n + 0.7) + 0.3 * torch.cos(4 * torch.pi * f[:, None] / 16000 * n - 1.0)).float()
    v = dsp_parameters(x)
    assert (1200 * (found_pitch(x) / f).log2()).abs().max() < 2
    assert torch.allclose(v[:, 0].double(), (f / hertz(PITCHES[0])).log2(), atol=2 / 1200)
    assert torch.allclose(v[:, 1].exp(), torch.full((3,), 0.5), atol=5e-3) and torch.allclose(torch.atan2(v[:, 3], v[:, 2]), torch.full((3,), 0.7), atol=0.02)
    assert torch.allclose(v[:, 4], torch.full((3,), 0.8), atol=0.01) and torch.allclose(torch.atan2(v[:, 5 + PARTIALS], v[:, 5]), torch.full((3,), -1.0 - 1.4), atol=0.05)
    assert (from_dsp(v) - x).abs().max() < 0.03


def test_octaves_are_told_apart():
    for shape in ("sine", "square", "saw", "triangle"):
        f = hertz(torch.tensor(PITCHES).double())
        assert (1200 * (found_pitch(waveform(shape, f, 0.5, 1.0, SAMPLES)) / f).log2()).abs().max() < 5, shape
    notes = some_of(note_clips("train"), 40)
    cents = 1200 * (found_pitch(notes.waves) / hertz(torch.tensor(PITCHES).double())[notes.pitches]).log2()
    assert (cents.abs() < 50).float().mean() > 0.6, "of notes most"


def test_one_size():
    assert all(0.95e5 < count(sized(values, 16, 100_000)) <= 1e5 for values in (64, 200, 500))
    assert count(sized(500, 4, 100_000)) + 2 * 500 + 16 + 2 + 4 * sized(500, 4, 100_000).hidden > 1e5, "one unit more would be too many"
    widest = REPRESENTATIONS["complex"].there(torch.zeros(1, SAMPLES)).shape[1]
    with pytest.raises(ValueError, match=f"too few for {widest} values"):
        sized(widest, 16, 3 * widest)


def test_what_is_kept_can_be_heard_again():
    x = scale_clips("test").waves[:3]
    assert (unpacked(packed(x)) - x).abs().max() < 0.03
