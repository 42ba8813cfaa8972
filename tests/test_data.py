"""Data sets of music: the layouts that people have, written and read by other people's programs, and what is wrong with a copy said before any work is lost."""
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from sepnb import cli, musdb18, slakh, songs
from sepnb.audio import RATE
from sepnb.frames import PLAYS, Frames, Song, SourceFrames, prepared, save_song
from sepnb.registry import DATA

HAVE = shutil.which("ffmpeg") and shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(not HAVE, reason="ffmpeg is not here")
try:
    songs.synthesiser("general")
    SYNTH = True
except FileNotFoundError:
    SYNTH = False
needs_synth = pytest.mark.skipif(not SYNTH, reason="FluidSynth or its SoundFont is not here")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path / "home"))
    return tmp_path


def stems(seconds=2.0, sources=musdb18.SOURCES):
    "Stereo stems at 44.1 kHz from the excerpts, so that they are music."
    song = songs.excerpts("test")[0]
    arranged = songs.Arranged(song, musdb18.STEMS if sources == musdb18.SOURCES else {p: (p,) for p in sources})
    x = songs.resample(arranged[:], RATE, songs.HZ)[:, : int(seconds * songs.HZ)]
    return {s: torch.stack([v, 0.9 * v]) for s, v in zip(sources, x * 0.8)}


def test_excerpts_are_small_and_whole():
    folder = songs.artifacts() / "excerpts" / "songs"
    files = sorted(folder.glob("*.flac"))
    assert sum(f.stat().st_size for f in files) < 8e6
    for split in songs.SETS:
        found = songs.excerpts(split)
        assert found and all(s.rate == RATE and s.samples == 5 * RATE for s in found)
        assert all((s.stems.sum(0).abs().max() <= 1) and (s.stems.square().mean(-1).sqrt() > 1e-3).sum() >= 4 for s in found)


@pytest.mark.parametrize("name", ["songs", "musdb18-songs"])
def test_generated_sets_need_no_synthesiser(name, home):
    data = DATA[name]
    for split in data.splits:
        a, b = data.items(split, t=4000), data.items(split, t=4000)
        assert a[3].shape == (4, 4000) and torch.equal(a.batch([3, 11]), b.batch([3, 11]))
        assert not torch.equal(a[3], data.items(split, t=4000, seed=1)[3])
        assert data.source(a, data.sources[0])[5].shape == (4000,)
    assert torch.allclose(data.mix(a[0]), a[0].sum(0))
    first = [data.items("test", t=1000).songs[i % 4].path for i in range(4)]
    assert len({*first}) == 4, "the first items come from all songs"


@needs_ffmpeg
@pytest.mark.parametrize("hq", [True, False], ids=["musdb18-hq", "musdb18"])
def test_musdb_itself_opens_the_generated_set(hq, home):
    import musdb

    made = stems()
    for subset in ("train", "test"):
        musdb18.write_musdb18(home / "set", subset, "A song - Somebody", made, hq=hq)
    for subset in ("train", "test"):
        track, = musdb.DB(root=home / "set", is_wav=hq, subsets=[subset]).tracks
        assert track.rate == songs.HZ and {*musdb18.SOURCES} <= {*track.targets}
        audio = {s: track.targets[s].audio for s in musdb18.SOURCES}
        rest = track.audio - sum(audio.values())
        assert 10 * np.log10((rest**2).sum() / (track.audio**2).sum()) < (-60 if hq else -20), "the stems add up to the mix, within the codec's tolerance"
        n = made["bass"].shape[1]
        assert np.corrcoef(audio["bass"][:n, 0], made["bass"][0].numpy())[0, 1] > 0.99
    found = musdb18.prepare_musdb18(home / "set", progress=False)
    assert [f["split"] for f in found] == ["train", "test"] and DATA["musdb18"].items("test", t=8000)[0].shape == (4, 8000)


@needs_ffmpeg
def test_a_damaged_musdb18_says_what_is_wrong(home):
    with pytest.raises(FileNotFoundError, match="musdb18 is not here"):
        DATA["musdb18"].items("train")
    made = stems(1.0)
    for name in ("A - one", "B - two"):
        musdb18.write_musdb18(home / "set", "test", name, made, hq=True)
    bad = home / "set/test/B - two"

    def refused(pattern):
        with pytest.raises(ValueError, match=pattern):
            musdb18.prepare_musdb18(home / "set", progress=False)

    x, rate = soundfile.read(bad / "bass.wav")
    soundfile.write(bad / "bass.wav", x[: len(x) // 2], rate)
    refused("B - two has stems of unequal length")
    soundfile.write(bad / "bass.wav", np.zeros_like(x), rate)
    assert musdb18.prepare_musdb18(home / "set", "with a silent stem", progress=False)[1]["silent"][0] == "bass"
    (bad / "bass.wav").write_bytes(b"this is no sound")
    refused("B - two cannot be read")
    found = musdb18.prepare_musdb18(home / "set", skip=True, progress=False)
    assert [("problem" in f) for f in found] == [False, True] and len(prepared("musdb18", "test")) == 1
    with pytest.raises(FileNotFoundError, match="no copy of musdb18"):
        musdb18.prepare_musdb18(home, progress=False)
    with pytest.raises(FileNotFoundError, match="no prepared songs of 'musdb18', split 'train'"):  # that copy has no train/
        DATA["musdb18"].items("train")


def test_slakh_in_both_layouts(home):
    made = stems(1.0, songs.PLAYERS)
    midi = songs.compose("train", 0)
    folder = slakh.write_slakh(home / "orig", "train", 1, made, midi)
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "metadata.yaml", "all_src.mid", "mix.flac", *(f"stems/S0{k}.flac" for k in range(5)), *(f"MIDI/S0{k}.mid" for k in range(5))}
    mix, parts = soundfile.read(folder / "mix.flac")[0], [soundfile.read(folder / f"stems/S0{k}.flac")[0] for k in range(5)]
    assert np.abs(mix - sum(parts)).max() < 2e-4
    slakh.write_stems(home / "four", "train", "Track00001", made)
    for name, root in (("slakh-orig", "orig"), ("slakh-stems", "four")):
        assert slakh.prepare_slakh(home / root, name, progress=False)[0]["silent"] == []
    a, b = (prepared(n, "train")[0][:][:, 100:15_000] for n in ("slakh-orig", "slakh-stems"))
    assert 10 * torch.log10((a - b).square().sum() / a.square().sum()) < -30
    with pytest.raises(ValueError, match="orig holds the generated songs"):
        slakh.prepare_slakh(home / "orig", progress=False)
    slakh.write_stems(home / "other", "train", "Track00001", made)
    with pytest.raises(ValueError, match="Track00001 was prepared from four, not from other"):
        slakh.prepare_slakh(home / "other", "slakh-stems", progress=False)
    (folder / "metadata.yaml").write_text("stems:")
    with pytest.raises(ValueError, match="Track00001/metadata.yaml cannot be read"):
        slakh.prepare_slakh(home / "orig", "again", progress=False)
    (folder / "metadata.yaml").write_text("stems: [")
    with pytest.raises(ValueError, match="Track00001/metadata.yaml cannot be read"):
        slakh.prepare_slakh(home / "orig", "again", progress=False)


def test_songs_that_are_damaged_or_too_short(home):
    save_song(home / "home/songs/train/one.safetensors", torch.zeros(5, 2000), songs.PLAYERS)
    with pytest.raises(ValueError, match="one.safetensors has 2000 samples, shorter than a frame of 4000"):
        DATA["songs"].items("train", t=4000)
    whole = (home / "home/songs/train/one.safetensors").read_bytes()
    (home / "home/songs/train/one.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="one.safetensors is no song of sepnb, or was cut short"):
        DATA["songs"].items("train", t=1000)
    with pytest.raises(ValueError, match="reaches a magnitude of 2"):
        save_song(home / "loud.safetensors", torch.full((5, 10), 2.0), songs.PLAYERS)
    assert not (home / "loud.safetensors").exists()


def test_a_song_without_the_source_is_replaced_by_another(home):
    noise = 0.1 * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    for i, missing in enumerate(([], [0], [0, 1])):  # of the first song, the second, the third
        x = noise.clone()
        x[missing + [2]] = 0
        save_song(home / f"home/trio/train/{i}.safetensors", x, ("a", "b", "c"))
    frames = Frames(prepared("trio", "train"), t=1000, per_song=20, seed=3)
    for source in "ab":
        alone = SourceFrames(frames, source)
        x = alone.batch(range(60))
        assert (x.square().mean(-1).sqrt() > PLAYS).all() and len({tuple(v[:4].tolist()) for v in x}) == 60, "no frame is silent, and no two are the same"
        assert torch.equal(x, SourceFrames(frames, source).batch(range(60))) and torch.equal(torch.stack(alone.__getitems__([4, 5])), x[4:6])
        for i in (0, 3, 57):  # of the first song, which has both
            song, start = next(frames.places(i, 1 + "abc".index(source)))
            assert torch.equal(x[i], song[start : start + 1000]["abc".index(source)])
    with pytest.raises(ValueError, match="c plays in none of the 3 songs of this split"):
        SourceFrames(frames, "c")[0]


def test_weights_and_results_say_which_songs_were_read(home, monkeypatch):
    from sepnb import presets, registry, store

    (home / "artifacts").mkdir()
    (home / "artifacts/excerpts").symlink_to(songs.artifacts() / "excerpts")
    monkeypatch.setenv("SEPNB_ARTIFACTS", str(home / "artifacts"))
    name = "musdb18-songs"
    path = presets.train("flowavenet", name, "bass", "smoke", run=home / "run", progress=False)
    assert store.load_tensors(path)[1]["songs"] == {"songs, train": "shipped excerpts: 6, 30 s in all"}
    save_song(home / "home/songs/train/one.safetensors", torch.from_numpy(np.random.default_rng(0).uniform(-0.1, 0.1, (5, 40_000))).float(), songs.PLAYERS)
    with pytest.raises(ValueError, match="belongs to another run: its what is {'songs': {'songs, train': 'shipped excerpts: 6"):
        presets.train("flowavenet", name, "bass", "smoke", run=home / "run", progress=False)

    def example(preset):
        return pd.DataFrame(dict(x=[DATA[name].items(split, t=4000)[0].abs().max().item() for split in ("train", "test")]))

    monkeypatch.setitem(registry.EXPERIMENTS, "example", example)
    store.reproduce("example", "smoke")
    assert store.result("example", "smoke")[1]["songs"] == {"songs, train": "prepared songs: 1, 2 s in all", "songs, test": "shipped excerpts: 4, 20 s in all"}


def test_the_command(home):
    run = lambda *args: CliRunner().invoke(cli.app, ["data", *args])
    assert "choose one of" in str(run("toy").exception) and "songs" in str(run().exception)
    assert "where is it? sepnb data slakh PATH" in str(run("slakh").exception)
    assert "--layout is no option of musdb18" in str(run("musdb18", str(home), "--layout", "slakh").exception)
    assert "the layout slakh needs a folder" in str(run("songs", "--layout", "slakh").exception)
    slakh.write_stems(home / "four", "test", "a song", stems(1.0, songs.PLAYERS))
    done = run("slakh", str(home / "four"))
    assert done.exit_code == 0 and "a song" in done.output


def test_without_fluidsynth_the_error_says_what_to_install(monkeypatch, home):
    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    monkeypatch.setattr(songs, "_READY", {})
    with pytest.raises(FileNotFoundError, match="libfluidsynth3"):
        songs.make_songs(songs=1, split="valid", progress=False)
    monkeypatch.setitem(songs.FONTS, "general", "/nowhere/a.sf3")
    with pytest.raises(FileNotFoundError, match="the SoundFont a.sf3 is missing"):
        songs.font_path("general")


@needs_synth
def test_a_killed_rendering_goes_on_and_renders_the_same(tmp_path):
    command = [sys.executable, "-m", "sepnb.cli", "data", "songs", "--split", "valid", "--songs", "2"]
    usual = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}  # as a user has it: a forked copy must not wait for threads it does not have
    env = usual | {"SEPNB_DATA": str(tmp_path / "killed")}
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "killed/songs/valid"
    for _ in range(600):
        if any(folder.glob("*.safetensors")) or process.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
    subprocess.run(command, env=usual | {"SEPNB_DATA": str(tmp_path / "whole")}, check=True, capture_output=True, timeout=120)
    for i in range(2):
        a, b = (Song(tmp_path / w / f"songs/valid/valid-{i:03d}.safetensors") for w in ("killed", "whole"))
        assert torch.equal(a[:], b[:]), "the same song every time"
    assert not [p for p in folder.iterdir() if p.name.startswith(".") and str(process.pid) not in p.name]


@needs_synth
@pytest.mark.parametrize("layout", ["slakh", "slakh-stems", "musdb18-hq"])
def test_layouts_of_the_generated_songs(layout, tmp_path):
    made = songs.make_songs(out=tmp_path, layout=layout, songs=1, split="test-font", progress=False)
    again = songs.make_songs(out=tmp_path, layout=layout, songs=1, split="test-font", progress=False)
    assert (made[0]["made"], again[0]["made"]) == (1, 0)


def test_a_full_disk_leaves_whole_songs_and_the_run_goes_on(home, monkeypatch):
    for name in ("a song", "b song", "c song"):
        slakh.write_stems(home / "four", "test", name, stems(0.5, songs.PLAYERS))
    write = Path.write_bytes

    def full(path, content):
        if "b song" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"could not write .*b song.safetensors: No space left on device"):
        slakh.prepare_slakh(home / "four", progress=False)
    assert [p.name for p in (home / "home/slakh/test").iterdir()] == ["a song.safetensors"]
    monkeypatch.setattr(Path, "write_bytes", write)
    assert len(slakh.prepare_slakh(home / "four", progress=False)) == 3 and len(prepared("slakh", "test")) == 3


def test_mixed_rates_are_named(home):
    made = stems(0.5, songs.PLAYERS)
    folder = slakh.write_stems(home / "four", "test", "a song", made)
    soundfile.write(folder / "piano.wav", np.zeros(8000), 16_000)
    with pytest.raises(ValueError, match="a song/piano.wav has a rate of 16000 Hz, the stems before it 22050 Hz"):
        slakh.prepare_slakh(home / "four", progress=False)
    (folder / "piano.wav").unlink()
    with pytest.raises(ValueError, match="a song: piano.wav is missing"):
        slakh.prepare_slakh(home / "four", progress=False)


@needs_ffmpeg
def test_without_ffmpeg_the_error_says_what_to_install(home):
    musdb18.write_musdb18(home / "set", "test", "A - one", stems(0.5), hq=True)
    done = subprocess.run([sys.executable, "-m", "sepnb.cli", "data", "musdb18", str(home / "set")], env=os.environ | {"PATH": str(home)}, capture_output=True, text=True)
    assert done.returncode == 1 and "musdb18 needs the programs ffmpeg and ffprobe" in done.stderr and "Traceback" not in done.stderr
