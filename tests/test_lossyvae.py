"""The autoencoder with a WaveNet as decoder: masses add up, what the decoder sees is what it says it sees, judges and probes are right where the answer is known."""
import math

import numpy as np
import pytest
import torch

from sepnb.lossyvae import LAYERS, PIECED, SCORED, LossyConfig, Partials, hissing, judged, lossy_vae, piece_loss, probe
from sepnb.quantize import mulaw_decode
from sepnb.toy import SOURCES, ToyData, waveform
from sepnb.vae import Tones

random = lambda k=0: torch.Generator().manual_seed(k)


def tiny(**options):
    torch.manual_seed(0)
    return lossy_vae(LossyConfig(**dict(dict(layers=2, latents=1, samples=2, hidden=8, width=4, skip=4), **options))).eval().requires_grad_(False)


def test_masses_of_all_waveforms_add_up_to_one():
    "Every waveform of two samples, given one latent: 256 times 256 of them."
    model, codes = tiny(), torch.cartesian_prod(torch.arange(256), torch.arange(256))
    x = mulaw_decode(codes)
    total = model.decoder.log_prob(x, torch.full((len(x), 1), 0.7)).double().logsumexp(0)
    assert abs(total) < 1e-3


def test_evidence_is_an_integral_over_the_latent():
    model, x = tiny(samples=8), Tones("test", 8, n=4).waves
    z = torch.linspace(-6, 6, 301)
    log = model.decoder.log_prob(x, z[:, None, None].expand(-1, 4, 1)) + torch.distributions.Normal(0, 1).log_prob(z)[:, None]
    exact = log.logsumexp(0) + math.log(z[1] - z[0])
    assert torch.allclose(model.evidence(x, 1000, random()), exact, atol=0.1)
    assert (torch.stack([model.log_prob(x) for _ in range(50)]).mean(0) < exact + 0.05).all()


@pytest.mark.parametrize("layers", [1, 5, 9])
def test_pieces_make_up_the_bound(layers):
    "Pieces of every place, which are as likely, have in the mean the loss of the whole, to the noise of draws."
    model, x = tiny(layers=layers, samples=1024), Tones("test", 1024, n=3).waves
    given, nats = (torch.stack(v).mean() for v in zip(*(model.bound(hissing(x, random(i)), random(100 + i)) for i in range(20))))
    pieces = np.mean([piece_loss(model, x, random(i)).item() for i in range(200)])
    assert pieces == pytest.approx(((nats - given) / 1024).item(), abs=0.01)


@pytest.mark.parametrize("preset", ["smoke", "laptop", "paper"])
def test_tones_are_whole_numbers_of_pieces(preset):
    config, recipe, _ = PIECED[preset]
    assert config.samples % SCORED == 0 and recipe.frame == config.samples


@pytest.mark.parametrize("layers", LAYERS[:4])
def test_a_decoder_sees_as_far_as_the_table_says(layers):
    "A sample changed that many steps ago changes the logits, one step further back it does not."
    model, reach = tiny(layers=layers, samples=400), 2**layers + 1
    codes = torch.randint(256, (1, 300), generator=random())
    moved = lambda i: model.decoder.wavenet(torch.where(torch.arange(300) == i, (codes + 128) % 256, codes), model.decoder.steer(torch.zeros(1, 1)))
    base = model.decoder.wavenet(codes, model.decoder.steer(torch.zeros(1, 1)))
    at = 250
    assert model.decoder.wavenet.receptive_field == reach
    assert not torch.equal(moved(at - reach)[..., at], base[..., at]) and torch.equal(moved(at - reach - 1)[..., at], base[..., at])


def test_the_encoder_hears_no_phase():
    one, other = (Partials(2048, 8)(waveform("saw", 16_000 / 2048 * 40, 0.9, phi, t=2048)[None]) for phi in (0.3, 2.0))
    assert (one - other).abs().max() < 0.05
    with pytest.raises(ValueError, match="waveforms of 2048 samples, got 100"):
        Partials(2048, 8)(torch.zeros(1, 100))


@pytest.mark.parametrize("f", [100.0, 441.0, 3000.0])
def test_the_encoder_hears_the_pitch(f):
    for shape in SOURCES:
        assert abs(Partials(2048, 8)(waveform(shape, f, 0.9, 1.0, t=2048)[None])[0, 0].item() - math.log2(f / 440) / 2) < 0.01


@pytest.mark.parametrize("k", range(4))
def test_the_judge_knows_class_and_pitch(k):
    for f in (60.0, 441.0, 2500.0):
        which, pitch = judged(0.5 * waveform(SOURCES[k], f, 0.9, 1.0, t=2048))
        assert which == k and abs(pitch - (69 + 12 * math.log2(f / 440))) < 0.5


def test_probes_find_nothing_in_noise():
    rng = np.random.default_rng(0)
    z, classes, pitches = rng.normal(size=(1200, 4)), rng.integers(0, 4, 1200), rng.uniform(40, 100, 1200)
    which, what = probe(z[:1000], z[1000:], classes[:1000], pitches[:1000])
    assert abs((which == classes[1000:]).mean() - 0.25) < 0.12 and (np.abs(what - pitches[1000:]) < 0.5).mean() < 0.06


def test_decoding_is_the_same_for_the_same_numbers():
    model, z = tiny(samples=50), torch.zeros(2, 1)
    assert torch.equal(model.decoder.decode(z, random()), model.decoder.decode(z, random())) and model.sample(3, generator=random()).shape == (3, 50)


def test_tones_are_those_of_the_toy_set():
    tones = Tones("valid", 300, n=8)
    data = ToyData("valid", 300)
    params = data.params([0, 1])
    for i in range(8):
        assert tones.classes[i] == i % 4 and torch.equal(tones[i], data[i // 4][i % 4])
        assert tones.pitches[i].item() == pytest.approx(69 + 12 * math.log2(params["f"][i // 4, i % 4].item() / 440), abs=1e-4)
