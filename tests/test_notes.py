"""Notes, their spectra and the flow over them: what is wrong is said, a stopped rendering goes on, flows invert, bases are bases, listeners are told what they are told."""
import json
import math
import os

import numpy as np
import pytest
import torch

from sepnb import interpolation, listeners, nsynth, spectralflow
from sepnb.audio import RATE, save
from sepnb.nsynth import FAMILIES, NOTES, Families, Notes, described, instruments_of, make_notes, notes_of, notes_to_play, prepare_nsynth, read_labels
from sepnb.registry import DATA
from sepnb.spectral import BINS, convergence, from_logs, log_magnitudes, magnitudes, with_phases
from sepnb.spectralflow import SPECTRAL, KINDS, Labelled, SpectralFlow, SpectralFlowConfig, bits_loss, load_flow, pitch_basis, spectra
from sepnb.training import fit

random = lambda k=0: torch.Generator().manual_seed(k)


@pytest.fixture
def copy(tmp_path):
    "Something like NSynth: three splits of two notes."
    for split in NOTES:
        folder = tmp_path / "nsynth" / f"nsynth-{split}"
        (folder / "audio").mkdir(parents=True)
        notes = [described(n, "organ", "electronic", 17, 60 + n, 100) for n in range(2)]
        for about in notes:
            save(folder / "audio" / f"{about['note_str']}.wav", 0.1 * torch.randn(4 * RATE, generator=random()), RATE)
        (folder / "examples.json").write_text(json.dumps({a["note_str"]: a for a in notes}))
    return tmp_path / "nsynth"


# ---- the layout

def test_a_copy_is_found_again(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match="sepnb data nsynth PATH"):
        notes_of("train", "nsynth")
    found = prepare_nsynth(copy)
    assert [f["notes"] for f in found] == [2, 2, 2] == [f["notes"] for f in prepare_nsynth(copy)]
    assert len(notes_of("train", "nsynth")) == 2 and notes_of("test", "nsynth").labels.family[0] == "organ"


@pytest.mark.parametrize("what, said", [(dict(pitch=None), "pitch None"), (dict(pitch=200), "pitch 200"), (dict(instrument_family=11), "instrument_family 11"), (dict(velocity="loud"), "velocity 'loud'")])
def test_impossible_labels_are_named(copy, what, said):
    path = copy / "nsynth-train" / "examples.json"
    notes = json.loads(path.read_text())
    name = list(notes)[1]
    notes[name] |= what
    path.write_text(json.dumps(notes))
    with pytest.raises(ValueError, match=f"{name} has {said}"):
        prepare_nsynth(copy)


def test_missing_and_damaged_notes_are_named(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_DATA", str(tmp_path / "data"))
    first, second = sorted((copy / "nsynth-valid" / "audio").glob("*.wav"))
    second.write_bytes(second.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{second.name} is truncated"):
        prepare_nsynth(copy)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 2 notes have no file in audio/, for instance {second.name}"):
        prepare_nsynth(copy)
    save(second, torch.zeros(4 * 22_050), 22_050)
    with pytest.raises(ValueError, match="88200 samples at 22050 Hz; expected 64000 at 16000 Hz"):
        prepare_nsynth(copy)
    (copy / "nsynth-test" / "examples.json").write_text("{")
    with pytest.raises(ValueError, match="nsynth-test/examples.json is damaged"):
        read_labels(copy / "nsynth-test")
    assert not (tmp_path / "data" / "nsynth").exists(), "nothing is remembered of a copy that is wrong"


def test_no_instrument_is_in_two_splits():
    names = {s: {a["instrument_str"] for a, _, _ in notes_to_play(s)} for s in NOTES}
    assert not names["train"] & names["valid"] and not names["train"] & names["test"] and not names["valid"] & names["test"]
    assert {f for f, _, _ in instruments_of("test")} == set(FAMILIES)
    assert notes_to_play("test") == notes_to_play("test") != notes_to_play("test", seed=1)


@pytest.mark.skipif(not os.path.exists(nsynth.synthesiser.__globals__["FONTS"]["general"]), reason="no SoundFont here")
def test_rendering_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(nsynth, "NOTES", {"test": 1})
    monkeypatch.setattr(nsynth, "FONTS", ("unheard",))
    whole = make_notes(out=tmp_path / "a", progress=False)
    for path in sorted((tmp_path / "a" / "nsynth-test" / "audio").glob("*.wav"))[::2]:
        (tmp_path / "b" / "nsynth-test" / "audio").mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / "nsynth-test" / "audio" / path.name).write_bytes(path.read_bytes())
    rest = make_notes(out=tmp_path / "b", progress=False)
    assert 0 < rest[0]["made"] < whole[0]["made"] == 11
    for path in (tmp_path / "a" / "nsynth-test" / "audio").glob("*.wav"):
        assert path.read_bytes() == (tmp_path / "b" / "nsynth-test" / "audio" / path.name).read_bytes()
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        make_notes(out=tmp_path, split="tset")


def test_the_excerpt_serves_as_a_data_set():
    items = DATA["notes"].items("test", t=RATE)
    assert items[0].shape == (11, RATE) and torch.equal(items[2], items[2]) and not torch.equal(items[0], items[1])
    assert torch.equal(DATA["notes"].source(items, "brass")[2], items[2][FAMILIES.index("brass")])
    with pytest.raises(ValueError, match="unknown source 'kazoo'"):
        DATA["notes"].source(items, "kazoo")
    with pytest.raises(ValueError, match="shorter than a frame of 64001"):
        Families(notes_of("test"), 64_001)
    with pytest.raises(IndexError):
        items[len(items)]


# ---- spectra

def test_silence_has_no_spectrum():
    with pytest.raises(ValueError, match="a sound is silent"):
        log_magnitudes(torch.stack([torch.randn(4096, generator=random()), torch.zeros(4096)]))


def test_more_iterations_are_nearer_and_do_not_touch_the_random_state():
    x = notes_of("test")[5][:16_000]
    M, state = magnitudes(x), torch.get_rng_state()
    few, many = (convergence(with_phases(M, len(x), n), M) for n in (2, 40))
    assert many < few - 3 and torch.equal(state, torch.get_rng_state())
    assert torch.equal(with_phases(M, len(x), 2), with_phases(M, len(x), 2)) and not torch.equal(with_phases(M, len(x), 2), with_phases(M, len(x), 2, seed=1))


# ---- the flow

@pytest.mark.parametrize("pitch", [28.0, 45.5, 60.0, 83.0, 100.0])
def test_a_basis_is_one(pitch):
    to, back, logdet = (v.double() if torch.is_tensor(v) else v for v in pitch_basis(pitch))
    assert (to @ back - torch.eye(BINS)).abs().max() < 1e-4
    assert torch.linalg.slogdet(to)[1].item() == pytest.approx(logdet, abs=0.02)
    assert torch.isfinite(to).all() and to.abs().max() < 2


def test_levels_of_harmonics_move_with_the_pitch():
    "Five equal harmonics at any pitch have the same first five coordinates."
    for pitch in (55.0, 60.0, 63.5, 72.0):
        x = torch.from_numpy(spectralflow.lobes(pitch)[:, :5].sum(1)).float()
        assert ((x @ pitch_basis(pitch)[0])[:5] - 1).abs().max() < 0.1


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    model = SpectralFlow(SPECTRAL["smoke"][0])
    fit(model, bits_loss, Labelled(notes_of("train")), SPECTRAL["smoke"][1], progress=False)
    return model.eval().requires_grad_(False)


def test_notes_come_back(flow):
    log, pitch, family = spectra(Labelled(notes_of("test"))[3][None], 248, random())
    assert (flow.decode(flow.encode(log, pitch, family), pitch, family) - log).abs().max() < 1e-3
    with pytest.raises(ValueError, match=r"expected log-magnitudes \(b, 512, 248\)"):
        flow(log[..., :100], pitch)


def test_a_density_adds_up():
    "Without a flow, the log-density is a sum of normal ones: scipy says the same."
    from scipy.stats import norm
    torch.manual_seed(0)
    model = SpectralFlow(SpectralFlowConfig(flows=0, frames=2, hidden=4)).eval().requires_grad_(False)
    model.prior.say.bias.normal_(generator=random())
    log, pitch, family = -8 + torch.randn(3, BINS, 2, generator=random()), torch.full((3,), 60.0), torch.tensor([0, 5, 10])
    mean, log_std = model.prior(pitch, family)
    z = (log.mT - spectralflow.LEVEL).reshape(3, 1, -1)
    assert np.allclose(model.log_prob(log, pitch, family), norm.logpdf(z, mean, log_std.exp()).sum((1, 2)), rtol=1e-4)


def test_the_pitch_between_two_notes_is_between(flow):
    family = torch.tensor([2])
    low, mid, high = (flow.prior(torch.tensor([p]), family)[0] for p in (60.0, 60.0001, 61.0))
    assert (low - mid).abs().max() < 1e-3 and not torch.equal(low, high)


def test_ends_of_every_way_are_the_notes(flow):
    notes = notes_of("test")
    one, two = interpolation.note_at(notes, 0), interpolation.note_at(notes, 7)
    for name, (kind, way) in interpolation.WAYS.items():
        if kind != "spectralflow-pitched":
            ends = interpolation.between(flow if kind else None, one, two, (0.0, 1.0), way)
            assert (ends - torch.cat([one.log, two.log])).abs().max() < 0.02, name
    half = interpolation.between(None, one, two, [0.5], "linear")
    assert torch.allclose(half.exp(), (one.log.exp() + two.log.exp()) / 2, rtol=1e-4)


def test_stopped_and_started_again_a_flow_ends_the_same(tmp_path):
    (config, recipe), items = SPECTRAL["smoke"], Labelled(notes_of("train"))
    torch.manual_seed(0)
    whole = SpectralFlow(config)
    fit(whole, bits_loss, items, recipe, run=tmp_path / "a", every=3, progress=False)

    class Stop(Exception): pass

    def stop(step, model): raise Stop

    torch.manual_seed(0)
    with pytest.raises(Stop):
        fit(SpectralFlow(config), bits_loss, items, recipe, run=tmp_path / "b", every=3, callback=stop, progress=False)
    again = SpectralFlow(config)
    fit(again, bits_loss, items, recipe, run=tmp_path / "b", every=3, progress=False)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="unknown kind 'glow'; choose one of spectralflow"):
        load_flow("glow")


# ---- listeners

def test_powers_of_two_notes_are_told_both_pitches():
    P = torch.rand(4, BINS, generator=random())
    x = torch.cat([P, torch.tensor([[40.0], [50.0], [60.0], [70.0]])], 1)
    powers, which = listeners.mixed(x, random())
    sounding = [(listeners.LOWEST + w.nonzero()[:, 0]).tolist() for w in which]
    assert sounding == [[40], [40, 50], [60], [60, 70]]
    assert torch.allclose(powers[0], P[0] / P[0].sum()) and not torch.allclose(powers[1], P[1] / P[1].sum())


def test_a_pitch_moved_is_the_same_picture_moved():
    tone = lambda f: sum(torch.sin(2 * math.pi * h * f * torch.arange(4 * RATE) / RATE) / h for h in range(1, 6))
    a, b = (listeners.picture(listeners.held(magnitudes(tone(440 * 2 ** (k / 12))))) for k in (0, 12))
    moved = 12 * listeners.PER
    peaks = [listeners.PER * (69 + round(12 * math.log2(h)) - listeners.LOWEST) for h in range(1, 6)]
    assert (a[peaks] - b[[p + moved for p in peaks]]).abs().max() < 0.12


def test_points_of_a_way():
    for semitones in range(4, 25, 2):
        p = interpolation.points(semitones)
        assert p[0] == 0 and p[-1] == 1 and 0.5 in p and len(p) <= interpolation.POINTS and all(abs(a * semitones - round(a * semitones)) < 1e-9 for a in p)
        assert np.allclose(p, [1 - a for a in p[::-1]])


def test_what_is_shipped_fits():
    for kind in KINDS:
        model, meta = load_flow(kind, preset="smoke")
        assert meta["preset"] == "smoke" and model.config.pitched == ("pitched" in kind)
