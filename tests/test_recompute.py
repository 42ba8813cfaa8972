"""Three rows of every stored table, computed again from the shipped weights. Which three changes with the content of the table."""
import json
import zlib

import numpy as np
import pandas as pd
import pytest
import torch

from sepnb import constant, langevin, likelihood, presets, separation, smoothness, toy

PRESET = "laptop"
FOLDER = presets.artifacts() / "results" / PRESET
# Chains of many random steps multiply the rounding of another processor: their rows are compared with a wide margin, in dB
CHAOTIC = ("projection", "dirac", "langevin")
SLOW = 20  # seconds: rows that take longer are left out


def stored(name):
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{name} is not stored")
    info = json.loads(path.with_suffix(".json").read_text())
    if since := presets.changed(info):
        pytest.skip(f"{name} is marked: {' and '.join(since)} changed since")
    return pd.read_csv(path), info


def three(frame, name):
    "Three rows, by the content of the table."
    seed = zlib.crc32((FOLDER / f"{name}.csv").read_bytes())
    return frame.iloc[np.random.default_rng(seed).choice(len(frame), min(3, len(frame)), replace=False)]


@pytest.mark.parametrize("model", ["flowavenet", "wavenet", "wavenet-released"])
def test_fig3(model):
    frame, info = stored(f"fig3-{model}")
    for row in three(frame, f"fig3-{model}").itertuples():
        x = toy.ToyData("test", t=info["samples"]).batch([row.item])[:, toy.SOURCES.index(row.source)]
        ours = presets.load_prior(model, "toy", row.prior, preset=PRESET).log_prob(x).item()
        assert ours == pytest.approx(row.log_prob, rel=2e-3, abs=2), row


@pytest.mark.parametrize("name", ["fig4-flowavenet", "fig4-wavenet"])
def test_fig4(name):
    frame, info = stored(name)
    for row in three(frame[(frame.quantity == "log_prob") & (frame.seed == 0)], name).itertuples():
        model = smoothness.WAYS[row.way]
        told = row.way == "told" and row.sigma > 0
        prior = presets.load_prior("flowavenet" if row.way == "told" and not told else model, "toy", row.prior, 0.0 if told else row.sigma, PRESET)
        data = smoothness.NoisyData(toy.ToyData("test", t=info["samples"]), row.sigma, prior)
        x = data.batch(range(info["items"]))[:, toy.SOURCES.index(row.source)]
        ours = torch.cat([prior.log_prob(part, *([row.sigma] if told else [])) for part in x.split(10)]).double().mean().item() / info["samples"]
        assert ours == pytest.approx(row.value, rel=2e-3, abs=2e-3), row


def test_table1():
    frame, info = stored("table1-likelihood")
    for row in three(frame[frame.input.str.match(r"^-?[\d.]+$")], "table1-likelihood").itertuples():
        prior, told = next((p, told) for s, p, told in constant.priors_of(row.model, row.sigma, PRESET) if s == row.prior)
        ours = constant.per_sample(prior, constant.constants([float(row.input)], info["t"]), told)[row.convention]
        assert float(ours) == pytest.approx(row.nats_per_sample, rel=2e-3, abs=2e-3), row


def test_basin():
    frame, info = stored("langevin-basin")
    params = toy.ToyData("test").params(info["item"])
    for row in three(frame, "langevin-basin").itertuples():
        bank, k = presets.load_bank("flowavenet", "toy", PRESET, row.sigma), toy.SOURCES.index(row.source)
        ours = langevin.basin(bank, params, k, [row.frequency], row.sigma, t=info["t"]).log_posterior.item()
        assert ours == pytest.approx(row.log_posterior, rel=2e-3, abs=5), row


def test_peakedness():
    frame, info = stored("peakedness")
    clean = frame[(frame.path == "noise") & (frame.position == 0) & (frame.way == "noise-free")]
    for row in three(clean, "peakedness").itertuples():
        x = toy.ToyData("test", t=info["samples"]).batch([row.item])[:, toy.SOURCES.index(row.source)]
        ours = presets.load_prior("flowavenet", "toy", row.source, preset=PRESET).log_prob(x).item() / info["samples"]
        assert ours == pytest.approx(row.log_prob, rel=2e-3, abs=2e-3), row


@pytest.mark.parametrize("row", separation.ROWS)
def test_separation(row):
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
    again = separation.separated(how, separation._prior(how.prior, PRESET), data, group, options)
    was = frame[frame["item"].isin(group)].set_index(["item", "source"]).si_sdri
    margin = 6.0 if row.startswith(CHAOTIC) else 1.0
    for one in three(again, name).itertuples():
        then = was[one.item, one.source]
        assert abs(one.si_sdri - then) <= margin or min(one.si_sdri, then) > 60, (one, then)
