"""What is shipped: weights load by name and are finite, results carry their provenance."""
import json

import pytest
import torch

from sepnb import presets

WEIGHTS = [p for p in sorted((presets.artifacts() / "weights").rglob("*.safetensors")) if "-seed" not in p.name]  # other seeds are not shipped
RESULTS = sorted((presets.artifacts() / "results").rglob("*.csv"))


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
@pytest.mark.parametrize("model", sorted(presets.MODELS))
def test_banks_load(model, preset):
    # one is there for noisy waveforms only
    bank = presets.load_bank(model, "toy", preset, sigma=0.359 if model == "flowavenet-scratch" else 0.0)
    assert bank.names == presets.DATA["toy"]
    assert all(torch.isfinite(p).all() for p in bank.state_dict().values())
    assert not any(p.requires_grad for p in bank.parameters())


def test_weights_are_small():
    assert sum(p.stat().st_size for p in WEIGHTS) < 64e6
    assert all(p.stat().st_size < 8e6 for p in WEIGHTS)


@pytest.mark.parametrize("csv", RESULTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_results_have_provenance(csv):
    info = json.loads(csv.with_suffix(".json").read_text())
    assert info["preset"] == csv.parent.name and info["name"] == csv.stem
    assert {"seconds", "commit", "device", "torch"} <= info.keys()


def test_readme_numbers_are_the_stored_ones():
    "Every number of the README's tables comes from a stored result."
    from sepnb.likelihood import accuracy, as_cross, auroc

    readme = (presets.artifacts().parent / "README.md").read_text()
    for name in ("fig3-flowavenet", "fig3-wavenet", "fig3-wavenet-released"):
        frame, info = presets.result(name, "laptop")
        cross = as_cross(frame)
        line = next(line for line in readme.splitlines() if f"reproduce {name}`" in line)
        assert f"{100 * accuracy(cross):.1f} % named right" in line and f"AUROC {auroc(cross).min():.3f} to {auroc(cross).max():.3f}" in line
        assert f"{info['items']} test mixes" in line and f"{info['seconds'] / 60:.0f} min" in line
    for name in ("pursuit", "formulas"):
        frame, info = presets.result(f"separation-toy-{name}", "laptop")
        line = next(line for line in readme.splitlines() if f"reproduce separation-toy-{name}`" in line)
        gain = frame.si_sdri
        assert f"mean {gain.mean():.1f}, median {gain.median():.1f}, worst {gain.min():.1f} dB" in line and f"{info['items']} test mixes" in line
    for name in ("repaired-pitch", "exchanged-blackbox"):
        frame, info = presets.result(f"separation-toy-{name}", "laptop")
        line = next(line for line in readme.splitlines() if f"`separation-toy-{name}`" in line)
        gain = frame.si_sdri
        assert f"mean {gain.mean():.1f}, median {gain.median():.1f}, worst {gain.min():.1f} dB, {100 * (gain > 10).mean():.2f} % above 10 dB" in line
        assert f"{info['items']} test mixes" in line
    frame, info = presets.result("separation-toy-pursuit", "laptop")
    assert f"mean {frame.si_sdri.mean():.1f} dB" in readme and f"{100 * (frame.si_sdri > 10).mean():.2f} % of the sources above 10 dB" in readme
    fig4, _ = presets.result("fig4-flowavenet", "laptop")
    right = fig4[(fig4.quantity == "accuracy") & (fig4.way == "fine-tuned") & (fig4.sigma == 0.359)].value.mean()
    assert f"at 0.359: {100 * right:.1f} %" in readme
    speed, _ = presets.result("speed-wavenet", "laptop")
    fast = speed.set_index("method").samples_per_second["fast"]
    assert f"{fast:.0f} samples/s" in readme
    for model in ("flowavenet", "wavenet", "wavenet-released"):
        table = presets.training_table(model, "toy", "laptop")
        line = next(line for line in readme.splitlines() if f"train {model} toy all`" in line)
        assert f"{table.steps[0]} steps" in line and f"{table.seconds.sum() / 60:.0f} min" in line
