"""What is shipped: weights load by name and are finite, results carry their provenance."""
import json

import pytest
import torch

from sepnb import presets

WEIGHTS = sorted((presets.artifacts() / "weights").rglob("*.safetensors"))
RESULTS = sorted((presets.artifacts() / "results").rglob("*.csv"))


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
@pytest.mark.parametrize("model", sorted(presets.MODELS))
def test_banks_load(model, preset):
    bank = presets.load_bank(model, "toy", preset)
    assert bank.names == presets.DATA["toy"]
    assert all(torch.isfinite(p).all() for p in bank.parameters())
    assert not any(p.requires_grad for p in bank.parameters())


def test_weights_are_small():
    assert sum(p.stat().st_size for p in WEIGHTS) < 64e6
    assert all(p.stat().st_size < 8e6 for p in WEIGHTS)


@pytest.mark.parametrize("csv", RESULTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_results_have_provenance(csv):
    info = json.loads(csv.with_suffix(".json").read_text())
    assert info["preset"] == csv.parent.name and info["name"] == csv.stem
    assert {"seconds", "commit", "device", "torch"} <= info.keys()
