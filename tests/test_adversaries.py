"""The small WaveGAN: both players get the gradients of their own losses only, discriminators are blind to what they should be blind to, and the score is right where the answer is known."""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sepnb.adversaries import DISCRIMINATORS, NUDGE, RECIPES_WAVEGAN, Judges, Oscillating, Spectra, Strided, Upsampled, WaveGAN, inception_score, misnamed, shuffled, theirs, wavegan_loss, wavegan_told
from sepnb.coverage import SAMPLES, asked, items, scale_clips
from sepnb.training import fit

random = lambda k=0: torch.Generator().manual_seed(k)
TINY, RECIPE = RECIPES_WAVEGAN["smoke"]


def tiny(**options):
    torch.manual_seed(0)
    return WaveGAN(replace(TINY, **options))


@pytest.mark.parametrize("judge", ["strided", "dilated", "copies", "spectra", "both"])
def test_each_player_has_its_own_gradient(judge):
    "Those of the one loss are those of two losses that are computed apart."
    model, x = tiny(judge=judge), scale_clips("valid").waves[:4]
    wavegan_loss(model, x, random()).backward()
    have = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    g = random()
    codes = model.drawn(4, g)
    y = model.made(codes, g)
    true, (made, named) = model.judge(x)[0], model.judge(y)
    mine = torch.autograd.grad(F.softplus(true.detach() - made).mean() + misnamed(named, codes), [*model.generator.parameters()], retain_graph=True)
    few = torch.cat([x[:1], y[:1]]).detach()
    slope = ((model.judge(few + NUDGE * torch.randn(few.shape, generator=g))[0] - model.judge(few)[0]) / NUDGE).square().mean(0)
    made, named = model.judge(y.detach())
    others = torch.autograd.grad(F.softplus(made - true).mean() + (model.penalty * slope).mean() + misnamed(named, codes), [*model.judge.parameters()], allow_unused=True)
    for (name, p), want in zip([*model.generator.named_parameters(prefix="generator"), *model.judge.named_parameters(prefix="judge")], (*mine, *others)):
        if want is not None:
            assert (have[name] - want).abs().max() < 1e-4 + 0.02 * want.abs().max(), name


def test_shuffling_moves_by_whole_positions_at_random():
    h = torch.randn(1, 3, 20, generator=random()).expand(200, 3, 20)
    out = shuffled(h, 2, random())
    found = {next(s for s in range(-2, 3) if torch.equal(o[:, 2:-2], h[0].roll(-s, 1)[:, 2:-2])) for o in out}
    assert found == {-2, -1, 0, 1, 2}
    assert torch.equal(out[:, 0], out[:, 0].gather(1, torch.arange(20).expand(200, 20))) and shuffled(h, 0, random()).equal(h)
    net, x = Strided(shuffle=2), scale_clips("valid").waves[:1].repeat(4, 1)
    assert not net(x, random(1)).allclose(net(x, random(2))), "another draw, other features"


def test_spectra_are_blind_to_the_sign_and_waveforms_are_not():
    x = scale_clips("valid").waves[:4]
    torch.manual_seed(0)
    blind, other = Spectra(), Strided()
    assert blind(x).allclose(blind(-x), atol=1e-5) and not other(x).allclose(other(-x), atol=1e-3)


def test_upsampling_begins_without_tones_of_its_own():
    "A constant stays one."
    with torch.no_grad():
        y = Upsampled(3, 2, 4)(torch.ones(1, 3, 40))[:, :, 16:-16]
    assert (y - y.mean(2, keepdim=True)).abs().max() < 1e-5


@pytest.mark.parametrize("make", [Oscillating, theirs])
def test_what_is_told_is_heard(make):
    config, told = TINY, asked("scale", 2, random())
    net, z = make(config), torch.randn(1, config.inputs - 28, generator=random()).repeat(2, 1)
    y = net(torch.cat([z, told], 1))
    assert y.shape == (2, SAMPLES) and not y[0].allclose(y[1])


def test_names_cost_nothing_where_they_are_right():
    told = asked("scale", 5, random())
    assert misnamed(100 * told, told) < 1e-5
    assert abs(misnamed(torch.zeros_like(told), told).item() - math.log(4) - math.log(24)) < 1e-5


def test_the_generator_hears_of_wrong_names():
    "Told something else, it gets another gradient, even where all weights and clips are the same."
    config, grads = wavegan_told("scale", "smoke")[0], []
    for k in (0, 1):
        torch.manual_seed(0)
        model, x = WaveGAN(config), scale_clips("valid").waves[:4]
        model.generator.read[0].weight.data[:, -28:] = 0 # what is told is not heard yet
        wavegan_loss(model, torch.cat([x, asked("scale", 4, random(k))], 1), random()).backward()
        grads.append(model.generator.out.conv.weight.grad)
    assert not grads[0].allclose(grads[1])


def test_a_told_model_trains_and_samples():
    config, recipe = wavegan_told("scale", "smoke")
    torch.manual_seed(0)
    model = WaveGAN(config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = fit(model, wavegan_loss, items("scale", "valid", told=True), recipe, progress=False)
    assert rows.loss.notna().all() and all(not v.equal(before[k]) for k, v in model.generator.state_dict(prefix="generator.").items())
    told = asked("scale", 3, random())
    assert model.sample(3, 500, random(), told=told).equal(model.sample(3, SAMPLES, random(), told=told)[:, :500])
    with pytest.raises(ValueError, match="told 28 numbers a clip, got nothing"):
        model.sample(3, 500)


def test_codes_are_drawn_evenly():
    codes = tiny().drawn(2400, random())
    assert codes.sum(1).eq(2).all() and (codes[:, :4].mean(0) - 1 / 4).abs().max() < 0.04 and (codes[:, 4:].mean(0) - 1 / 24).abs().max() < 0.02


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="told nothing a clip, got 28 numbers"):
        tiny().sample(1, 100, told=asked("scale", 1, random()))
    with pytest.raises(ValueError, match=f"clips of {SAMPLES} samples, got t={SAMPLES + 1}"):
        tiny().sample(1, SAMPLES + 1)
    with pytest.raises(ValueError, match="unknown discriminator 'x'; choose one of strided"):
        tiny(judge="x")
    assert all(0 < penalty for parts in DISCRIMINATORS.values() for _, penalty in parts)


def test_scores_of_clips_that_are_known():
    clips = scale_clips("valid")
    one = clips.waves[:1].repeat(8, 1)
    two = torch.cat([one, clips.waves[(clips.pitches != clips.pitches[0]).nonzero()[0]].repeat(8, 1)])
    noise = 0.3 * torch.randn(8, SAMPLES, generator=random())
    assert abs(inception_score(one, "scale") - 1) < 1e-4 and abs(inception_score(two, "scale") - 2) < 1e-3
    assert abs(inception_score(noise, "scale") - 1) < 1e-3
    overall = torch.full((96,), 0.5 / 96)
    overall[:2] += 0.25  # half of the clips have one of two names, the others have all alike
    want = (0.5 * (1 / overall[0]).log() + 0.5 * (1 / 96 / overall).log().mean()).exp()
    assert abs(inception_score(torch.cat([two, noise.repeat(2, 1)]), "scale") - want) < 1e-3
