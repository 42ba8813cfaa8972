"""Priors of music: what they may hear in training, that stems add up, files of every kind, signs of distrust."""
import re

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from sepnb import audio, cli, solos, songfiles
from sepnb.experts import Experts, in_pieces, load_experts, whole
from sepnb.foreign import foreign, stock
from sepnb.frames import SourceFrames
from sepnb.presets import load_bank, new_prior, recipe_for
from sepnb.registry import DATA
from sepnb.songfiles import separate_song, separated
from sepnb.training import PriorBank

NAMES = ("bass", "drums", "guitar", "piano")


@pytest.fixture(scope="module")
def experts():
    return load_experts({"solo": 1.0, "dictionary": 0.5}, None, preset="smoke")


class _Deaf:
    "Songs in which everything but one source is noise."

    def __init__(self, song, keep):
        self.song, self.keep, self.path, self.sources, self.rate, self.samples = song, keep, song.path, song.sources, song.rate, song.samples

    def __getitem__(self, span):
        x = self.song[span]
        others = torch.arange(len(x)) != self.keep
        x = x.clone()
        x[others] = torch.randn(x[others].shape)
        return x


@pytest.mark.parametrize("model", ["solo", "dictionary", "notes", "spectral-vae", "solocodec"])
def test_the_prior_of_a_class_learns_the_same_whatever_the_other_classes_play(model):
    "Trained on songs whose other stems are noise, a prior gets the same weights bit for bit."
    states = []
    for deaf in (False, True):
        frames = DATA["songs"].items("train", t=4096)
        if deaf:
            frames.songs = [_Deaf(s, 3) for s in frames.songs]
        prior = new_prior(model, "songs", "piano", "smoke")
        prior.learn(SourceFrames(frames, "piano"), recipe_for(model, "songs", "smoke")[1], progress=False)
        states.append(prior.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))


def test_foreign_sounds_read_no_recording(monkeypatch):
    monkeypatch.setattr("sepnb.songs.songs_of", lambda split: pytest.fail("a recording was read"))
    stock.cache_clear()
    assert foreign(2, 1000, stock(6, 2000), torch.Generator().manual_seed(0)).isfinite().all()


def test_whoever_removes_white_noise_alone_hears_no_foreign_sound(monkeypatch):
    monkeypatch.setattr(solos, "foreign", lambda *a: pytest.fail("foreign sounds were drawn"))
    prior = new_prior("solo-noise", "songs", "bass", "smoke")
    assert solos.rejecting_loss(prior, 0.1 * torch.randn(2, 4096), torch.Generator().manual_seed(0)).isfinite()


def test_log_odds_do_not_depend_on_level():
    prior = load_bank("solo", "songs", "smoke").priors[0]
    X = audio.stft(0.1 * torch.randn(1, 4000), 256)
    assert torch.allclose(prior.log_odds(X), prior.log_odds(30 * X), atol=1e-4)


def test_pieces_give_what_the_whole_gives_where_nothing_depends_on_it():
    x = torch.randn(1, 100_001)
    out = torch.cat(list(in_pieces(lambda a, b: x[:, a:b], x.shape[1], lambda y: torch.stack([0.25 * y, 0.75 * y]), 9000, 500)), -1)
    assert torch.allclose(out[0], 0.25 * x, atol=1e-6) and torch.allclose(out.sum(0), x, atol=1e-6)


def test_stems_of_a_mix_add_up(experts):
    mix = DATA["songs"].items("test", t=16_000).songs[0][:].sum(0)
    est = whole(mix, lambda x: separated(x[None], 16_000, experts)[0][:, 0])
    assert (est.sum(0) - mix).abs().max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.11, 1.7])
def test_files_of_every_kind(tmp_path, experts, rate, channels, seconds):
    n = np.arange(int(seconds * rate)) / rate
    x = 0.3 * np.stack([np.sin(2 * np.pi * f * n) for f in (110, 330)][:channels], 1) + 0.01 * np.random.default_rng(0).normal(size=(len(n), channels))
    soundfile.write(tmp_path / "mix.wav", x, rate)
    found = separate_song(tmp_path / "mix.wav", tmp_path / "stems", experts, progress=False)
    stems = [soundfile.read(p, always_2d=True) for p in found.paths]
    assert all(s.shape == x.shape and r == rate for s, r in stems)
    assert np.abs(sum(s for s, _ in stems) - soundfile.read(tmp_path / "mix.wav", always_2d=True)[0]).max() < 1e-4


def test_eight_bit_files_and_silence_between_sounds(tmp_path, experts):
    x = np.zeros(60_000)
    x[:9000] = x[50_000:] = 0.3
    x[::7] *= -1
    soundfile.write(tmp_path / "mix.wav", x, 16_000, subtype="PCM_U8")
    found = separate_song(tmp_path / "mix.wav", tmp_path / "stems", experts, progress=False)
    assert all(np.isfinite(soundfile.read(p)[0]).all() for p in found.paths)


@pytest.mark.parametrize("what, said", [("silent", "silent"), ("short", "tenth of a second"), ("text", "cannot be read as audio"), ("missing", "no audio file"), ("cut", "truncated")])
def test_bad_files_leave_nothing_behind(tmp_path, experts, what, said):
    path, rng = tmp_path / "mix.wav", np.random.default_rng(0)
    if what == "text":
        path.write_text("no sound")
    elif what != "missing":
        soundfile.write(path, np.zeros(8000) if what == "silent" else 0.1 * rng.normal(size=100 if what == "short" else 16_000), 16_000)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        separate_song(path, tmp_path / "a" / "stems", experts, progress=False)
    assert not (tmp_path / "a").exists()


def test_a_run_that_stops_leaves_no_stem(tmp_path, experts, monkeypatch):
    soundfile.write(tmp_path / "mix.wav", 0.1 * np.random.default_rng(0).normal(size=40 * 8000), 8000)
    calls, right = [], songfiles.separated

    def fails(*args):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(*args)
    monkeypatch.setattr(songfiles, "separated", fails)
    with pytest.raises(KeyboardInterrupt):
        separate_song(tmp_path / "mix.wav", tmp_path / "stems", experts, progress=False)
    assert len(calls) == 2 and not (tmp_path / "stems").exists()


def test_the_page_names_its_neighbours_alone(tmp_path, experts):
    soundfile.write(tmp_path / "a <b> & c.wav", 0.1 * np.random.default_rng(0).normal(size=8000), 16_000)
    separate_song(tmp_path / "a <b> & c.wav", tmp_path / "stems", experts, progress=False)
    page = (tmp_path / "stems" / "index.html").read_text()
    assert re.findall(r'src="([^"]*)"', page) == [f"{n}.wav" for n in NAMES]
    assert "<b>" not in page and str(tmp_path) not in page and "http" not in page


def test_silence_in_a_piece_does_not_hide_what_sounds_unlike_training():
    row = lambda start, misfit, magnitude: dict(start=start, source="bass", share=0.5, sure=1.0, unsure=0.1, misfit=misfit, magnitude=magnitude)
    found = songfiles.SongSeparation([], pd.DataFrame([row(0, 0.2, 1000.0), row(15, 0.0, 0.0)]))
    assert any("unlike training" in d for d in found.doubts)
    P = torch.zeros(1, 129, 20)
    assert songfiles.shared(P, load_experts({"solo": 1.0, "dictionary": 0.5}, {"solo": 0.5}, preset="smoke"))[1]["misfit"] == 0


def test_stems_do_not_overwrite_the_mix_or_another_page(tmp_path, experts):
    soundfile.write(tmp_path / "bass.wav", 0.1 * np.random.default_rng(0).normal(size=8000), 16_000)
    with pytest.raises(ValueError, match="overwritten"):
        separate_song(tmp_path / "bass.wav", tmp_path, experts, progress=False)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        separate_song(tmp_path / "bass.wav", tmp_path / "b", experts, progress=False)
    assert (tmp_path / "b" / "index.html").read_text() == "mine"


def test_a_page_that_cannot_be_written_leaves_no_stem(tmp_path, experts, monkeypatch):
    soundfile.write(tmp_path / "mix.wav", 0.1 * np.random.default_rng(0).normal(size=8000), 16_000)
    monkeypatch.setattr(songfiles, "_index", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        separate_song(tmp_path / "mix.wav", tmp_path / "stems", experts, progress=False)
    assert not (tmp_path / "stems").exists()


def test_absent_classes_are_silent(experts):
    "A class with a power below the threshold gets nothing, and the others share the mix."
    class Sure:
        names, window = NAMES, 2048
        def judge(self, P): return torch.tensor([0.997, 0.001, 0.001, 0.001])[None, :, None, None].expand(-1, -1, *P.shape[1:]), {}
    x = 0.1 * torch.randn(1, 16_000)
    stems, known = separated(x, 16_000, Sure())
    assert (stems[1:] == 0).all() and torch.allclose(stems[0], x, atol=1e-5)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_PRESET", "smoke")
    soundfile.write(tmp_path / "mix.wav", 0.1 * np.random.default_rng(0).normal(size=16_000), 16_000)
    run = lambda *more: CliRunner().invoke(cli.app, ["separate", str(tmp_path / "mix.wav"), "--priors", "songs", "--out", str(tmp_path / "stems"), *more])
    done = run()
    assert done.exit_code == 0 and "index.html" in done.output and "doubtful" in done.output, done.output
    assert "methods of songs" in str(run("--method", "dirac").exception)
    assert "unknown data set" in str(CliRunner().invoke(cli.app, ["separate", str(tmp_path / "mix.wav"), "--priors", "jazz"]).exception)
