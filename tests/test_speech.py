"""Speech in VCTK's layout: what is wrong is said by name, a stopped run goes on, splits share no text; one WaveNet that is told who speaks, toggled and judged."""
import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sepnb import cli, speech
from sepnb.audio import RATE, save
from sepnb.registry import DATA
from sepnb.speech import (COURSES, INFO, SPLITS, TOLD, UNHEARD, VOICES, Voices, by_frames, garble, judge, load_told, log_masses, make_speech, odds, others_of, pair_of, prepare_vctk,
                          read_labels, sentence, sentences, speak, speakers_of, split_of, spoken, syllables, timbre, told, told_loss, utterances)
from sepnb.wavenet import WaveNet, WaveNetConfig

needs_program = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not here")
random = lambda k=0: torch.Generator().manual_seed(k)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    "Something like VCTK: four speakers, twelve sentences each, those of different speakers different but for the first."
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path / "data"))
    root = tmp_path / "VCTK"
    for k, speaker in enumerate(("p225", "p226", "p227", "p228")):
        for n in range(1, 13):
            for kind in ("txt", "wav48"):
                (root / kind / speaker).mkdir(parents=True, exist_ok=True)
            (root / f"txt/{speaker}/{speaker}_{n:03d}.txt").write_text("Please call Stella.\n" if n == 1 else f"Sentence {n} of {speaker}.\n")
            save(root / f"wav48/{speaker}/{speaker}_{n:03d}.wav", 0.1 * torch.sin(0.01 * (k + 1) * torch.arange(12_000.0)), 48_000)
    (root / "speaker-info.txt").write_text(INFO + "225  23  F    English    Southern  England\n226  22  M    English    Surrey\np227  38  M  English  Cumbria\np228  22  F  English  Southern  England\n")
    return root


# ---- sentences and the layout

def test_sentences_are_drawn_once_and_splits_share_none():
    texts = sentences()
    of = {s: {t.lower() for n, t in texts.items() if split_of(n) == s} for s in SPLITS}
    assert [len(of[s]) for s in SPLITS] == [160, 20, 40] and len(set().union(*of.values())) == 220
    assert texts[10] == "off I went" and "six spoons of snow peas" in of["test"]


def test_a_copy_is_found_again(copy):
    with pytest.raises(FileNotFoundError, match="sepnb data vctk PATH"):
        utterances("train", "vctk")
    found = prepare_vctk(copy)
    assert found == prepare_vctk(copy) and {(f["voice"], f["speaker"]) for f in found} == {("male", "p226"), ("female", "p225")}
    train, test = utterances("train", "vctk"), utterances("test", "vctk")
    assert len(train) == 18 and len(test) == 4 and train[0].shape == (4000,) and set(train.labels.columns) >= {"voice", "text", "name"}
    assert set(utterances("train", "vctk", others=True).labels.speaker) == {"p227", "p228"}
    done = CliRunner().invoke(cli.app, ["data", "vctk", str(copy), "--speakers", "p227,p228"])
    assert done.exit_code == 0 and "p227" in done.output and set(utterances("test", "vctk").labels.speaker) == {"p227", "p228"}
    items = DATA["vctk"].items("train", t=2000)
    assert items[0].shape == (2, 2000) and torch.equal(DATA["vctk"].source(items, "female")[3], items[3][1])


def test_version_092_is_read(copy):
    for path in list(copy.glob("wav48/p22[56]/*.wav")):
        new = copy / "wav48_silence_trimmed" / path.parent.name / f"{path.stem}_mic1.flac"
        new.parent.mkdir(parents=True, exist_ok=True)
        save(new, torch.full((4800,), 0.1), 48_000)
        path.unlink()
    prepare_vctk(copy)
    assert utterances("train", "vctk")[0].shape == (1600,)


def test_a_text_is_in_one_split_alone(copy):
    (copy / "txt/p226/p226_010.txt").write_text("please call stella.")  # a test sentence that both read in training
    labels = read_labels(copy, pair_of(copy))
    assert list(labels[labels.text.str.lower() == "please call stella"].split) == ["test"]


@pytest.mark.parametrize("spoil, said", [
    (lambda r: (r / "txt/p225/p225_003.txt").unlink(), "no text txt/p225/p225_003.txt"),
    (lambda r: (r / "wav48/p225/p225_003.wav").unlink(), "no sound wav48/p225/p225_003.wav"),
    (lambda r: (r / "txt/p226/p226_003.txt").write_text(" \n"), "txt/p226/p226_003.txt is empty"),
    (lambda r: (r / "wav48/p226/p226_003.wav").write_bytes((r / "wav48/p226/p226_003.wav").read_bytes()[:999]), "p226_003.wav is truncated"),
    (lambda r: save(r / "wav48/p226/p226_003.wav", torch.zeros(9000), 48_000), "p226_003.wav is silent"),
    (lambda r: save(r / "wav48/p226/p226_003.wav", torch.ones(9000), 44_100), "p226_003.wav has a rate of 44100 Hz; expected 48000 Hz"),
    (lambda r: (r / "wav48/p226/p226_003.wav").write_text("no sound"), "p226_003.wav cannot be read")])
def test_what_is_wrong_with_a_copy_is_named_and_can_be_left_out(copy, spoil, said, capsys):
    spoil(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=f"1 sentences cannot be read, for instance: .*{said}"):
        prepare_vctk(copy)
    assert not (speech.data_home() / "vctk").exists(), "nothing is remembered of a copy that is wrong"
    prepare_vctk(copy, skip=True)
    assert said in capsys.readouterr().err and len(utterances("train", "vctk")) == 17


def test_speakers_are_checked(copy):
    with pytest.raises(ValueError, match=r"got p225 \(F\), p226 \(M\)"):
        pair_of(copy, "p225,p226")
    with pytest.raises(ValueError, match=r"p999 \(None\)"):
        prepare_vctk(copy, "p226,p999")
    (copy / "speaker-info.txt").write_text(INFO + "225  23\n")
    with pytest.raises(ValueError, match="has the line '225  23'"):
        speakers_of(copy)
    (copy / "speaker-info.txt").write_text(INFO + "229 23 F English\n226 22 M English\n")
    with pytest.raises(ValueError, match="no sentences of p229"):
        prepare_vctk(copy)
    with pytest.raises(ValueError, match="no further man and woman"):
        others_of(copy, pair_of(copy))
    (copy / "speaker-info.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no speaker-info.txt"):
        prepare_vctk(copy)


# ---- voices

def test_without_the_program_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install espeak-ng"):
        make_speech(out=tmp_path, progress=False)
    with pytest.raises(ValueError, match="unknown voice 'child'"):
        spoken("off I went", "child")


@needs_program
def test_speaking_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "sentences", lambda n=220, seed=0: {k: v for k, v in sentences().items() if k in (9, 10, 11)})
    whole = make_speech(out=tmp_path / "a", progress=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/txt/p001/p001_010.txt").unlink(), (tmp_path / "b/wav48/p001/p001_010.wav").unlink()
    again = make_speech(out=tmp_path / "b", progress=False)
    assert [f["made"] for f in whole] == [3, 3, 2, 2] and [f["made"] for f in again] == [1, 0, 0, 0]
    assert (tmp_path / "a/wav48/p001/p001_010.wav").read_bytes() == (tmp_path / "b/wav48/p001/p001_010.wav").read_bytes()
    assert speak("-v hello", "female").abs().max() <= 1, "a text that looks like an option is a text"
    with pytest.raises(ValueError, match="no text"):
        speak(" ")


def test_the_excerpt_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path))
    assert all(0.5 * RATE < len(sentence(v, text)) < 3 * RATE for v in VOICES for text in ("off I went", "six spoons of snow peas"))
    assert set(utterances("test", others=True).labels.voice) == set(UNHEARD)
    texts = {s: set(utterances(s).labels.text) for s in SPLITS}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["valid"]
    items = DATA["speech"].items("train", t=4096)
    assert (items.batch(range(len(items))).square().mean(-1).sqrt() > speech.PLAYS).all(), "no frame is silent"
    with pytest.raises(ValueError, match="take shorter frames"):
        Voices(utterances("test"), 10 * RATE)
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        utterances("tset")
    with pytest.raises(ValueError, match="no sentence with voice 'male', text 'on I went'"):
        sentence("male", "on I went")


# ---- what is told

def small(seed=0):
    torch.manual_seed(seed)
    return WaveNet(WaveNetConfig(blocks=1, layers=3, kernel=2, width=8, skip=16, cond_global=2)).eval()


def test_telling_in_time_is_telling_when_nothing_changes():
    net, x = small(), 0.1 * torch.randn(2, 700, generator=random())
    for upsample in ("nearest", "linear"):
        other = by_frames(net, 100, upsample)
        same = other.log_prob(x, local=told(0.3, 0.7).expand(7, -1).expand(2, -1, -1))
        assert torch.allclose(net.log_prob(x, cond=told(0.3, 0.7).expand(2, -1)), same, atol=1e-3)
    with pytest.raises(ValueError, match="global conditioning alone"):
        by_frames(WaveNet(WaveNetConfig(blocks=1, layers=2, kernel=2, width=8, skip=8)))


def test_a_toggle_changes_what_comes_after_it_only():
    net = small()
    man, woman, both = (garble(net, COURSES[c], 2, hop=300) for c in ("male", "female", "male, then female"))
    assert torch.equal(both[:, :300], man[:, :300]) and not torch.equal(both[:, 300:], man[:, 300:]) and not torch.equal(man, woman)
    assert torch.equal(man, garble(net, COURSES["male"], 2, hop=300))


def test_the_loss_tells_every_voice_its_name(monkeypatch):
    net, x = small(), 0.1 * torch.randn(3, 2, 200, generator=random())
    monkeypatch.setattr(speech, "HIDDEN", -1.0)
    want = -(net.log_prob(x[:, 0], cond=told(1, 0).expand(3, -1)) + net.log_prob(x[:, 1], cond=told(0, 1).expand(3, -1))).mean() / 400
    assert torch.allclose(told_loss(net, x, random()), want, atol=1e-4)
    monkeypatch.setattr(speech, "HIDDEN", 2.0)
    nobody = -net.log_prob(x.flatten(0, 1), cond=told(0, 0).expand(6, -1)).mean() / 200
    assert torch.allclose(told_loss(net, x, random()), nobody, atol=1e-4)


def test_a_network_that_is_told_learns_two_sources_and_bayes_tells_them_apart():
    "Two tones: trained for seconds, the right name makes a tone likelier."
    tone = lambda f: 0.5 * torch.sin(2 * np.pi * f * torch.arange(400.0) / RATE)
    net, x = small(), torch.stack([tone(300), tone(900)])
    optimizer = torch.optim.Adam(net.train().parameters(), 1e-2)
    for step in range(80):
        loss = told_loss(net, x[None], random(step))
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    net.eval()
    for k, shares in enumerate(((1, 0), (0, 1))):
        assert log_masses(net, x[k], shares).sum() > log_masses(net, x[k], shares[::-1]).sum() + 5
    assert torch.isclose(log_masses(net, x[0], (1, 0)).sum(), net.log_prob(x[:1], cond=told(1, 0))[0].detach(), rtol=1e-4)


def test_weights_are_shipped_and_small():
    net = load_told(preset="laptop")
    assert net.config == TOLD["laptop"][0] and 2 * sum(p.numel() for p in net.parameters()) < 1e6


# ---- the judge

def test_the_judge_knows_the_voices_of_the_test_sentences_and_minds_no_loudness(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path))
    tell, test = judge(24), utterances("test")
    said = [odds(test[i], tell) > 0 for i in range(len(test))]
    assert said == list(test.labels.voice == "female")
    assert np.allclose(timbre(0.1 * test[0]), timbre(test[0]), atol=0.3)
    with pytest.raises(ValueError, match="silent"):
        timbre(torch.zeros(RATE))


def test_syllables_are_counted():
    t = torch.arange(2 * RATE) / RATE
    for rate in (3, 5):
        assert syllables(torch.sin(2 * np.pi * 150 * t) * (0.55 - 0.45 * torch.cos(2 * np.pi * rate * t))) == rate
