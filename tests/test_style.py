"Style transfer on spectra: the losses, the rule, and what is refused."
import numpy as np
import pytest
import torch

from sepnb.audio import RATE, istft, stft
from sepnb.spectral import HOP, WINDOW
from sepnb.style import (PAIRS, Judge, as_correlation, bands_of, best_weight, check_pair, clip, correlation, descend, distances, envelopes, equalised, excitation,
                         features_gram, fitted, levelled, lost_periods, match_gram, match_patches, moved_filter, onset_track, pair_of, patch_features, pitch_track, random_layer, rises, spectrum_gram, texture, vocoded)


@pytest.fixture(scope="module")
def clips():
    t = torch.arange(9600) / RATE
    f = 160 + 40 * torch.sin(2 * torch.pi * 1.5 * t)
    phase = 2 * torch.pi * f.cumsum(0) / RATE
    voice = sum(torch.sin(k * phase) / k for k in range(1, 12)) * (0.3 + 0.7 * (torch.sin(2 * torch.pi * 3 * t) > 0))
    noise = torch.randn(9600, generator=torch.Generator().manual_seed(0)) * (torch.sin(2 * torch.pi * 8 * t) > 0.5)
    return levelled(voice), levelled(noise)


@pytest.mark.parametrize("conjugate", [True, False])
def test_the_gram_matrix_is_that_of_numpy_and_blind_to_order(clips, conjugate):
    S = stft(clips[1], WINDOW, HOP)
    X = S.numpy().T  # time x frequency, as they write it
    assert np.allclose(spectrum_gram(S, conjugate).numpy(), abs(X.T @ (X.conj() if conjugate else X)), atol=1e-3)
    shuffled = S[:, torch.randperm(S.shape[1], generator=torch.Generator().manual_seed(1))]
    assert torch.allclose(spectrum_gram(shuffled, conjugate), spectrum_gram(S, conjugate), rtol=1e-3, atol=1e-2)


def test_only_single_frames_make_a_gram_matrix_blind_to_order(clips):
    A = stft(clips[1], WINDOW, HOP)[:512].abs()
    order = torch.randperm(A.shape[1], generator=torch.Generator().manual_seed(1))
    change = {}
    for taps in (1, 11):
        filters = random_layer(512, 64, taps)
        a, b = (features_gram(patch_features(x, filters)) for x in (A, A[:, order]))
        change[taps] = ((a - b).norm() / a.norm()).item()
    assert change[1] < 1e-5 < 1e-2 < change[11]


def test_weight_0_gives_the_content_and_more_weight_a_nearer_gram_matrix(clips):
    content, style = (x[:1500] for x in clips)
    x, parts = match_gram(content, style, 0.0, 5)
    assert parts[0] < 1e-10 and torch.allclose(x, content, atol=1e-4)
    found = [match_gram(content, style, w, 8)[1] for w in (0.1, 10.0)]
    assert found[1][1] < found[0][1] and found[1][0] > found[0][0]


def test_a_sound_is_at_one_end_of_the_distances(clips):
    ends = [texture(envelopes(x)) for x in clips]
    assert all(v == (0.0, 1.0) for v in distances(ends[0], ends).values()) and all(v == (1.0, 0.0) for v in distances(ends[1], ends).values())
    assert set(ends[0]) == {"spectrum", "variation", "skewness", "modulation", "correlation"}


def test_texture_knows_no_level_and_hardly_any_time(clips):
    a, loud, later = (texture(envelopes(x)) for x in (clips[1], 5 * clips[1], clips[1].roll(4000)))
    ends = [a, texture(envelopes(clips[0]))]
    assert all(v[0] < 1e-3 for v in distances(loud, ends).values()) and np.mean([v[0] for v in distances(later, ends).values()]) < 0.2


def test_modulations_are_found_in_their_octave():
    t = torch.arange(RATE) / RATE
    x = torch.randn(RATE, generator=torch.Generator().manual_seed(0)) * (1.2 + torch.sin(2 * torch.pi * 12 * t))
    powers = texture(envelopes(x))["modulation"].view(-1, 6).mean(0)
    assert powers.argmax() == 3 and powers.sum().item() == pytest.approx(1, abs=1e-4)  # 8 to 16 Hz


def test_the_rule_accepts_content_as_content_and_style_as_style(clips):
    judge = Judge(*clips)
    content, style, nothing = judge(clips[0]), judge(clips[1]), judge(levelled(torch.randn(9600, generator=torch.Generator().manual_seed(5))))
    assert content["keeps"] and content["pitch"] > 0.999 and content["onsets"] > 0.999 and not content["takes"] and not content["passes"]
    assert style["takes"] and style["from_style"] == 0 and not style["keeps"] and not nothing["keeps"]


def test_the_pitch_track_is_that_of_the_tone(clips):
    pitch, at = pitch_track(clips[0]), np.arange(9600 // HOP + 1) * HOP / RATE
    voiced = ~np.isnan(pitch)
    true = 160 + 40 * np.sin(2 * np.pi * 1.5 * at)
    assert voiced.mean() > 0.5 and np.median(abs(np.log2(pitch / true))[voiced]) < 0.03


def test_a_correlation_with_what_does_not_move_is_0():
    assert correlation(np.ones(9), np.arange(9)) == 0 == correlation(np.arange(2), np.arange(2)) and correlation(np.arange(9), -np.arange(9)) == pytest.approx(-1)


def test_bands_add_up_to_one_and_the_equaliser_reaches_the_styles_spectrum(clips):
    assert torch.allclose(bands_of(bands=20).sum(0), torch.ones(WINDOW // 2 + 1))
    ends = [texture(envelopes(x)) for x in clips]
    assert distances(texture(envelopes(equalised(*clips))), ends)["spectrum"][1] < 1


@pytest.mark.parametrize("f", [lambda c, s: match_gram(c, s, 1.0, 1), lambda c, s: match_patches(c, s, 1.0, 1, 1), lambda c, s: moved_filter(c, s, 1.0, steps=1), Judge, check_pair])
def test_what_cannot_be_content_and_style_is_refused(clips, f):
    content, style = clips
    for bad, message in (((content, style[:-5]), "crop the longer"), ((content, 0 * style), "style is silent"), ((0 * content, style), "content is silent"), ((content, style[None]), "one mono waveform"),
                         ((content * torch.nan, style), "NaN")):
        with pytest.raises(ValueError, match=message):
            f(*bad)


def test_other_rates_and_unknown_clips_are_named(clips):
    with pytest.raises(ValueError, match="44100 Hz; expected 16000"):
        check_pair(*clips, (RATE, 44_100))
    with pytest.raises(ValueError, match="unknown kind of clip 'harp'"):
        clip("harp", 0, "test")


def test_results_have_the_contents_length_and_the_filter_nears_the_style(clips):
    content, style = clips
    ends = [texture(envelopes(x)) for x in clips]
    far = lambda x: np.mean([v[1] for v in distances(texture(envelopes(x)), ends).values()])
    x, y = moved_filter(content, style, 1.0, steps=0), moved_filter(content, style, 1.0, steps=20)
    assert len(x) == len(y) == len(vocoded(content, style)) == len(content) and far(y) < far(x)


def test_pairs_are_whole_and_splits_share_no_clip():
    ends = {split: {end for pair in pairs for end in pair} for split, pairs in PAIRS.items()}
    texts = {split: {e[1] for e in found if e[0] in ("male", "female")} for split, found in ends.items()}
    assert not texts["valid"] & (texts["test"] | texts["test, later"]) and len(PAIRS["test"]) == len(PAIRS["test, later"]) == 10
    assert not {*PAIRS["test"]} & {*PAIRS["test, later"]}
    for i in (0, 9):
        content, style = pair_of(i, "test")
        assert len(content) == len(style) > RATE / 2 and content.square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-3)
    assert torch.equal(fitted(torch.arange(3), 7), torch.tensor([0, 1, 2, 0, 1, 2, 0]))


def test_the_best_weight_passes_most_then_is_nearest():
    rows = [dict(weight=w, passes=p, from_style=d) for w, p, d in ((1.0, True, 0.9), (10.0, True, 0.5), (100.0, False, 0.1))]
    assert best_weight(rows) == 10.0


def test_a_clip_comes_back_from_its_transform(clips):
    assert torch.allclose(istft(stft(clips[0], WINDOW, HOP), 9600, HOP), clips[0], atol=1e-5)


@pytest.mark.parametrize("n_fft", [512, 1024, 2048])
def test_rises_are_where_sound_begins(clips, n_fft):
    x = torch.zeros(9600)
    x[4800:] = 0.1 * torch.randn(4800, generator=torch.Generator().manual_seed(1))
    r, hop = rises(x, n_fft), n_fft // 8
    assert abs(r.argmax().item() * hop - 4800) < n_fft and r[: (4800 - n_fft) // hop].max() < 0.01 * r.max()
    assert as_correlation(rises(clips[0], n_fft), rises(0.01 * clips[0], n_fft)) > 0.999
    assert onset_track(clips[0]).shape == (9600 // HOP + 1,)


@pytest.mark.parametrize("f", [80.0, 200.0, 700.0])
def test_the_period_that_is_there_is_the_likeliest(f):
    "Also against its octaves, whose periods fit a sound nearly as well, or half of its partials."
    t = torch.arange(9600) / RATE
    x = sum(torch.sin(2 * torch.pi * k * f * t) / k for k in range(1, 8))
    lost = {r: lost_periods(x, np.full(9600 // HOP + 1, r * f)).item() for r in (0.5, 1.0, 1.5, 2.0) if 45 < r * f < 1000}
    assert min(lost, key=lost.get) == 1.0


def test_descent_on_periods_brings_a_pitch_back():
    "A missing period is found again by gradients alone."
    pitch = np.full(9600 // HOP + 1, 150.0)
    free = torch.randn(9600, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = lost_periods(free, pitch).item()
    descend(free, lambda: lost_periods(free, pitch), 0.02, 60)
    found = pitch_track(levelled(free.detach()))
    assert lost_periods(free, pitch) < 0.2 * before and abs(np.nanmedian(found) - 150) < 3


def test_the_source_has_the_pitch_it_is_told(clips):
    pitch = pitch_track(clips[0])
    e = excitation(pitch, 9600)
    assert 3 * lost_periods(e, pitch) < lost_periods(e, 1.3 * pitch)
    assert torch.equal(excitation(np.full(5, np.nan), 1000), torch.randn(1000, generator=torch.Generator().manual_seed(0)))
