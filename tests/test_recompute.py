"""Rows of every stored table, computed again from the shipped weights with today's code. Which rows changes with the content of the table.

A result whose code has changed since is left out, unless SEPNB_CHECK=1 is set: then rows of it are computed again, too, and where they agree the hash
of today's code is noted beside it as `checked`, with the test that did so, and it is no longer shown as marked.
"""
import inspect
import json
import os
import time
import zlib

import numpy as np
import pandas as pd
import pytest
import torch

from sepnb import (activations, audio, basin, beyond, constant, experts, frames, interpolation, landscape, langevin, latents, likelihood, lossyvae, modes, music, musictable, pairs, pitchbasis, polyphony, presets, pursuit, recordings,
                   rqtransformer, separation, smoothness, songfiles, spectral, speed, staying, store, style, toy, training, typicality, worldtones)
from sepnb.evaluation import bss_eval, si_sdr, si_sdr_improvement
from sepnb.frames import prepared
from sepnb.registry import DATA, EXPERIMENTS, discover

PRESET, CHECK = "laptop", bool(os.environ.get("SEPNB_CHECK"))
FOLDER = store.artifacts() / "results" / PRESET
# Chains of many random steps multiply the rounding of another processor: their rows are compared with a wide margin, in dB
CHAOTIC = ("projection", "dirac", "langevin")
SLOW = 60 if CHECK else 3  # seconds: rows that take longer are left out
slow = pytest.mark.skipif(not CHECK, reason="takes more than ten seconds")


def stored(name):
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{name} is not stored")
    info = json.loads(path.with_suffix(".json").read_text())
    since = store.changed(info)
    if since and not (CHECK and since == ["its code"]):
        pytest.skip(f"{name} is marked: {' and '.join(since)} changed since")
    return pd.read_csv(path), info


@pytest.fixture(autouse=True)
def used(monkeypatch):
    "The weights that a test has loaded. Some are not shipped: what needs them can be computed again where they were trained."
    load = presets.load_prior

    def load_or_skip(*args, **kwargs):
        try:
            return load(*args, **kwargs)
        except FileNotFoundError as error:
            pytest.skip(str(error))

    monkeypatch.setattr(presets, "load_prior", load_or_skip)
    with store.weights_used() as loaded:
        yield loaded


def agrees(name, used, request):
    "The last line of a test: what it compared agrees, so today's code is noted beside a result that is marked."
    path = FOLDER / f"{name}.json"
    info = json.loads(path.read_text())
    if CHECK and store.changed(info):
        f = EXPERIMENTS[name]  # results of old did not say where their code and their weights were
        info = {"module": inspect.unwrap(getattr(f, "func", f)).__module__, "weights": used} | info
        info["checked"] = dict(code=store.code_now(info), by=request.node.name, made=time.strftime("%Y-%m-%d", time.gmtime()))
        store.write_whole(path, (json.dumps(info, indent=1) + "\n").encode())


def three(frame, name):
    "Three rows, by the content of the table; forty of a result that does not say which weights it used."
    n = 3 if "weights" in json.loads((FOLDER / f"{name}.json").read_text()) else 40
    seed = zlib.crc32((FOLDER / f"{name}.csv").read_bytes())
    return frame.iloc[np.random.default_rng(seed).choice(len(frame), min(n, len(frame)), replace=False)]


def source_of(row, t, seed=0): # -> (1, t)
    return toy.ToyData("test", t=t, seed=seed).batch([row.item])[:, toy.SOURCES.index(row.source)]


@pytest.mark.parametrize("model", ["flowavenet", "wavenet", "wavenet-released"])
def test_fig3(model, used, request):
    frame, info = stored(f"fig3-toy-{model}")
    for row in three(frame, f"fig3-toy-{model}").itertuples():
        ours = presets.load_prior(model, "toy", row.prior, preset=PRESET).log_prob(source_of(row, info["samples"])).item()
        assert ours == pytest.approx(row.log_prob, rel=2e-3, abs=2), row
    agrees(f"fig3-toy-{model}", used, request)


@slow
def test_fig3_score(used, request):
    frame, info = stored("fig3-score")
    n, t = info["items"], info["samples"]
    clean = toy.ToyData("test", t=t).batch(range(n)).flatten(0, 1)
    for row in three(frame, "fig3-score")[:4].itertuples():
        x = smoothness.noisy(clean, row.sigma, torch.Generator().manual_seed(0))
        prior = presets.load_prior(row.kind, "toy", row.prior, preset=PRESET)
        ours = prior.log_density(x, row.sigma, info["ode_steps"])[4 * row.item + toy.SOURCES.index(row.source)].item()
        assert ours == pytest.approx(row.log_prob, rel=5e-3, abs=10), row
    agrees("fig3-score", used, request)


@pytest.mark.parametrize("name", ["fig4-flowavenet", "fig4-wavenet"])
def test_fig4(name, used, request):
    frame, info = stored(name)
    if not CHECK and name == "fig4-wavenet":
        pytest.skip("takes a minute")
    for row in three(frame[(frame.quantity == "log_prob") & (frame.seed == 0)], name)[:4].itertuples():
        model = smoothness.WAYS[row.way]
        told = row.way == "told" and row.sigma > 0
        prior = presets.load_prior("flowavenet" if row.way == "told" and not told else model, "toy", row.prior, 0.0 if told else row.sigma, PRESET)
        data = smoothness.NoisyData(toy.ToyData("test", t=info["samples"]), row.sigma, prior)
        x = data.batch(range(info["items"]))[:, toy.SOURCES.index(row.source)]
        ours = torch.cat([prior.log_prob(part, *([row.sigma] if told else [])) for part in x.split(10)]).double().mean().item() / info["samples"]
        assert ours == pytest.approx(row.value, rel=2e-3, abs=2e-3), row
    agrees(name, used, request)


def test_table1(used, request):
    frame, info = stored("table1-likelihood")
    for row in three(frame[frame.input.str.match(r"^-?[\d.]+$")], "table1-likelihood").itertuples():
        prior, told = next((p, told) for s, p, told in constant.priors_of(row.model, row.sigma, PRESET) if s == row.prior)
        ours = constant.per_sample(prior, constant.constants([float(row.input)], info["t"]), told)[row.convention]
        assert float(ours) == pytest.approx(row.nats_per_sample, rel=2e-3, abs=2e-3), row
    agrees("table1-likelihood", used, request)


def test_typicality(used, request):
    frame, info = stored("table1-typicality")
    for row in three(frame[frame.kind == "constant"], "table1-typicality").itertuples():
        prior, told = next((p, told) for s, p, told in constant.priors_of(row.model, row.sigma, PRESET) if s == row.prior)
        ours = constant.per_sample(prior, constant.constants([row.value], info["t"]), told)["log_prob"]
        assert float(ours) == pytest.approx(row.nats_per_sample, rel=2e-3, abs=2e-3), row
    assert typicality.typicality(frame).likelihood.between(0, 1).all()
    agrees("table1-typicality", used, request)


@slow
def test_table1_score(used, request):
    frame, info = stored("table1-score")
    for row in three(frame[frame.input.isin(["0", "1"])], "table1-score")[:4].itertuples():
        prior = presets.load_prior(row.model, "toy", row.prior, preset=PRESET)
        inputs = [constant.constants([0.0], info["samples"]), constant.constants([1.0], info["samples"]), constant.noises(info["items"], info["samples"]),
                  constant.in_class(row.prior, row.sigma, info["items"], info["samples"])]  # together, as they share the direction of the trace
        ours = prior.log_density(torch.cat(inputs), row.sigma, info["ode_steps"])[int(row.input)].item() / info["samples"]
        assert ours == pytest.approx(row.nats_per_sample, rel=5e-3, abs=5e-3), row
    agrees("table1-score", used, request)


def test_basin(used, request):
    frame, info = stored("langevin-basin")
    params = toy.ToyData("test").params(info["item"])
    for row in three(frame, "langevin-basin").itertuples():
        bank, k = presets.load_bank("flowavenet", "toy", PRESET, row.sigma), toy.SOURCES.index(row.source)
        ours = basin.basin(bank, params, k, [row.frequency], row.sigma, t=info["t"]).log_posterior.item()
        assert ours == pytest.approx(row.log_posterior, rel=2e-3, abs=5), row
    agrees("langevin-basin", used, request)


def test_peakedness(used, request):
    frame, info = stored("peakedness")
    clean = frame[(frame.path == "noise") & (frame.position == 0) & (frame.way == "noise-free")]
    for row in three(clean, "peakedness").itertuples():
        ours = presets.load_prior("flowavenet", "toy", row.source, preset=PRESET).log_prob(source_of(row, info["samples"])).item() / info["samples"]
        assert ours == pytest.approx(row.log_prob, rel=2e-3, abs=2e-3), row
    agrees("peakedness", used, request)


@slow
def test_langevin(used, request):
    frame, info = stored("langevin")
    name, n = "Algorithm 1, printed", info["few"]
    was = frame[(frame.method == name) & (frame.start == "noise")]
    truth = toy.ToyData("test", t=info["t"], seed=info["seed"]).batch(range(n))
    out, held = langevin.chain(name, truth, PRESET, float(was.eta.iloc[0]), "noise", 0)
    scores = si_sdr(out, truth)
    assert not held.any() and abs(scores.median().item() - was.si_sdr.median()) < 3, "the median of sixteen chaotic chains"
    agrees("langevin", used, request)


@slow
def test_langevin_choice(used, request):
    frame, info = stored("langevin-choice")
    row = frame[frame.method == "BASIS, fine-tuned"].iloc[-1]
    truth = toy.ToyData("valid", t=info["t"]).batch(range(info["tried"]))
    out, held = langevin.chain(row.method, truth, PRESET, row.eta, "noise", 0)
    gain = si_sdr_improvement(out, truth, toy.mix(truth)).median().item()
    assert int(held.sum()) == row.diverged and abs(gain - row.improvement) < 3, (gain, row)
    agrees("langevin-choice", used, request)


@slow
def test_langevin_trace(used, request):
    frame, info = stored("langevin-trace")
    name = "BASIS, fine-tuned"
    was = frame[(frame.method == name) & (frame.start == "noise") & (frame["item"] == 0)]
    was = was[was.step == was.step.max()].set_index("source").si_sdr
    truth = toy.ToyData("test", t=info["t"], seed=info["seed"]).batch(range(info["few"]))
    trace = langevin.Trace(truth)
    langevin.chain(name, truth, PRESET, langevin.chosen_eta(name, PRESET), "noise", 0, trace)
    ours = trace.frame().query("item == 0")
    ours = ours[ours.step == ours.step.max()].set_index("source").si_sdr
    assert (ours - was).abs().median() < 3, (ours, was)
    agrees("langevin-trace", used, request)


@slow
def test_staying_find(used, request):
    frame, info = stored("staying-find")
    row = frame.query("known == 'pitch and phase' and start == 'noise' and seed == 0").iloc[0]
    data = toy.ToyData("test", t=info["t"], seed=1)
    truth, params = data.batch(range(info["items"])), data.params(range(info["items"]))
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(truth.shape, generator=g) - 1
    out = langevin.langevin(toy.mix(truth), staying.libraries(row.known, truth, params, info["waves"]), staying.LADDERS[row.ladder], row.steps, start=x, generator=g, limit=100.0)
    assert abs((si_sdr(out, truth) > 10).double().mean().item() - row.found) < 0.1, row
    agrees("staying-find", used, request)


@slow
def test_staying_hold(used, request):
    frame, info = stored("staying-hold")
    was = frame[(frame.prior == frame.prior.iloc[0]) & (frame.sigma == frame.sigma.min()) & (frame.way == "as BASIS")]
    sigma, c, steps = (was[k].iloc[0] for k in ("sigma", "size", "steps"))
    truth, g = toy.ToyData("test", t=info["t"], seed=1).batch(range(info["items"])), torch.Generator().manual_seed(0)
    start = truth + sigma * torch.randn(truth.shape, generator=g)
    bank = staying.holders(PRESET)[was.prior.iloc[0]](sigma)
    out = langevin.langevin(toy.mix(truth), bank, [sigma], int(steps), c * sigma**2, start=start, generator=g)
    assert np.allclose(si_sdr(start, truth).flatten(), was.start, atol=0.01) and np.allclose(si_sdr(out, truth).flatten(), was.end, atol=1.0)
    agrees("staying-hold", used, request)


def test_staying_descend(used, request):
    frame, info = stored("staying-descend")
    was = frame[frame.top == frame.top.min()]
    was = was[was["size"] == was["size"].max()]
    truth = toy.ToyData("test", t=info["t"], seed=1).batch(range(info["items"]))
    g = torch.Generator().manual_seed(0)
    top, c = float(was.top.iloc[0]), float(was["size"].iloc[0])
    start = truth + top * torch.randn(truth.shape, generator=g)
    bank = presets.load_bank("flowavenet-conditional", "toy", PRESET)
    out = langevin.langevin(toy.mix(truth), bank, (top,), int(was.steps.iloc[0]), c * langevin.DOWN[-1] ** 2, 0.5, start, g)
    assert np.allclose(si_sdr(out, truth).flatten(), was.si_sdr, atol=1.0)
    agrees("staying-descend", used, request)


@slow
def test_beyond(used, request):
    frame, info = stored("separation-beyond")
    bank = presets.load_bank("wavetable", "toy", PRESET)
    for name, sources, mixes, rate in beyond._beyond(info["items"]):
        part = frame[frame.condition == name]
        if name in ("as trained", "white noise at 20 dB", "vibrato of 1 cent at 5 Hz"):
            i = int(three(part, "separation-beyond")["item"].iloc[0])
            out = pursuit.pursuit(mixes[i : i + 1].float(), bank, rate, budget=16)
            ours = si_sdr_improvement(out, sources[i : i + 1].float(), mixes[i : i + 1].float())[0]
            was = torch.tensor(part[part["item"] == i].si_sdri.to_numpy())
            assert (((ours - was).abs() < 1) | (torch.minimum(ours, was) > 60)).all(), (name, i, ours, was)
    agrees("separation-beyond", used, request)


def test_ablation(used, request):
    frame, info = stored("separation-ablation")
    assert "validation" in info["data"] and info["items"] == frame["item"].nunique() == 24
    bank = presets.load_bank("wavetable", "toy", PRESET)
    settings = dict(beyond._ablation(bank))
    for name, i in zip(("1 sweep, loudest first", "4 sweeps, loudest first", "pursuit, no repairs", "pursuit"), [frame["item"].min(), *three(frame, "separation-ablation")["item"]]):
        x = toy.ToyData("valid").batch([int(i)])
        ours = si_sdr_improvement(settings[name](toy.mix(x), bank), x, toy.mix(x))[0]
        was = torch.tensor(frame[(frame.setting == name) & (frame["item"] == i)].si_sdri.to_numpy())
        assert (((ours - was).abs() < 1) | (torch.minimum(ours, was) > 60)).all(), (name, ours, was)
    agrees("separation-ablation", used, request)


def test_bss(used, request):
    frame, info = stored("separation-bss")
    x = toy.ToyData("test", seed=info["seed"]).batch([0])
    ours = bss_eval(separation.ROWS["mask"].run(toy.mix(x), x)[0], x[0], names=toy.SOURCES)
    was = frame[(frame.row == "mask") & (frame["item"] == 0)].set_index("source").SDR
    assert (ours.SDR[list(toy.SOURCES)] - was[list(toy.SOURCES)]).abs().max() < 0.1
    agrees("separation-bss", used, request)


@slow
def test_oracle(used, request):
    frame, info = stored("fig4-oracle")
    x = smoothness.NoisyData(toy.ToyData("test", t=info["samples"]), 0.359).batch(range(info["items"]))
    cross = torch.cat([-torch.stack([smoothness.formulas(v) for v in sources])[None] for sources in x])
    was = frame[(frame.sigma == 0.359) & (frame.quantity == "accuracy")].value.item()
    assert likelihood.accuracy(cross) == pytest.approx(was, abs=1e-9)
    agrees("fig4-oracle", used, request)


@slow
def test_fig4_start(used, request, monkeypatch):
    "The first row of every start: a tenth of the steps, at the learning rates of the whole run."
    frame, info = stored("fig4-start")

    class Enough(Exception):
        pass

    def first_row(*args, callback, **options):
        def once(step, prior):
            callback(step, prior)
            raise Enough
        try:
            training.fit(*args, callback=once, **options)
        except Enough:
            pass

    with monkeypatch.context() as quick:
        quick.setattr(smoothness, "fit", first_row)
        ours = smoothness.fig4_start(PRESET)
    was = frame[frame.step == frame.step.min()]
    assert list(ours.start) == list(was.start) and list(ours.step) == list(was.step)
    assert np.allclose(ours.accuracy, was.accuracy, atol=0.05) and np.allclose(ours.own, was.own, atol=0.02), (ours, was)
    agrees("fig4-start", used, request)


@slow
def test_flow_variants(used, request, monkeypatch):
    "One of the flows, trained again."
    frame, info = stored("flow-variants")
    was = frame.iloc[zlib.crc32((FOLDER / "flow-variants.csv").read_bytes()) % len(frame)]
    with monkeypatch.context() as quick:
        quick.setattr(likelihood, "product", lambda *axes: [(was.source, bool(was.front_relu), bool(was.interleaved))])
        ours = likelihood.flow_variants(PRESET).iloc[0]
    assert abs(ours.nats_per_sample - was.nats_per_sample) < 0.01, (ours, was)
    agrees("flow-variants", used, request)


@slow
def test_long(used, request, tmp_path):
    "Windows of the long files, cut out and separated alone."
    frame, info = stored("separation-long")
    bank, rate = presets.load_bank("wavetable", "toy", PRESET), info["rate"]
    for row in three(frame, "separation-long").itertuples():
        sources = recordings.chord(row.material, row.item, rate)
        with audio.writing([tmp_path / "mix.wav"], rate, 2) as (write,):
            write(sources.mean(0))
        mix = audio.Recording(tmp_path / "mix.wav").read(rate, 2 * rate)
        ours = si_sdr(recordings.separate(mix, bank, rate=rate, progress=False).stems, sources[..., rate : 2 * rate] / 4).min().item()
        assert abs(ours - row.alone) <= 1 or min(ours, row.alone) > 60, (ours, row)
    agrees("separation-long", used, request)


@slow
def test_speed(used, request, monkeypatch):
    "Milliseconds are those of a machine and its load: what is compared is how many times faster one model is than the other, and one method than the next."
    frame, info = stored("speed")
    with monkeypatch.context() as quick:
        quick.setattr(speed, "can_compile", lambda device: False)
        ours = speed.speed(PRESET)
    assert list(ours.task) == list(frame.task) and (ours.times_faster / frame.times_faster).between(1 / 1.4, 1.4).all(), (ours, frame)
    agrees("speed", used, request)


@slow
def test_speed_wavenet(used, request):
    frame, info = stored("speed-wavenet")
    ours = speed.speed_wavenet(PRESET)
    steps = lambda f: f.samples_per_second.pct_change().dropna() + 1
    assert list(ours.method) == list(frame.method) and (steps(ours) / steps(frame)).between(1 / 2, 2).all(), (ours, frame)
    agrees("speed-wavenet", used, request)


@pytest.mark.parametrize("name", recordings.TRIALS)
def test_trust(name, used, request):
    frame, info = stored(f"separation-trust-{name}")
    trial = recordings.TRIALS[name]
    if not CHECK and trial.prior != "wavetable":
        pytest.skip("takes a minute")
    for row in three(frame, f"separation-trust-{name}")[: None if CHECK else 1].itertuples():
        sources, mixes = recordings.trust_mixes(row.condition, toy.ToyData(row.split, seed=int(row.split == "test")), trial.items, trial.t)
        found = recordings.separate(mixes[row.item], presets.load_bank(trial.prior, "toy", PRESET), trial.method, sigmas=trial.sigmas,
                                    generator=torch.Generator().manual_seed(row.item), progress=False, workers=1)
        ours = recordings.worst_source(found.stems, sources[row.item], mixes[row.item])
        margin = 6.0 if name.startswith(CHAOTIC) else 1.0
        assert abs(ours - row.worst) <= margin or min(ours, row.worst) > 60 or max(ours, row.worst) < -20, (ours, row)
    agrees(f"separation-trust-{name}", used, request)


@pytest.mark.parametrize("row", separation.ROWS)
def test_separation(row, used, request):
    name, how = f"separation-toy-{row}", separation.ROWS[row]
    frame, info = stored(name)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in info["options"].items()}
    if how.after:  # what was not repaired stands in the row before
        before = pd.read_csv(FOLDER / f"separation-toy-{how.after}.csv")
        items = sorted(set(range(info["items"])) - set(before[before.unexplained <= options["enough"]]["item"]))
    else:
        items = list(range(info["items"]))
    groups = separation.groups(items, how.t)
    cost = {tuple(g): frame[frame["item"].isin(g)].groupby("item").seconds.first().sum() for g in groups}
    quick = [g for g in groups if cost[tuple(g)] < SLOW]
    if not quick:
        pytest.skip("nothing was repaired" if not groups else f"every group of mixes takes longer than {SLOW} s")
    group = quick[zlib.crc32((FOLDER / f"{name}.csv").read_bytes()) % len(quick)]
    data = toy.ToyData("test", t=how.t, seed=separation.TEST_SEED)
    again = separation.separated(how, separation._prior(how.prior, PRESET), "toy", data, group, options)
    was = frame[frame["item"].isin(group)].set_index(["item", "source"]).si_sdri
    margin = 6.0 if row.startswith(CHAOTIC) else 1.0
    for one in three(again, name).itertuples():
        then = was[one.item, one.source]
        assert abs(one.si_sdri - then) <= margin or min(one.si_sdri, then) > 60, (one, then)
    agrees(name, used, request)

def songs_are_here():
    try:
        prepared("songs", "test"), prepared("songs", "train")
    except FileNotFoundError:
        pytest.skip("the generated songs are not rendered here: sepnb data songs")


@pytest.mark.parametrize("model", ["flowavenet", "wavenet"])
@pytest.mark.parametrize("kind", ["music", "music-unheard"])
def test_music(kind, model, used, request):
    songs_are_here()
    name = f"{kind}-musdb18-songs-{model}"
    frame, info = stored(name)
    for row in three(frame[frame.control.isin(["as it is", "test-programs", "test-font"]) & (frame.samples < 5000)], name).itertuples():
        data = DATA["musdb18-songs"]
        x = data.items(row.control if row.control.startswith("test") else "test", t=row.samples)[row.item][data.sources.index(row.source)]
        ours = presets.load_prior(model, "musdb18-songs", row.prior, preset=PRESET).log_prob(x[None]).item()
        assert ours == pytest.approx(row.log_prob, rel=2e-3, abs=5), row
    agrees(name, used, request)


def test_music_mel(used, request, monkeypatch):
    songs_are_here()
    frame, info = stored("music-mel-musdb18-songs")
    with monkeypatch.context() as quick:
        quick.setattr(music, "asked", lambda preset: [("as it is", 1024)])
        ours = music.music_mel(PRESET, "musdb18-songs")
    was = frame[(frame.control == "as it is") & (frame.samples == 1024)]
    assert np.allclose(ours.log_prob, was.log_prob, rtol=1e-2, atol=0.1)
    agrees("music-mel-musdb18-songs", used, request)


@slow
def test_world(used, request):
    "Moving tones: three mixes of the conditions that the content of the table chooses."
    frame, _ = stored("separation-world")
    seed, conditions = zlib.crc32((FOLDER / "separation-world.csv").read_bytes()), list(frame.condition.unique())
    chosen, bank = {conditions[(seed + 5 * j) % len(conditions)] for j in range(3)}, presets.load_bank("wavetable", "toy", PRESET)
    for name, sources, rate in worldtones.world("test", 1):
        if name in chosen:
            m = toy.mix(sources).float()
            for method, run in (("pursuit", lambda *a: pursuit.pursuit(*a, budget=16)), ("worldtones", worldtones.worldtones)):
                ours = si_sdr_improvement(run(m, bank, rate), sources.float(), m)[0].clamp(-100, 160)
                was = frame[(frame.condition == name) & (frame.method == method) & (frame["item"] == 0)].si_sdri.to_numpy()
                assert np.all((np.abs(ours.numpy() - was) < 1) | (np.minimum(ours.numpy(), was) > 60)), (name, method, ours, was)
    agrees("separation-world", used, request)


SONG_TABLES = sorted(p.stem for pattern in ("separation-songs-*.csv", "separation-musdb18-*.csv") for p in FOLDER.glob(pattern))


def rendered(data, split):
    try:
        prepared("songs" if data == "musdb18-songs" else data, split)  # which are the same songs in another layout
    except FileNotFoundError:
        pytest.skip("songs were not rendered here")
    return DATA[data].items(split, t=16_000).songs


def some(name, n):
    "A number below n, by the content of the table."
    return zlib.crc32((FOLDER / f"{name}.csv").read_bytes()) % n


@slow
@pytest.mark.parametrize("name", SONG_TABLES)
def test_songs_table(name, used, request):
    "A song of every row of the table of music."
    frame, info = stored(name)
    split = next((s for s in sorted(musictable.TESTS, key=len, reverse=True) if name.endswith(s)), "test")
    data, row = "musdb18-songs" if name.startswith("separation-musdb18") else "songs", info["row"]
    of = [s for s in rendered(data, split) if s.path.stem in set(frame.song)]
    try:
        priors = musictable._priors(row, PRESET, 0, info.get("chosen"), data)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    i = some(name, len(of))
    sources = musictable.piece(of[i][:], info["samples"]) if info.get("samples") else of[i][:]
    ours = musictable._scored(row, sources, priors, i)[0].nanmean(0).numpy()
    was = frame[(frame.song == of[i].path.stem) & (frame.seed == 0)].si_sdri.to_numpy()
    assert np.allclose(ours, was, atol=0.5 if musictable.SONG_ROWS[row].evaluations > 4 else 0.05, equal_nan=True), (ours, was)
    agrees(name, used, request)


@slow
def test_songs_trust(used, request):
    "A song of every set."
    frame, info = stored("songs-trust")
    rendered("songs", "valid")
    of, seen = experts.load_experts(preset=PRESET), set()
    for split, name, sources, mix in songfiles.trials(info["items"]):
        was = frame[(frame.split == split) & (frame.song == name)]
        if split not in seen and name.endswith(str(some("songs-trust", 2))):
            seen.add(split)
            with torch.no_grad():
                stems, known = songfiles.separated(mix[None], audio.RATE, of)
            ours = si_sdr(stems[:, 0], sources)[sources.any(1)].numpy()
            assert abs(known["misfit"] - was.misfit.iloc[0]) < 1e-3 and np.allclose(np.where(was.silenced, np.nan, ours), was.si_sdr, atol=0.05, equal_nan=True), (split, name)
    assert seen == set(frame.split)
    agrees("songs-trust", used, request)


@slow
def test_songs_absent(used, request, monkeypatch):
    "The first song of both sets."
    frame, info = stored("songs-absent")
    first = {s: rendered("songs", s)[0].path.stem for s in ("valid", "test")}
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(songfiles.LEFT_OUT, PRESET, 1)
        ours, was = songfiles.songs_absent(PRESET), frame[frame.song == frame.split.map(first)]
    assert np.allclose(ours.share.clip(-60), was.share.clip(-60), atol=0.3) and np.allclose(ours.true, was.true, atol=0.1)
    agrees("songs-absent", used, request)


@slow
def test_songs_errors(used, request, monkeypatch):
    "The first song of every set."
    frame, info = stored("songs-errors")
    rendered("songs", "test")
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(musictable.COMPARED, PRESET, 1)
        quick.setattr(musictable, "chosen", lambda row, preset: {row: info["weights_of_experts"][row]})
        ours = musictable.songs_errors(PRESET)
    assert np.allclose(ours.correlation, frame.merge(ours[["split", "song"]].drop_duplicates()).correlation, atol=0.01)
    agrees("songs-errors", used, request)


@slow
def test_vae_valid(used, request):
    "One song, all inferences but the long chain."
    frame, info = stored("vae-valid")
    of = rendered("songs", "valid")[: info["items"]]
    i = some("vae-valid", len(of))
    song = of[i][:]
    middle = song[:, max(0, song.shape[1] // 2 - 4 * audio.RATE) :][:, : 8 * audio.RATE]
    bank, dictionaries = (presets.load_bank(m, "songs", PRESET) for m in ("spectral-vae", "dictionary"))
    ours = pd.DataFrame(latents.inferences(PRESET, middle, bank, dictionaries, False))
    was = frame[(frame.song == i) & ~frame.inference.isin(["product", "MCEM, long"])]
    assert np.allclose(ours.si_sdri, was.si_sdri, atol=0.3) and (ours.start.to_numpy() == was.start.to_numpy()).all()
    agrees("vae-valid", used, request)


@slow
def test_hdemucs_valid(used, request, monkeypatch):
    "The first song."
    frame, info = stored("hdemucs-valid")
    first = rendered("songs", "valid")[0].path.stem
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(pairs.CHECKED, PRESET, 1)
        ours = pairs.hdemucs_valid(PRESET)
    assert np.allclose(ours.si_sdri, frame[frame.song == first].si_sdri, atol=0.05, equal_nan=True)
    agrees("hdemucs-valid", used, request)


@slow
def test_notes_valid(used, request, monkeypatch):
    "The first song, with the factors that are stored."
    frame, info = stored("notes-valid")
    first = rendered("songs", "valid")[0].path.stem
    best = {row: tuple(float(f) for f in g.factors.astype(str).iloc[0].split()) for row, g in frame.groupby("row")}
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(polyphony.READ, PRESET, 1)
        quick.setattr(polyphony, "grid", lambda names, factors: [dict(zip(names, best[" x ".join(names)]))])
        ours = polyphony.notes_valid(PRESET)
    was = frame[frame.song == first]
    assert (ours.row.to_numpy() == was.row.to_numpy()).all() and np.allclose(ours.si_sdri, was.si_sdri, atol=0.05, equal_nan=True)
    agrees("notes-valid", used, request)


@slow
def test_notes_heldout(used, request, monkeypatch):
    "The first song of either kind."
    frame, info = stored("notes-heldout")
    first = {kind: rendered("songs", split)[0].path.stem for kind, split in (("unheard", "train"), ("heard", "valid"))}
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(polyphony.HELD, PRESET, 1)
        ours, was = polyphony.notes_heldout(PRESET), frame[frame.song == frame.kind.map(first)]
    assert np.allclose(ours.si_sdri, was.si_sdri, atol=0.1, equal_nan=True)
    agrees("notes-heldout", used, request)


@slow
def test_songs_limit(used, request, monkeypatch):
    "The first song of either kind, all validation songs with the dictionaries that are shipped."
    frame, info = stored("songs-limit")
    rendered("songs", "valid")
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(songfiles.LIMITED, PRESET, 1)
        ours = songfiles.songs_limit(PRESET)
    both = ours.merge(frame, on=["kind", "song", "start"])
    assert len(both) == len(ours) and np.allclose(both.misfit_x, both.misfit_y, atol=2e-3)
    agrees("songs-limit", used, request)


@slow
def test_songs_choice(used, request):
    "The factors that every row chose, on all songs that it chose on."
    frame, info = stored("songs-choice")
    songs = [s[:] for s in rendered("songs", "valid")[: info["items"]]]
    best = frame.loc[frame.groupby("row").si_sdri.idxmax()]
    tries = [{m: row[m] for m in musictable.ALL if pd.notna(row[m])} for _, row in best.iterrows()]
    ours = experts.weighed(experts.load_experts({m: 1.0 for m in musictable.ALL}, None, preset=PRESET), songs, tries)
    assert np.allclose(ours, best.si_sdri, atol=0.05)
    agrees("songs-choice", used, request)


@slow
def test_rqtransformer(used, request):
    "The transformer on all validation songs, stage by stage and frame by frame."
    frame, info = stored("rqtransformer")
    rendered("songs", "valid")
    model, _ = rqtransformer.load_rqtransformer(preset=PRESET)
    by_stage, by_frame = rqtransformer.nll_by_stage(model, rqtransformer.song_codes("valid", preset=PRESET, most=info["items"]))
    was = frame[(frame.split == "valid") & (frame.way == "transformer")]
    assert np.allclose(by_stage, was.nats, atol=2e-3) and np.allclose(by_frame, info["by_frame"]["valid"], atol=0.05)
    agrees("rqtransformer", used, request)


@slow
def test_rqtransformer_variants(used, request, monkeypatch):
    "The one with half of the stages, trained again: no weights are kept."
    frame, info = stored("rqtransformer-variants")
    rendered("songs", "train")
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setattr(rqtransformer, "fit", lambda model, *args: training.fit(model, *args) if model.config.quantizers == info["half"] else None)
        ours = rqtransformer.rqtransformer_variants(PRESET)
    ours, was = (f[f.variant == "half of the stages"] for f in (ours, frame))
    assert len(ours) == info["half"] and np.allclose(ours.nats, was.nats, atol=0.02), (ours, was)
    agrees("rqtransformer-variants", used, request)


# ---- notes

def notes_here():
    if not (frames.data_home() / "notes" / "nsynth-test" / "examples.json").exists():
        pytest.skip("the notes are not rendered here: sepnb data notes")


@slow
@pytest.mark.parametrize("split", ["valid", "test"])
def test_spectralflow_between(split, used, request, monkeypatch):
    "The first pair of notes."
    notes_here()
    frame, info = stored(f"spectralflow-between-{split}")
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(interpolation.PAIRS, PRESET, 1)
        ours = interpolation.spectral_between(PRESET, split)
    was = frame[: len(ours)]
    assert (ours[["one", "two", "way", "counts"]].astype(str).to_numpy() == was[["one", "two", "way", "counts"]].astype(str).to_numpy()).all()
    assert np.allclose(ours[["to_linear", "to_geometric", "to_real"]], was[["to_linear", "to_geometric", "to_real"]], atol=0.05)
    agrees(f"spectralflow-between-{split}", used, request)


@slow
def test_spectralflow_bits(used, request, monkeypatch):
    "Two notes of either split with every model."
    notes_here()
    frame, info = stored("spectralflow-bits")
    with monkeypatch.context() as quick:
        quick.setitem(interpolation.MEASURED, PRESET, 2)
        ours = interpolation.spectral_bits(PRESET)
    both = ours.merge(frame, on=["kind", "split", "note"], suffixes=("", "_was"))
    assert len(both) == len(ours) and np.allclose(both.bits, both.bits_was, atol=2e-3)
    agrees("spectralflow-bits", used, request)


@slow
def test_spectralflow_samples(used, request, monkeypatch):
    "The first eight notes that were asked for, of every model and temperature, and eight real ones."
    notes_here()
    frame, info = stored("spectralflow-samples")
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(interpolation.ASKED, PRESET, 8)
        quick.setattr(interpolation, "spread", lambda notes, n: spectral.spread(notes, info["items"])[:n])
        ours = interpolation.spectral_samples(PRESET)
    was = frame.groupby(["kind", "temperature"], sort=False).head(8)
    assert (ours[["kind", "temperature", "pitch", "family"]].to_numpy() == was[["kind", "temperature", "pitch", "family"]].to_numpy()).all()
    assert ((ours[["first", "one", "said"]].to_numpy() == was[["first", "one", "said"]].to_numpy()).mean(0) > 0.95).all()
    agrees("spectralflow-samples", used, request)


def shaken_again(name, f, on, monkeypatch): # experiment, its function, columns that tell rows apart -> DataFrame, what is stored as `.._was`
    "Rows of two notes, computed again, beside those that are stored."
    notes_here()
    frame, _ = stored(name)
    with monkeypatch.context() as quick:  # what is patched is part of the hash
        quick.setitem(pitchbasis.SHAKEN, PRESET, 2)
        ours = f(PRESET)
    both = ours.merge(frame, on=on, suffixes=("", "_was"))
    assert len(both) == len(ours)
    return both


@slow
def test_spectralflow_noise(used, request, monkeypatch):
    "The first and the last note, at every level of noise."
    both = shaken_again("spectralflow-noise", pitchbasis.spectral_noise, ["kind", "sigma", "note"], monkeypatch)
    assert np.allclose(both.off, both.off_was, rtol=0.01, atol=2e-3) and (both.heard == both.heard_was).mean() > 0.95
    agrees("spectralflow-noise", used, request)


@slow
def test_spectralflow_transfer(used, request, monkeypatch):
    "Eight pairs with every model."
    both = shaken_again("spectralflow-transfer", pitchbasis.spectral_transfer, ["kind", "one", "two"], monkeypatch)
    assert all(np.allclose(both[k], both[f"{k}_was"], atol=0.05) for k in ("before", "after"))
    assert all((both[k] == both[f"{k}_was"]).mean() > 0.95 for k in ("pitch", "real_pitch", "family", "real_family"))
    agrees("spectralflow-transfer", used, request)


@slow
def test_spectralflow_probes(used, request, monkeypatch):
    "One kind of latents, all its notes and probes."
    notes_here()
    frame, info = stored("spectralflow-probes")
    of_flows = [name for name, (kind, _, _) in pitchbasis.LATENTS.items() if kind]
    name = of_flows[some("spectralflow-probes", len(of_flows))]
    with monkeypatch.context() as quick:
        quick.setattr(pitchbasis, "LATENTS", {name: pitchbasis.LATENTS[name]})
        ours = pitchbasis.spectral_probes(PRESET)
    was = frame[frame.latents == name]
    assert list(ours.what) == list(was.what) and np.allclose(ours[["accuracy", "chance"]], was[["accuracy", "chance"]], atol=0.02)
    agrees("spectralflow-probes", used, request)


@slow
def test_griffinlim(used, request, monkeypatch):
    "The first and the last note, few iterations."
    notes_here()
    frame, info = stored("griffinlim")
    with monkeypatch.context() as quick:
        quick.setitem(spectral.HEARD, PRESET, 2)
        quick.setattr(spectral, "STEPS", spectral.STEPS[:4])
        ours = spectral.griffin_lim(PRESET)
    both = ours.merge(frame, on=["note", "way", "iterations"], suffixes=("", "_was"))
    assert len(both) == len(ours) and np.allclose(both.convergence, both.convergence_was, atol=0.1)
    agrees("griffinlim", used, request)


@slow
@pytest.mark.parametrize("way", ["likelihood", "reversed"])
def test_modes_plane(way, used, request):
    "One training run of every way that ends in the same place on another processor: told everything."
    frame, info = stored("modes-plane")
    was = frame[(frame.way == way) & (frame.bits == modes.BITS) & (frame.seed == 0)].iloc[0]
    ours = modes.covering(modes.fitted_points(way, modes.BITS, PRESET), modes.BITS)
    assert ours["covered"] == was.covered and all(abs(ours[k] - was[k]) < 0.02 for k in ("off", "forward", "reverse"))
    agrees("modes-plane", used, request)


@slow
@pytest.mark.parametrize("name", ["lossy-vae", "lossy-vae-pieces"])
def test_lossy_vae(name, used, request):
    "The tones of one training run whose weights are shipped; draws of the posterior and probes are those that were stored."
    frame, info = stored(name)
    model, layers = (lossyvae.load_lossy_vae(1, PRESET)[0], 1) if name == "lossy-vae" else (lossyvae.load_pieced_vae(PRESET)[0], frame.layers.iloc[0])
    ours = pd.DataFrame(lossyvae.held_by(model, PRESET, layers=layers, seed=0))
    was = frame[(frame.layers == layers) & (frame.seed == 0)].reset_index(drop=True)
    assert np.allclose(ours.nats, was.nats, atol=0.05) and np.allclose(ours.given, was.given, atol=0.002 * was.given.abs().max())
    assert all(abs(ours[k].mean() - was[k].mean()) < 0.03 for k in ("class_read", "pitch_read", "class_true", "pitch_true"))
    agrees(name, used, request)


def test_style_of_the_first_pair(used, request):
    "What is simple and quick."
    frame, info = stored("style")
    was = frame[(frame.split == "test") & (frame.pair == 0)].set_index("method")
    content, other = style.pair_of(0, "test")
    judge = style.Judge(content, other)
    for method in ("content unchanged", "sum", "equaliser"):
        ours = judge(style.SIMPLE[method](content, other))
        assert ours["passes"] == was.passes[method] and all(abs(ours[k] - was.loc[method, k]) < 0.02 for k in ("pitch", "onsets", "from_content", "from_style", "timbre"))
    agrees("style", used, request)


def test_activations_weight(used, request, monkeypatch):
    "The first pair."
    frame, info = stored("activations-weight")
    with monkeypatch.context() as quick:
        all_of = activations.toy_pairs
        quick.setattr(activations, "toy_pairs", lambda n, t, split: all_of(1, t, split))
        ours = activations.activations_weight(PRESET)
    assert np.allclose(ours[["kept", "answer"]], frame[["kept", "answer"]][: len(ours)], rtol=0.02)
    agrees("activations-weight", used, request)


@slow
def test_activations(used, request, monkeypatch):
    "Of the first pair what was wanted, a waveform between codes, and one sweep from the content."
    frame, info = stored("activations")
    _, t, _, steps = activations.TRIED[PRESET]
    with monkeypatch.context() as quick:
        quick.setitem(activations.TRIED, PRESET, (1, t, 1, steps))
        quick.setattr(activations, "RUNS", activations.RUNS[:1])
        quick.setattr(activations, "FREE", {"waveform": activations.FREE["waveform"]})
        ours = activations.activations(PRESET)
    both = ours.merge(frame.fillna({"start": ""}), on=["pair", "way", "start", "step"], suffixes=("", "_was"))
    assert len(both) == len(ours) == 5 and np.allclose(both.total, both.total_was, rtol=0.02) and (both.multiplications == both.multiplications_was).all()
    agrees("activations", used, request)


discover()  # families are registered by modules of their own
QUICK = ("ddsp", "flowavenet", "spectral-gan", "student", "wavegan")  # they draw all samples of a clip at once


@pytest.mark.parametrize("sounds", ["scale", "notes"])
@pytest.mark.parametrize("family", sorted(landscape.FAMILIES))
def test_landscape(family, sounds, used, request, monkeypatch):
    "The first training run, told nothing: all but speed, as many clips as in the table."
    name = f"landscape-{family}-{sounds}"
    frame, info = stored(name)
    if not CHECK and (family not in QUICK or sounds != "scale"):
        pytest.skip("takes too long")
    if not all((store.artifacts() / "weights" / PRESET / f"{k}.safetensors").exists() for k in info["weights"] if "-seed" not in k):
        pytest.skip("its weights are not shipped")
    with monkeypatch.context() as quick:
        quick.setattr(landscape, "how_fast", lambda model, told=None: (0, 0))
        ours = landscape.measured(family, sounds, PRESET, 0, False)
    was = frame[(frame.seed == 0) & ~frame.told].iloc[0]
    assert ours["parameters"] == was.parameters and ours["steps"] == was.steps
    assert np.allclose([ours[k] for k in ("nats", "off", "pitch", "kind", "phase", "level")], was[["nats", "off", "pitch", "kind", "phase", "level"]].astype(float), atol=0.02, equal_nan=True)
    assert abs(ours["pairs"] - was.pairs) <= 2 and abs(ours["far"] - was.far) < 0.1
    agrees(name, used, request)
