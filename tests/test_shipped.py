"""What is shipped: weights load by name and are finite, results carry their provenance."""
import json
import os
import subprocess
import sys

import pytest
import torch

from sepnb import presets
from sepnb.registry import DATA, MODELS, discover
from sepnb.store import artifacts

discover()

WEIGHTS = [p for p in sorted((artifacts() / "weights").rglob("*.safetensors")) if "-seed" not in p.name]  # other seeds are not shipped
RESULTS = sorted((artifacts() / "results").rglob("*.csv"))


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_banks_load(model, preset):
    sigma = 0.359 if model == "flowavenet-scratch" else 0.0  # one is there for noisy waveforms only
    if not presets.weights_path(model, "toy", "sine", preset, sigma).exists():
        pytest.skip(f"{model} is not shipped at {preset}; sepnb train makes it")
    bank = presets.load_bank(model, "toy", preset, sigma=sigma)
    assert bank.names == DATA["toy"].sources
    assert all(torch.isfinite(p).all() for p in bank.state_dict().values())
    assert not any(p.requires_grad for p in bank.parameters())


def test_weights_are_small():
    "Those of the checkout: a test run leaves tiny ones beside them."
    listed = subprocess.run(["git", "ls-files", "artifacts/weights"], cwd=artifacts().parent, capture_output=True, text=True)
    shipped = {artifacts().parent / name for name in listed.stdout.split()} & set(WEIGHTS) if listed.returncode == 0 else WEIGHTS
    assert shipped and sum(p.stat().st_size for p in shipped) < 64e6
    assert all(p.stat().st_size < 8e6 for p in shipped)


@pytest.mark.parametrize("csv", RESULTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_results_have_provenance(csv):
    info = json.loads(csv.with_suffix(".json").read_text())
    assert info["preset"] == csv.parent.name and info["name"] == csv.stem
    assert {"seconds", "commit", "device", "torch"} <= info.keys()


def test_readme_is_what_the_stored_results_make():
    "Every number of the README comes from a stored result or from the header of shipped weights."
    here = artifacts().parent
    out = subprocess.run([sys.executable, "nbs/build_readme.py", "--check"], cwd=here, capture_output=True, text=True,
                         env={k: v for k, v in os.environ.items() if k != "SEPNB_PRESET"} | {"PYTHONPATH": str(here)})
    assert out.returncode == 0, out.stderr
