"""Clips with tags, the tagger and its fooling: what is wrong with a copy is named and counted, splits and names are what they say, areas agree with scikit-learn's, constraints bind."""
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from sepnb import fooling, tagger, tags
from sepnb.audio import RATE, stft
from sepnb.cli import app
from sepnb.frames import save_song
from sepnb.registry import PREPARE
from sepnb.songs import PLAYERS
from sepnb.tags import CALLED, NAMES, RULES, Clips, clips_of, in_order, make_tagged, merged, prepare_magnatagatune, read_tags, said_of, shuffled, takes, top, true_tags
from sepnb.training import Recipe, fit

noise = lambda *shape, k=0: torch.randn(*shape, generator=torch.Generator().manual_seed(k))


def write(folder, table): # name -> rows
    for name in ("annotations_final.csv", "clip_info_final.csv"):
        pd.DataFrame(table).to_csv(folder / name, sep="\t", index=False)


@pytest.fixture
def copy(tmp_path):
    "Something like MagnaTagATune: six clips of three songs, with everything wrong that can be."
    folder = tmp_path / "mtt"
    (folder / "f").mkdir(parents=True)
    paths = [f"f/band-album-0{n}-song-{s}-{s + 29}.mp3" for n in (1, 2, 3) for s in (0, 29)]
    write(folder, dict(clip_id=range(2, 8), drum=[1, 0, 0, 0, 0, 1], drums=[0, 1, 0, 0, 0, 0], kazoo=[0] * 6, mp3_path=paths))
    sound = lambda path, x, rate=RATE: soundfile.write(folder / path, x.numpy(), rate, format="MP3")
    sound(paths[0], 0.1 * noise(4 * RATE))
    (folder / paths[1]).touch()
    sound(paths[2], 0.1 * noise(4 * 44_100), 44_100)
    sound(paths[3], torch.zeros(4 * RATE))
    sound(paths[4], 0.1 * noise(RATE))
    (folder / paths[5]).write_bytes(b"<html>")
    return folder


# ---- bad input

def test_what_is_wrong_is_named_and_counted(copy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path / "data"))
    found = prepare_magnatagatune(copy)
    assert found == [dict(clips=1, left_out=5, songs=1, tags=1, never_said=1)]
    said = capsys.readouterr().err
    for why in ("1 clip left out, empty file: f/band-album-01-song-29-58.mp3", "44100 Hz, expected 16000", "silent", "shorter than 3 s", "damaged", "1 tags were never said and are left out: kazoo"):
        assert why in said
    assert len(clips_of("magnatagatune")) == 5 and prepare_magnatagatune(copy) == found
    with pytest.raises(ValueError, match="f/band-album-03-song-29-58.mp3 cannot be used: damaged"):
        clips_of("magnatagatune")[4]
    (tmp_path / "data" / "magnatagatune").unlink()
    (tmp_path / "data" / "magnatagatune").mkdir()
    with pytest.raises(ValueError, match="as a folder of its own"):
        prepare_magnatagatune(copy)


@pytest.mark.parametrize("change, said", [
    (lambda t: t.assign(drum=[1, 0, 0, 2, 0, 1]), "has 2 for 'drum'; expected 0 or 1"), (lambda t: t.assign(drum=[1, None, 0, 0, 0, 1]), "has nan for 'drum'"),
    (lambda t: t.assign(mp3_path=t.mp3_path.iloc[0]), "twice"), (lambda t: t.drop(columns="clip_id"), "begins with the column drum"), (lambda t: t.assign(more=0), "ends with more")])
def test_impossible_annotations_are_named(copy, change, said):
    table = pd.read_csv(copy / "annotations_final.csv", sep="\t")
    change(table).to_csv(copy / "annotations_final.csv", sep="\t", index=False)
    with pytest.raises(ValueError, match=said):
        read_tags(copy / "annotations_final.csv")


def test_absent_sets_and_files(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match="sepnb data magnatagatune PATH"):
        clips_of("magnatagatune")
    (copy / "annotations_final.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="annotations_final.csv is damaged"):
        read_tags(copy / "annotations_final.csv")
    (copy / "clip_info_final.csv").unlink()
    with pytest.raises(FileNotFoundError, match="has no clip_info_final.csv"):
        prepare_magnatagatune(copy)
    with pytest.raises(FileNotFoundError, match="sepnb data songs"):
        make_tagged(split="train")
    write(copy, dict(clip_id=[1], drum=[1], mp3_path=["0/not-there-0-29.mp3"]))
    with pytest.raises(ValueError, match="none of the 1 clips"):
        Clips(copy)


def test_the_command_finds_sets_without_sources(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path / "data"))
    assert {"tagged", "magnatagatune"} <= PREPARE.keys()
    done = CliRunner().invoke(app, ["data", "magnatagatune", str(copy)])
    assert done.exit_code == 0 and "left_out" in done.output
    assert "where is it? sepnb data magnatagatune PATH" in str(CliRunner().invoke(app, ["data", "magnatagatune"]).exception)
    assert "--songs is no option of magnatagatune" in str(CliRunner().invoke(app, ["data", "magnatagatune", str(copy), "--songs", "2"]).exception)
    assert "tagged" in str(CliRunner().invoke(app, ["data", "nothing"]).exception)


# ---- names, splits, labels

def test_merged_names():
    assert all(CALLED[n] == one for one, names in NAMES.items() for n in names) and CALLED["clasical"] == "classical" and CALLED["no singer"] == "no vocals"
    said = pd.DataFrame({n: [1, 0] for n in ("woman", "female vocals", "harpsicord", "kazoo")} | {"female": [0, 0]})
    assert merged(said).to_dict("list") == {"female": [1, 0], "harpsichord": [1, 0], "kazoo": [1, 0]}
    assert top(merged(said), 2) == ["female", "harpsichord"]


def test_splits():
    songs = np.repeat([f"s{i}" for i in range(50)], 4)
    tidy = in_order(songs)
    assert (tidy == "train").sum() == 152 and list(tidy) == sorted(tidy, key=["train", "valid", "test"].index)
    again = np.concatenate([songs, songs[:2]])  # a song that comes again goes where it was
    assert set(in_order(again)[-2:]) == {"train"}
    assert not {*songs[tidy == "train"]} & {*songs[tidy == "test"]}
    assert (shuffled(200) == "train").sum() == 190 and (shuffled(200) == "test").sum() == 10 and list(shuffled(50)) == list(shuffled(50)) != list(shuffled(50, seed=1))


def test_noise_in_labels_is_what_it_says():
    true = {t: i % 2 == 0 for i, t in enumerate(RULES)}
    rng, n = np.random.default_rng(0), 1500
    said = pd.DataFrame([{t: t in {CALLED.get(s, s) for s in names} for t in RULES} for names in (said_of(true, rng) for _ in range(n))]).mean()
    assert abs(said[[t for t in true if true[t]]].mean() - (1 - tags.MISSED)) < 0.01 and abs(said[[t for t in true if not true[t]]].mean() - tags.WRONG) < 0.003


def test_a_set_is_made_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path))
    for split in tags.OF_SONG:
        stems = 0.15 * noise(5, 12 * RATE).clamp(-4, 4)
        save_song(tmp_path / "songs" / split / f"{split}-000.safetensors", stems, PLAYERS)
    first = make_tagged(progress=False)
    assert [f["clips"] for f in first] == [3, 3, 3] == [f["made"] for f in first] and [f["made"] for f in make_tagged(progress=False)] == [0, 0, 0]
    clips, truth = clips_of(), clips_of(annotations="annotations_true.csv")
    assert len(clips) == 9 and not clips.left and set(truth.tags.columns) == set(RULES)
    for i, take in enumerate(takes("train", 0, 12.0)):
        assert clips.tags.index[i] == take.path and bool(truth.tags["vocal"].iloc[i]) == ("vocals" in take.who) and bool(truth.tags["solo"].iloc[i]) == (len(take.who) == 1)
    info = pd.read_csv(tmp_path / "tagged" / "clip_info_final.csv", sep="\t")
    assert list(info.columns) == ["clip_id", "track_number", "title", "artist", "album", "url", "segmentStart", "segmentEnd", "original_url", "mp3_path"]


def test_rules_agree_with_each_other():
    for who in ([], ["piano"], ["drums", "bass"], list(PLAYERS)):
        true = true_tags(tags.Heard(frozenset(who), dict(bass=32, drums=0, guitar=24, piano=4, vocals=52), 130.0, True, -40.0, 100.0))
        assert true["drum"] != true["no beat"] and true["sad"] != true["happy"] and not (true["fast"] and true["slow"]) and true["quiet"] and not true["loud"]
        assert true["piano solo"] == (who == ["piano"]) and not (true["acoustic"] and true["electronic"])


# ---- the tagger

@pytest.mark.parametrize("ties", [1, 6])
def test_areas_are_those_of_scikit_learn(ties):
    rng = np.random.default_rng(ties)
    y, s = rng.random(80) < 0.4, rng.random(80).round(ties)
    w = rng.integers(0, 4, (3, 80))
    assert np.isclose(tagger.auc(s, y), roc_auc_score(y, s))
    assert np.allclose(tagger.auc(s, y, w), [roc_auc_score(y, s, sample_weight=v) for v in w])
    assert np.isclose(tagger.auc(-s, y), 1 - tagger.auc(s, y)) and tagger.auc(y.astype(float), y) == 1


def test_songs_widen_the_interval():
    rng = np.random.default_rng(0)
    y = np.repeat(rng.random((20, 3)) < 0.5, 6, axis=0)
    s = np.repeat(rng.random((20, 3)), 6, axis=0) + 0.3 * y
    wide = lambda songs: np.ptp(tagger.mean_auc(s, y, songs)[2:])
    assert wide(np.repeat(np.arange(20), 6)) > 1.5 * wide(np.arange(120))


def test_it_does_not_hear_a_constant_and_takes_silence():
    torch.manual_seed(0)
    for front in ("raw", "mel"):
        net, x = tagger.Tagger(tagger.TaggerConfig(front, filters=4, width=4, hidden=4)).eval(), 0.1 * noise(2, 48_000)
        assert torch.allclose(net(x), net(x + 0.2), atol=1e-3) and net.says(torch.zeros(1, 100_000)).isfinite().all()
        assert torch.allclose(net.says(x), net(x).sigmoid())
    with pytest.raises(ValueError, match="expected at least 48000"):
        net.says(x[:, :1000])


def test_it_learns_which_noise_is_high():
    class High(torch.utils.data.Dataset):
        def __len__(self): return 32
        def __getitem__(self, i):
            x = 0.1 * noise(16_000, k=i)
            return torch.cat([torch.diff(x, prepend=x[:1]) if i % 2 else x.cumsum(0) / 30, torch.tensor([float(i % 2)])])

    torch.manual_seed(0)
    net = tagger.Tagger(tagger.TaggerConfig("raw", 64, 16, 8, 8, 1, 16_000))
    fit(net, tagger.tag_loss, High(), Recipe(steps=30, batch=16, frame=16_001, lr=1e-2), progress=False)
    x = torch.stack([High()[i] for i in range(32)])
    assert tagger.auc(net.eval()(x[:, :-1])[:, 0].detach().numpy(), x[:, -1].numpy()) > 0.9


# ---- fooling

@pytest.fixture(scope="module")
def few():
    items, x = fooling.starts("test", 1)
    return items, x, fooling.load_priors("smoke"), tagger.load_tagger("raw", 0, preset="smoke")


@pytest.mark.parametrize("name", list(fooling.RATES))
def test_constraints_bind(few, name):
    items, x, priors, net = few
    free, render, within = fooling.constraint(name)(x, priors)
    start = render(free)
    assert start.shape == x.shape and start.isfinite().all()
    pushed = within(free + noise(*free.shape))
    y = render(pushed)
    if name in ("waveform", "waveform, -40 dB", "magnitudes", "VAE"):
        assert (start - x).abs().max() < 1e-4
    if name == "waveform, -40 dB":
        assert (fooling.change(x, y) < -39.99).all()
    if name == "magnitudes":
        ratio = (free + 0.1).exp() * stft(x) / stft(x)
        assert ratio[stft(x).abs() > 1e-3].imag.abs().max() < 1e-3
    if name == "VAE":
        assert pushed[..., :-1].norm(dim=-1).max() <= free[..., :-1].norm(dim=-1).max() + 1e-4
    if name == "codes":
        assert torch.allclose(y, render(pushed + 1e-7 * noise(*free.shape, k=1)), atol=1e-3)


def test_the_ascent_stops_where_it_convinces(few):
    items, x, priors, net = few
    k = torch.zeros(len(x), dtype=torch.long)
    before = net(x).sigmoid()[:, 0]
    y, p = fooling.ascend(net, x, k, before - 0.01, fooling.constraint("waveform")(x, priors), 1e-3, 5)
    assert torch.equal(y, x), "nothing is changed of what convinces already"
    y, p = fooling.ascend(net, x, k, before + 1e-4, fooling.constraint("waveform")(x, priors), 1e-3, 20)
    assert (p >= before + 1e-4 - 1e-6).all() and (fooling.change(x, y) < 0).all()


def test_looks_and_cuts():
    flat, high = fooling.look(torch.stack([noise(48_000), noise(48_000).cumsum(0)]))
    assert flat[0] > 0.95 and abs(high[0] - 0.5) < 0.03 and flat[1] < 0.3 and high[1] < 0.05
    assert fooling.best_cut(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == 0.8
    with pytest.raises(ValueError, match="no clip without"):
        fooling.starts("nothing", 1)


def test_verdicts_follow_the_rules():
    rows = []
    for c, says in {"nothing": (0, 0, 0), "nothing, coded": (0, 0, 0), "waveform": (1, 0, 0), "VAE": (1, 0, 0), "codec": (1, 1, 1), "codes": (1, 0, 1)}.items():
        for i in range(12):
            rows.append(dict(constraint=c, start="clip", tag="bass", song=f"s{i}", flatness=0.8, flatness_of_clip=0.1, high=0.5, high_of_clip=0.1, **{f"{w} says": s for w, s in zip(fooling.PANEL, says)}))
    frame = pd.DataFrame(rows)
    assert list(fooling.verdicts(frame).holds) == ["yes", "yes", "yes"]
    assert "codec" in fooling.verdicts(frame).found.iloc[2]
    frame.loc[frame.constraint.isin(["codec", "codes"]), ["other seed says", "spectrogram says"]] = 0
    assert fooling.verdicts(frame).holds.iloc[2] == "no"
    frame.loc[frame.constraint == "waveform", ["other seed says"]] = 1
    assert fooling.verdicts(frame).holds.iloc[1] == "no"
