"""Moving tones: the steady one as a special case, curves and derivatives against direct computation, what is refused, and a stored row again."""
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from sepnb import audio, beyond, presets, store, toy, worldtones
from sepnb.evaluation import si_sdr, si_sdr_improvement
from sepnb.pursuit import pursuit
from sepnb.training import PriorBank
from sepnb.wavetable import Tables

THETA = np.array([[0.01234567, 0.2013, 0.9], [0.05176543, 0.7017, 0.6], [0.03112233, 0.4019, 0.8], [0.11223311, 0.1023, 0.7]])


@pytest.fixture(scope="module")
def bank():
    return presets.load_bank("wavetable", "toy", "laptop")


@pytest.fixture(scope="module")
def kinds(bank):
    tables = [p.table for p in bank.priors]
    return Tables(tables), worldtones.Series(tables)


@pytest.mark.parametrize("kind", [0, 1], ids=["tables", "series"])
@pytest.mark.parametrize("t, d", [(4000, 320), (4001, 160), (3999, 884)])
def test_a_straight_track_is_the_steady_tone(kinds, kind, t, d):
    tables = kinds[kind]
    m = worldtones.straight(range(4), THETA, t, d)
    fit = worldtones.Follow(np.zeros(t), tables, 16000)
    assert np.abs(fit.render(m) - tables.render(THETA, t)).max() < 1e-7
    assert np.abs(fit.render(m.finer(t)) - tables.render(THETA, t)).max() < 1e-7
    assert np.allclose(fit.render(m, 700, 1900), fit.render(m)[:, 700:1900], atol=1e-9)


def test_a_series_is_the_sum_of_its_overtones_along_any_phase(kinds):
    "Against a direct sum, with a vibrato, overtones coming and going at half the sample rate."
    series, n = kinds[1], np.arange(1000)
    u = 0.09 * n + 3.0 * np.sin(2 * np.pi * n / 900)
    nu = 0.09 + 3.0 * 2 * np.pi / 900 * np.cos(2 * np.pi * n / 900)
    y, slope = series.read(np.tile(u, (4, 1)), np.tile(nu, (4, 1)))
    h = np.arange(1, 9)[:, None]
    for k in range(4):
        waves = series.c[k, :8, None] * np.exp(2j * np.pi * h * u) * (h * nu < 0.5)
        assert np.allclose(y[k], 2 * waves.sum(0).real) and np.allclose(slope[k], 2 * (2j * np.pi * h * waves).sum(0).real)


def test_a_glide_is_straight_in_warped_time():
    s, chirp = np.arange(2000) - 1499.5, 1.5 / 16000
    x = np.cos(2 * np.pi * 0.11 * (s + chirp * s**2 / 2))
    flat = worldtones.warped(x, 1244, 1756, chirp)
    assert np.abs(flat - np.cos(2 * np.pi * 0.11 * s[1244:1756]))[32:-32].max() < 0.05 < np.abs(x - np.cos(2 * np.pi * 0.11 * s))[1244:1756].max()


@pytest.mark.parametrize("kind, h", [(0, 0.05), (1, 0.02)], ids=["tables", "series"])
def test_the_gradient_is_that_of_the_error(kinds, kind, h):
    rng = np.random.default_rng(0)
    t, d, tables = 1600, 320, kinds[kind]
    fit = worldtones.Follow(tables.render(THETA, t).sum(0), tables, 16000)
    m = worldtones.straight(range(4), THETA, t, d)
    m = worldtones.Tracks(m.classes, m.phase + 3e-3 * rng.standard_normal(m.phase.shape), m.level + 0.05, d)
    span, mask = fit.inside(100, 1500, d)
    r, parts = fit.residual(m, span, mask, h)
    n = m.phase.shape[1]
    A, g = worldtones._normal(fit, m, parts, r, mask, span, (0, n))
    assert np.allclose(A, A.T) and np.linalg.eigvalsh(A).min() > -1e-6 * np.abs(A).max()

    def moved(j, e):
        x = np.concatenate([m.phase[:, None], m.level[:, None]], 1).ravel()
        x[j] += e
        x = x.reshape(4, 2, n)
        return fit.residual(worldtones.Tracks(m.classes, x[:, 0], x[:, 1], d), span, mask, h)[0].ravel()
    eps = 1e-7
    smooth = [j for j in range(8 * n) if (j // n) % 2 or j // (2 * n) in (0, 3)]  # the edges of square and saw pass samples: no derivative there
    for j in smooth if kind == 0 else range(8 * n):
        slope = (moved(j, eps) - moved(j, -eps)) / (2 * eps)
        assert A[j, j] == pytest.approx(slope @ slope, rel=2e-2, abs=1e-6)
        if kind == 1:
            assert g[j] == pytest.approx(-slope @ r.ravel(), rel=1e-3, abs=1e-4 * np.sqrt(A[j, j] * (r * r).sum()) + 1e-9)


def test_labels_follow_levels_where_nothing_else_tells_them_apart(bank, kinds):
    theta = np.array([[0.21, 0.1, 0.9], [0.22, 0.2, 1.1], [0.013, 0.3, 0.55], [0.24, 0.4, 0.75]])
    fit = worldtones.Follow(kinds[1].render(theta, 8000).sum(0), kinds[1], 16000)
    right = worldtones.straight(range(4), theta, 8000, 320)
    assert worldtones.relabelled(fit, right, bank.priors).classes == [0, 1, 2, 3]
    c = kinds[1].c[:, 0]
    wrong = theta[[1, 0, 2, 3]] * [1, 1, 0] + [[0, np.angle(c[j] / c[i]) / (2 * np.pi), theta[j, 2] * abs(c[j] / c[i])] for i, j in enumerate((1, 0, 2, 3))]
    found = worldtones.relabelled(fit, worldtones.straight(range(4), wrong, 8000, 320), bank.priors)
    assert found.classes == [1, 0, 2, 3]
    assert np.abs(fit.render(found)[[1, 0, 2, 3]] - fit.render(right)).max() < 1e-6


def test_a_response_is_found():
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal(4000), np.array([0.0, 0.1, 0.8, -0.2, 0.05])
    y = worldtones.filtered(x, h)
    found = worldtones.response(x, y, 5)
    assert np.allclose(found, h, atol=1e-5)
    assert np.allclose(worldtones.filled(x, y, h), x)
    assert worldtones.made_at(x, 16000) == 16000
    assert worldtones.made_at(audio.resample(torch.from_numpy(x), 16000, 48000).numpy(), 48000) == 16000


def test_nothing_is_lost_on_steady_tones(bank):
    m = toy.mix(toy.ToyData("valid").batch([7, 8]))
    told = []
    assert torch.equal(worldtones.worldtones(m, bank, callback=told.append), pursuit(m, bank, budget=16))
    assert [info["how"] for info in told] == ["steady", "steady"]


def test_a_vibrato_is_followed(bank):
    name, sources, rate = next(c for c in worldtones.world("valid", 1) if c[0] == "vibratos of their own")
    m, told = toy.mix(sources).float(), []
    est = worldtones.worldtones(m, bank, rate, told.append)
    assert told[0]["how"] == "moving" and si_sdr(est, sources.float()).min() > 30
    assert si_sdr(pursuit(m, bank, rate, budget=0), sources.float()).median() < 20


@pytest.mark.parametrize("mixes, message", [(torch.zeros(16000), "shape"), (torch.full((1, 16000), math.nan), "NaN"), (torch.zeros(1, 500), "too short")])
def test_wrong_mixes_end_in_a_sentence(bank, mixes, message):
    with pytest.raises(ValueError, match=message):
        worldtones.worldtones(mixes, bank)


def test_a_bank_of_other_models_is_refused():
    with pytest.raises(ValueError, match="needs wavetable priors"):
        worldtones.worldtones(torch.zeros(1, 16000), PriorBank({"no wavetable": torch.nn.Identity()}))


def test_the_conditions_are_those_of_the_chapter_beyond():
    before = {name: sources for name, sources, _, _ in beyond._beyond(2)}
    shared = [(name, sources) for name, sources, _ in worldtones.world("test", 2) if name in before]
    assert len(shared) == 7
    for name, sources in shared:
        assert torch.equal(sources.double(), before[name].double()), name


def test_stored_rows_again(bank):
    path = store.artifacts() / "results" / "laptop" / "separation-world.csv"
    if not path.exists() or store.changed(json.loads(path.with_suffix(".json").read_text())):
        pytest.skip("not stored, or its code changed since")
    frame, names = pd.read_csv(path), ("as trained", "band-limited edges, 16 kHz", "vibratos of their own")
    for name, sources, rate in worldtones.world("test", 2):
        if name in names:
            m = toy.mix(sources[1:2]).float()
            gain = si_sdr_improvement(worldtones.worldtones(m, bank, rate), sources[1:2].float(), m)[0].clamp(-100, 160)
            was = frame[(frame.condition == name) & (frame.method == "worldtones") & (frame["item"] == 1)].si_sdri.to_numpy()
            assert ((gain.numpy() > 30) == (was > 30)).all() and np.abs(gain.numpy() - was).max() < 15, name  # rounding moves what is beyond hearing
