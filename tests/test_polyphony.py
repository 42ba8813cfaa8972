"""Notes: what they may hear in training, what adapts and what does not, polyphony from single notes, and scores as everywhere."""
import pytest
import torch

from sepnb import polyphony
from sepnb.audio import RATE, stft
from sepnb.experts import Experts, chunk_scores, load_experts, masked
from sepnb.frames import SourceFrames
from sepnb.polyphony import COUNT, FLAT, Notes, NotesConfig, explained, flatness, loud, roll, separated_by
from sepnb.presets import load_bank, new_prior, recipe_for
from sepnb.registry import DATA
from sepnb.songs import SOURCES, excerpts
from sepnb.store import artifacts
from sepnb.training import PriorBank, Recipe

INF = float("inf")


def _tone(pitch, t=16_384):
    return sum(torch.sin(2 * torch.pi * h * 440 * 2 ** ((pitch - 69) / 12) * torch.arange(t) / RATE) / h for h in range(1, 6))


@pytest.fixture(scope="module")
def organ():
    "One instrument that was heard one note at a time."
    organ = Notes(NotesConfig(2048, 1, 48, 24, 10, 1, 4))
    organ.learn([_tone(p) for p in range(48, 72, 2)], Recipe(steps=30, batch=12, frame=16_384))
    return organ


@pytest.fixture(scope="module")
def song():
    song = excerpts("valid")[0]
    return song[:][[song.sources.index(s) for s in SOURCES]]


def test_chords_are_heard_by_who_learned_from_single_notes(organ):
    heard, other = roll(PriorBank({"organ": organ}), stft(_tone(50) + _tone(54) + _tone(60), 2048))
    heard, other = heard[..., 3:-3], other[:, 3:-3]  # the tones begin and end abruptly
    level = heard[0].mean(1)
    assert {48 + i for i in level.topk(3)[1].tolist()} == {50, 54, 60}
    assert level.sort(descending=True)[0][3:].sum() + other.mean() < 0.1 * level.sum()


def test_atoms_stay_on_their_combs_and_without_adaptation_as_they_were(organ):
    W = organ.atoms()[0]
    V = torch.rand(len(W), 40)
    assert torch.equal(torch.cat(explained(V, [W, W], count=INF)[0], 1), torch.cat([W, W], 1))
    adapted = explained(V, [W], count=COUNT)[0][0]
    assert torch.allclose(adapted.sum(0), torch.ones(W.shape[1]), atol=1e-4) and (adapted[W == 0] == 0).all() and (adapted - W).abs().max() > 0.01


def test_the_more_the_prior_counts_the_less_changes(organ):
    W, V = organ.atoms()[0], stft(_tone(50), 2048).abs() ** 0.5
    moved = [(explained(V, [W], count=n)[0][0] - W).abs().sum().item() for n in (0.05, 5.0, 500.0)]
    assert moved[0] > moved[1] > moved[2]


def test_a_class_learns_the_same_whatever_the_others_play():
    "Trained on songs whose other stems are noise, the notes of a class are the same byte for byte."
    states = []
    for noisy in (False, True):
        frames = DATA["songs"].items("train", t=16_000)
        if noisy:
            class Deaf:
                def __init__(self, song):
                    self.song, self.path, self.sources, self.rate, self.samples = song, song.path, song.sources, song.rate, song.samples

                def __getitem__(self, span):
                    x = self.song[span].clone()
                    x[:3] = torch.randn(x[:3].shape)
                    return x
            frames.songs = [Deaf(s) for s in frames.songs]
        prior = new_prior("notes", "songs", "piano", "smoke")
        prior.learn(SourceFrames(frames, "piano"), recipe_for("notes", "songs", "smoke")[1])
        states.append(prior.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values())) and (states[0]["levels"] < 255).any()


def test_a_held_out_program_is_not_heard(monkeypatch):
    heard = []
    monkeypatch.setattr(Notes, "learn", lambda self, data, recipe: heard.extend(s.path.stem for s in data.frames.songs))
    songs = DATA["songs"].items("train", t=16_000).songs
    out = polyphony.program_of(songs[0], "guitar")
    polyphony.without_program("notes", "guitar", out, "smoke")
    assert songs[0].path.stem not in heard and heard == [s.path.stem for s in songs if polyphony.program_of(s, "guitar") != out] and heard


def test_drums_are_told_by_their_sound(song):
    flat = {}
    for name, x in zip(SOURCES, song):
        flat[name] = flatness(loud(stft(x[None], 2048).abs(), 200, torch.Generator().manual_seed(0)))
    assert flat.pop("drums") > FLAT > max(flat.values())


def test_shipped_weights_are_small_and_drums_have_no_notes():
    for name, p in zip(SOURCES, load_bank("notes", "songs", "laptop").priors):
        assert (artifacts() / "weights/laptop/songs" / f"notes-{name}.safetensors").stat().st_size < 100_000
        assert (p.atoms()[1] >= 0).any() == (name != "drums")


def test_notes_are_experts_as_any(song):
    experts = load_experts({"notes": 0.5, "solo": 0.5}, None, preset="smoke")
    X = stft(song.sum(0)[None, : 2 * RATE], experts.window)
    masks = experts.masks(X)
    assert masks.shape == (1, 4, *X.shape[1:]) and torch.allclose(masks.sum(1), torch.ones(1), atol=1e-4)
    bank = load_bank("notes", "songs", "smoke")
    louder = Notes.evidence(bank, 10 * X)
    assert torch.allclose(louder - Notes.evidence(bank, X), torch.tensor(10.0).log() * 2, atol=0.01)
    assert Notes.evidence(bank, 0 * X).isfinite().all()


def test_scores_are_those_of_the_table_of_music(song):
    experts = Experts({"notes": load_bank("notes", "songs", "smoke")}, {"notes": 0.5})
    X = stft(song.sum(0), experts.window)
    ours = separated_by(0.5 * Notes.evidence(experts.banks["notes"], X[None])[0], X, song)
    theirs = chunk_scores(masked(song.sum(0), experts.masks, experts.window), song, song.sum(0))
    assert torch.allclose(ours, theirs.nanmean(0), atol=1e-3, equal_nan=True)
