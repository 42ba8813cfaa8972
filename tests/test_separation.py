"""`sepnb separate`, as a user meets it: files by other programs, bad input, nothing half written, and doubts where they are due."""
import errno
import math
import os
import shutil
import subprocess
import sys
import tempfile
import wave

import numpy as np
import pytest
import soundfile
import torch

import sepnb
from sepnb import audio, cli, recordings, toy
from sepnb.evaluation import si_sdr
from sepnb.presets import load_bank


def write_pcm(path, x, rate):
    "16-bit PCM through the standard library: a WAV that no code of ours has touched."
    x = np.atleast_2d(x)
    with wave.open(str(path), "wb") as f:
        f.setnchannels(len(x)), f.setsampwidth(2), f.setframerate(rate)
        f.writeframes((x.T * 32767).round().astype("<i2").tobytes())


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["sepnb", "separate", *map(str, args)])
    try:
        cli.main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
    return code, capsys.readouterr()


@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2)])
def test_a_file_by_another_program(tmp_path, monkeypatch, capsys, rate, channels):
    items = [3, 9][:channels]
    p = toy.ToyData("test").params(items)
    sources = torch.stack([toy.waveform(s, p["f"][:, k], p["a"][:, k], p["phi"][:, k], rate, rate) for k, s in enumerate(toy.SOURCES)], 1)
    write_pcm(tmp_path / "mix.wav", toy.mix(sources).numpy(), rate)
    code, said = run(monkeypatch, capsys, tmp_path / "mix.wav", "--out", tmp_path / "stems", "--add-up")
    assert code == 0 and "residual" in said.out
    stems = []
    for k, name in enumerate(toy.SOURCES):
        x, r = soundfile.read(tmp_path / "stems" / f"{name}.wav", always_2d=True)
        assert r == rate and x.shape == (rate, channels)
        stems.append(torch.from_numpy(x.T))
        assert (si_sdr(stems[-1], sources[:, k].double()) > 30).all(), name
    mix = soundfile.read(tmp_path / "mix.wav", always_2d=True)[0].T
    assert np.abs(sum(stems).numpy() - mix).max() < 1e-5, "the stems add up to the mix"


def test_bad_input_is_a_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys):
    good = toy.mix(toy.ToyData("test").batch([9]))[0].numpy()
    write_pcm(tmp_path / "silence.wav", np.zeros(16000), 16000)
    (tmp_path / "text.wav").write_text("not a sound")
    broken = good.copy()
    broken[5] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "loud.wav", good * 9, 16000, subtype="FLOAT")
    (tmp_path / "file").write_text("")
    write_pcm(tmp_path / "good.wav", good, 16000)
    for name, out, options, message in (("silence.wav", "a", (), "silent"), ("text.wav", "a", (), "text.wav"), ("nan.wav", "a", (), "nan.wav"),
                                        ("loud.wav", "a", (), "expected at most 1"), ("none.wav", "a", (), "no audio file"), ("good.wav", "file", (), "expected a folder"),
                                        ("good.wav", "a", ("--method", "magic"), "choose one of pursuit"), ("good.wav", "a", ("--priors", "jazz"), "choose one of musdb18, ")):
        code, said = run(monkeypatch, capsys, tmp_path / name, "--out", tmp_path / out, *options)
        assert code == 1 and message in said.err and "Traceback" not in said.err, (name, said.err)
        assert not list(tmp_path.glob("a/*")), f"{name} left something behind"


def tones(t, rate=16000, items=(9,), **changed): # -> (len(items), 4, t)
    "Toy sources of any length and rate, with frequencies `f` or amplitudes `a` changed: f(values) -> values."
    p = toy.ToyData("valid").params(list(items))
    p |= {k: f(p[k].clone()) for k, f in changed.items()}
    return torch.stack([toy.waveform(s, p["f"][:, k], p["a"][:, k], p["phi"][:, k], t, rate) for k, s in enumerate(toy.SOURCES)], 1)


@pytest.fixture(scope="module")
def bank():
    return load_bank("wavetable", preset="laptop")


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
def test_every_rate_and_length(monkeypatch, rate):
    "All of the machinery but the search: stems that are quarters of the mix must add up to it, at every sample."
    def solver(bank, method, size, rate, *_):
        quarters = lambda x: (x[:, None].expand(-1, 4, -1).numpy(), np.zeros(len(x)), [(math.inf, "left")] * len(x))
        return lambda pieces, starts: [lambda x=x: quarters(x) for x in pieces.transpose(0, 1)]
    monkeypatch.setattr(recordings, "_solver", solver)
    for seconds in (0.3, 1, 1.5, 7):
        for channels in (1, 2):
            x = torch.rand(channels, round(rate * seconds), generator=torch.Generator().manual_seed(0)) * 2 - 1
            stems, share = sepnb.separate(x, rate=rate, progress=False)
            assert stems.shape == (4, *x.shape) and share < 1e-12 and (stems.sum(0) - x).abs().max() < 1e-5, (seconds, channels)


@pytest.mark.parametrize("rate, seconds, channels", [(8000, 7, 1), (22050, 0.3, 2), (44100, 1.5, 1), (96000, 1.1, 1)])
def test_other_rates_are_separated(bank, rate, seconds, channels):
    sources = tones(round(rate * seconds), rate, items=(3, 9)[:channels])
    found = sepnb.separate(toy.mix(sources), bank, rate=rate, progress=False)
    assert (si_sdr(found.stems.transpose(0, 1), sources) > 30).all() and not found.doubts


def test_windows_of_a_long_recording(bank):
    sources = tones(80000)
    mix = toy.mix(sources)[0]
    found = sepnb.separate(mix, bank, progress=False, workers=2)
    stems, share = found
    assert stems.shape == (4, 80000) and share < 1e-9 and not found.doubts
    assert (si_sdr(stems, sources[0]) > 60).all(), "as good as a single window"
    assert torch.equal(stems, sepnb.separate(mix, bank, progress=False, workers=1).stems), "whatever the number of threads"


def test_a_hint_is_carried_from_window_to_window(bank, monkeypatch):
    searched = []
    monkeypatch.setattr("sepnb.pursuit.greedy", lambda heard, classes, greedy=sys.modules["sepnb.pursuit"].greedy: searched.append(1) or greedy(heard, classes))
    sepnb.separate(toy.mix(tones(16000 * 4))[0], bank, progress=False)
    assert len(searched) == 1, "seven windows of the same tones need one search"


def test_16_bit_files_are_rounded_to_the_nearest_step(tmp_path):
    "libsndfile rounds floats down, which adds half a step of direct current to every file."
    x = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for suffix in ("wav", "flac"):
        audio.save(tmp_path / f"x.{suffix}", x)
        off = (audio.load(tmp_path / f"x.{suffix}", mono=False) - x) * 32768
        assert off.abs().max() <= 0.51 + (x.max() * 32768 > 32767) and off.mean().abs() < 0.02, suffix


def test_files_by_other_programs_need_one_search_for_each_chord(tmp_path, bank, monkeypatch):
    "Rounding down leaves -86 dB that are no tone: that is nothing to read again."
    searched = []
    monkeypatch.setattr("sepnb.pursuit.greedy", lambda heard, classes, greedy=sys.modules["sepnb.pursuit"].greedy: searched.append(1) or greedy(heard, classes))
    monkeypatch.setattr("sepnb.pursuit.readings", lambda *_: pytest.fail("read again"))
    mix = toy.mix(tones(44100 * 3, 44100))[0]
    found = sepnb.separate((mix * 32768).floor() / 32768, bank, rate=44100, progress=False)
    assert len(searched) <= 2 and not found.doubts and found.unexplained < 1e-8


def test_memory_is_bounded(monkeypatch):
    "A recording is read and given out in pieces of a few windows, in order."
    spans, out = [], []
    def read(start, stop):
        spans.append(stop - start)
        return torch.zeros(1, stop - start) + 0.1
    monkeypatch.setattr(recordings, "_solver", lambda *_: lambda pieces, starts: [
        lambda: (np.zeros((len(pieces), 4, pieces.shape[-1]), np.float32), np.ones(len(pieces)), [(0.0, "left")] * len(pieces))])
    unexplained, windows = recordings._separate(read, 16000 * 120, lambda stems: out.append(stems.shape[-1]), "toy", progress=False)
    assert sum(out) == 16000 * 120 and max(spans + out) <= 16000 * 5 and unexplained == 1 and len(windows) == 239


def test_quiet_sources_and_two_classes_at_one_pitch(bank):
    "Both came out wrong, and were said to be explained."
    def unison(f):
        f[:, 3] = f[:, 0]
        return f
    quiet = lambda a: a * torch.tensor([1.0, 1.0, 0.05, 0.5])
    for sources in (tones(16000, items=(0,), f=unison), tones(16000, items=(1,), a=quiet)):
        found = sepnb.separate((toy.mix(sources)[0] * 32767).round() / 32767, bank, progress=False)
        assert (si_sdr(found.stems, sources[0]) > 40).all() and not found.doubts


@pytest.mark.parametrize("method", ["projection", "dirac"])
def test_samplers_that_keep_the_mix_are_doubted(bank, method):
    "They leave nothing of the mix whatever they do, which is no reason to believe them."
    sources = tones(4000)
    found = sepnb.separate(toy.mix(sources)[0], bank, method=method, sigmas=(1.0, 0.1, 0.01), generator=torch.Generator().manual_seed(0), progress=False)
    assert found.unexplained < 1e-6 and (si_sdr(found.stems, sources[0]) < 10).any() and found.doubts


def test_a_mix_that_the_priors_do_not_explain_is_said_to_be_one():
    noise = 0.2 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    found = sepnb.separate(noise, progress=False)
    assert torch.isfinite(found.stems).all() and found.unexplained > 0.5 and found.doubts


def test_the_command_says_what_it_doubts(tmp_path, monkeypatch, capsys):
    write_pcm(tmp_path / "good.wav", toy.mix(tones(16000))[0].numpy(), 16000)
    noise = torch.rand(16000, generator=torch.Generator().manual_seed(0)) - 0.5
    write_pcm(tmp_path / "noise.wav", noise.numpy(), 16000)
    for name, options, says in (("good", (), "nothing speaks against"), ("noise", (), "doubtful"), ("good", ("--method", "projection", "--window", "0.25"), "doubtful")):
        code, said = run(monkeypatch, capsys, tmp_path / f"{name}.wav", "--out", tmp_path / "stems", *options)
        assert code == 0 and says in said.out, (name, options, said)


def fails(monkeypatch, capsys, *args, says):
    code, said = run(monkeypatch, capsys, *args)
    assert code == 1 and said.err.strip().splitlines()[-1].startswith("sepnb: ") and says in said.err and "Traceback" not in said.err, said.err


def test_a_full_disk_leaves_no_stems(tmp_path, monkeypatch, capsys):
    write_pcm(tmp_path / "mix.wav", toy.mix(tones(40000))[0].numpy(), 16000)
    write, calls = soundfile.SoundFile.write, []
    def full(self, data):
        calls.append(1)
        if len(calls) == 3:
            raise soundfile.LibsndfileError(2)  # as libsndfile says it
        write(self, data)
    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    fails(monkeypatch, capsys, tmp_path / "mix.wav", "--out", tmp_path / "new" / "stems", says="cannot be written")
    assert len(calls) == 3 and sorted(p.name for p in tmp_path.iterdir()) == ["mix.wav"], "no stems, no folder"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "saw.wav").write_text("an older one")
    calls.clear()
    fails(monkeypatch, capsys, tmp_path / "mix.wav", "--out", tmp_path / "old", says="cannot be written")
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["saw.wav"] and (tmp_path / "old" / "saw.wav").read_text() == "an older one"


def test_a_disk_that_is_too_small_is_known_before_the_work(tmp_path, monkeypatch, capsys):
    write_pcm(tmp_path / "mix.wav", toy.mix(tones(16000))[0].numpy(), 16000)
    monkeypatch.setattr(recordings, "_separate", lambda *_, **__: pytest.fail("worked before it looked"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    fails(monkeypatch, capsys, tmp_path / "mix.wav", "--out", tmp_path / "stems", says="the stems need 0 MB, and 0 MB are free")
    assert not (tmp_path / "stems").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"), reason="mounting needs root")
@pytest.mark.parametrize("options, says", [("size=100k", "are free"), ("size=10m,ro", "Read-only")])
def test_real_disks_that_are_full_or_read_only(tmp_path, monkeypatch, capsys, options, says):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write_pcm(tmp_path / "mix.wav", toy.mix(tones(16000))[0].numpy(), 16000)
        fails(monkeypatch, capsys, tmp_path / "mix.wav", "--out", disk, says=says)
        if "ro" not in options:
            monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 10**9))  # found out too late
            fails(monkeypatch, capsys, tmp_path / "mix.wav", "--out", disk, says="cannot be written")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_folders_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    write_pcm(tmp_path / "mix.wav", toy.mix(tones(16000))[0].numpy(), 16000)
    (tmp_path / "file").write_text("")
    fails(monkeypatch, capsys, tmp_path / "mix.wav", "--out", tmp_path / "file" / "sub", says="Not a directory")
    def denied(*_, **__):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), "x")
    monkeypatch.setattr(tempfile, "mkstemp", denied)
    fails(monkeypatch, capsys, tmp_path / "mix.wav", "--out", tmp_path / "stems", says="sine.wav: Permission denied")
    assert not (tmp_path / "stems").exists()


@pytest.mark.parametrize("window", ["inf", "nan", "0", "-1", "0.0001"])
def test_windows_that_are_none(tmp_path, monkeypatch, capsys, window):
    write_pcm(tmp_path / "mix.wav", toy.mix(tones(16000))[0].numpy(), 16000)
    fails(monkeypatch, capsys, tmp_path / "mix.wav", "--out", tmp_path / "stems", "--window", window, says="the window")
    assert not (tmp_path / "stems").exists()


def test_the_package_does_not_import_torch():
    code = "import sys, sepnb; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_few_samples_are_too_few():
    with pytest.raises(ValueError, match="expected at least"):
        sepnb.separate(torch.zeros(10) + 0.1, progress=False)
