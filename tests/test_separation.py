"""`sepnb separate`, as a user meets it: files by other programs, bad input, nothing half written."""
import sys
import wave

import numpy as np
import pytest
import soundfile
import torch

import sepnb
from sepnb import cli, toy
from sepnb.evaluation import si_sdr


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
                                        ("good.wav", "a", ("--method", "magic"), "choose one of pursuit"), ("good.wav", "a", ("--priors", "jazz"), "choose one of toy")):
        code, said = run(monkeypatch, capsys, tmp_path / name, "--out", tmp_path / out, *options)
        assert code == 1 and message in said.err and "Traceback" not in said.err, (name, said.err)
        assert not list(tmp_path.glob("a/*")), f"{name} left something behind"


def test_windows_of_a_long_recording():
    sources = toy.ToyData("test", t=40000).batch([9])
    stems, share = sepnb.separate(toy.mix(sources)[0], progress=False)
    assert stems.shape == (4, 40000) and share < 1e-3
    assert (si_sdr(stems, sources[0]) > 20).all()


def test_a_mix_that_the_priors_do_not_explain_is_said_to_be_one():
    noise = 0.2 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    stems, share = sepnb.separate(noise, progress=False)
    assert torch.isfinite(stems).all() and share > 0.5


def test_the_package_does_not_import_torch():
    import subprocess
    code = "import sys, sepnb; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_few_samples_are_too_few():
    with pytest.raises(ValueError, match="expected at least"):
        sepnb.separate(torch.zeros(10) + 0.1, progress=False)
