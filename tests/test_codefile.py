"""Files of codes: what goes in comes out, whatever the file; what is damaged or of another model is refused, and nothing is half written."""
import json
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest
import soundfile as sf
import torch

from sepnb import cli, codefile
from sepnb.audio import RATE, load, save
from sepnb.codefile import MAGIC, decode_file, encode_file, load_codec, open_codes, pack, separate_in_one_step, unpack
from sepnb.songs import excerpts
from typer.testing import CliRunner

run = lambda *args: CliRunner().invoke(cli.app, [str(a) for a in args])


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setenv("SEPNB_PRESET", "smoke")


def song(folder, seconds=5.0, rate=RATE, channels=1, name="song.wav"):
    x = excerpts("valid")[0].mix()
    x = x.repeat(int(seconds * RATE / len(x)) + 1)[: int(seconds * RATE)]
    from sepnb.audio import resample
    save(folder / name, resample(x, RATE, rate).expand(channels, -1).clamp(-1, 1), rate)
    return folder / name


@pytest.mark.parametrize("bits", [1, 3, 7, 12])
@pytest.mark.parametrize("count", [1, 8, 1001])
def test_bits(bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, count)
    assert (unpack(pack(codes, bits), bits, count) == codes).all()
    assert len(pack(codes, bits)) == -(-count * bits // 8)


@pytest.mark.parametrize("seconds, rate, channels", [(0.3, 16_000, 1), (1.0, 44_100, 2), (5.03, 8_000, 1), (16.0, 16_000, 1), (16.7, 48_000, 2), (33.2, 22_050, 1)])
def test_there_and_back(tmp_path, seconds, rate, channels):
    path = song(tmp_path, seconds, rate, channels)
    header, bits = encode_file(path, tmp_path / "song.codes", progress=False)
    stems = [load(p, rate=None) for p in decode_file(tmp_path / "song.codes", tmp_path / "stems", progress=False)]
    assert [len(s) for s in stems] == [header.samples] * 4 and abs(header.samples / RATE - seconds) < 1e-3
    assert bits == pytest.approx(8 * (tmp_path / "song.codes").stat().st_size / seconds, rel=1e-3)
    coded = open_codes(tmp_path / "song.codes")
    (a, b), *rest = header.pieces
    until = rest[0][0] if rest else header.samples
    assert torch.allclose(torch.stack(stems)[:, :until], coded.read(a, b)[:, 0, :until], atol=1e-6)
    model, _ = load_codec()
    if rate == RATE:  # the network's own answer to the first piece
        x = torch.nn.functional.pad(load(path), (0, max(b - header.samples, 0)))[:b]
        level = load(path)[:b].square().mean().sqrt() + 1e-6
        with torch.no_grad():
            assert torch.allclose(level * model(x[None] / level).sources[0][:, :until], torch.stack(stems)[:, :until], atol=1e-4)


def test_pieces_cover_everything_in_whole_seconds(tmp_path):
    header, _ = encode_file(song(tmp_path), tmp_path / "song.codes", progress=False)
    from dataclasses import replace
    for n in (1, RATE, RATE + 1, 16 * RATE, 16 * RATE + 1, 17 * RATE, 100 * RATE - 3, 3600 * RATE):
        h = replace(header, samples=n)
        assert h.pieces[0][0] == 0 and h.pieces[-1][1] == h.length >= n > h.length - RATE
        assert all(0 < b - a <= 16 * RATE and a % RATE == 0 for a, b in h.pieces)
        assert all(b - c >= RATE for (_, b), (c, _) in zip(h.pieces, h.pieces[1:]))


def test_where_pieces_meet_they_are_faded(tmp_path):
    "In the overlap every sample lies between what the two pieces say."
    header, _ = encode_file(song(tmp_path, 20.0), tmp_path / "song.codes", progress=False)
    stems = torch.stack([load(p) for p in decode_file(tmp_path / "song.codes", tmp_path / "stems", progress=False)])
    coded, ((a, b), (c, d)) = open_codes(tmp_path / "song.codes"), header.pieces
    one, two = coded.read(a, b)[:, 0, c:], coded.read(c, d)[:, 0, : b - c]
    here = stems[:, c:b]
    assert (here <= torch.maximum(one, two) + 1e-6).all() and (here >= torch.minimum(one, two) - 1e-6).all()


def test_codes_of_the_same_song_are_the_same(tmp_path):
    path = song(tmp_path)
    for name in "ab":
        encode_file(path, tmp_path / name, progress=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def changed(content, **over):
    "Another header, with a checksum that is right."
    line, _, rest = content[len(MAGIC):-4].partition(b"\n")
    content = MAGIC + json.dumps(json.loads(line) | over).encode() + b"\n" + rest
    return content + struct.pack("<I", zlib.crc32(content))


@pytest.mark.parametrize("damage, said", [
    (lambda c: c[:-1], "cut short: its header promises"),
    (lambda c: c[:40], "header of song.codes is damaged"),
    (lambda c: c + b"x", "too long"),
    (lambda c: c[:-30] + bytes([c[-30] ^ 1]) + c[-29:], "checksum"),
    (lambda c: b"RIFF" + c, "not a file of codes"),
    (lambda c: b"", "not a file of codes"),
    (lambda c: changed(c, hash="0" * 12), "made by other weights"),
    (lambda c: changed(c, rate=44_100), "trained at 16000 Hz"),
    (lambda c: changed(c, model="../../etc/passwd"), "unknown codec"),
    (lambda c: changed(c, preset="paper"), "no weights of rqvae-codes"),
    (lambda c: changed(c, samples="many"), "damaged"),
    (lambda c: changed(c, samples=-3), "damaged"),
    (lambda c: changed(c, samples=100 * RATE), "do not take"),
    (lambda c: changed(c, bytes=10**12), "cut short"),
    (lambda c: c[:60] + b"x" + c[61:], "damaged"),
    (lambda c: changed(c, more=1), "damaged"),
])
def test_bad_files_are_refused_and_nothing_is_written(tmp_path, damage, said):
    encode_file(song(tmp_path), tmp_path / "song.codes", progress=False)
    (tmp_path / "song.codes").write_bytes(damage((tmp_path / "song.codes").read_bytes()))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        decode_file(tmp_path / "song.codes", tmp_path / "stems", progress=False)
    assert not (tmp_path / "stems").exists()


def test_what_cannot_be_encoded_says_so(tmp_path):
    sf.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="silent"):
        encode_file(tmp_path / "silent.wav", tmp_path / "x.codes", progress=False)
    path = song(tmp_path)
    with pytest.raises(ValueError, match="overwritten"):
        encode_file(path, path, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="x.codes"):
        encode_file(path, tmp_path / "file" / "x.codes", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "silent.wav", "song.wav"]


def test_a_pause_of_a_minute_stays_one(tmp_path):
    x = torch.cat([excerpts("valid")[0].mix()[:RATE], torch.zeros(40 * RATE)])
    save(tmp_path / "song.wav", x.clamp(-1, 1))
    encode_file(tmp_path / "song.wav", tmp_path / "song.codes", progress=False)
    stems = torch.stack([load(p) for p in decode_file(tmp_path / "song.codes", tmp_path / "stems", progress=False)])
    assert stems[:, -10 * RATE :].abs().max() < 1e-4


@pytest.mark.parametrize("seconds, rate, channels", [(2.0, 44_100, 2), (17.0, 16_000, 1), (1.5, 8_000, 1)])
def test_one_step_keeps_rate_channels_and_length(tmp_path, seconds, rate, channels):
    path = song(tmp_path, seconds, rate, channels)
    found = separate_in_one_step(path, tmp_path / "stems", progress=False)
    for p in found.paths:
        info = sf.info(p)
        assert (info.samplerate, info.channels, info.frames) == (rate, channels, sf.info(path).frames)
    assert (tmp_path / "stems" / "index.html").exists() and np.isfinite(found.residual)


def test_the_commands(tmp_path):
    path = song(tmp_path, 3.0, 44_100, 2)
    done = run("encode", path, tmp_path / "song.codes")
    assert done.exit_code == 0 and "kbit/s" in done.output
    done = run("decode", tmp_path / "song.codes", "--out", tmp_path / "stems")
    assert done.exit_code == 0 and (tmp_path / "stems" / "piano.wav").exists()
    done = run("separate", path, "--out", tmp_path / "one", "--priors", "slakh", "--method", "rqvae")
    assert done.exit_code == 0 and "no weights of Slakh2100" in done.output and (tmp_path / "one" / "bass.wav").exists()
    assert "rqvae" in str(run("separate", path, "--priors", "songs", "--method", "pursuit").exception)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not here")
def test_a_file_of_another_program(tmp_path):
    path = song(tmp_path, 3.0)
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", path, "-ar", "96000", "-ac", "2", "-sample_fmt", "s32", tmp_path / "song.flac"], check=True)
    header, _ = encode_file(tmp_path / "song.flac", tmp_path / "song.codes", progress=False)
    assert header.from_rate == 96_000 and header.from_channels == 2 and header.samples == 3 * RATE
