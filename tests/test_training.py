"""What protects a training run and its files: labels, damaged files, full disks, short runs."""
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sepnb import presets
from sepnb.flowavenet import FloWaveNet, FloWaveNetConfig
from sepnb.registry import MODELS
from sepnb.store import load_tensors, load_weights, save_tensors, write_whole
from sepnb.toy import SourceData, ToyData
from sepnb.training import Recipe, fit, nll


def weights(model="flowavenet", source="sine"):
    return presets.weights_path(model, "toy", source, "smoke")


def copy_of(path, folder, tensors=lambda t: t, meta=lambda m: m):
    "A file of weights with something changed in it."
    t, m = load_tensors(path)
    target = folder / path.name
    save_tensors(target, tensors(t), meta(m))
    return target


def into(model, path):
    config, _ = presets.recipe_for(model, "toy", "smoke")
    return load_weights(MODELS[model].kind(config), path)


def test_a_run_folder_belongs_to_one_source(tmp_path, artifacts):
    presets.train("flowavenet", "toy", "sine", "smoke", run=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"belongs to another run: its what is \{'source': 'sine'\}, this run's is \{'source': 'square'\}"):
        presets.train("flowavenet", "toy", "square", "smoke", run=tmp_path / "run", progress=False)
    assert not weights(source="square").exists()


@pytest.mark.parametrize("model", ["wavetable", "flowavenet", "wavenet", "score-pitch", "score-blackbox"])
def test_weights_under_a_wrong_name(model, monkeypatch, tmp_path):
    raw = weights(model).read_bytes()
    monkeypatch.setenv("SEPNB_ARTIFACTS", str(tmp_path))
    write_whole(weights(model, "saw"), raw)
    with pytest.raises(ValueError, match=f"{model}-saw.safetensors holds weights for source sine, not saw"):
        presets.load_prior(model, "toy", "saw", preset="smoke")


def test_weights_of_another_level_or_seed(monkeypatch, tmp_path):
    raw = weights().read_bytes()
    monkeypatch.setenv("SEPNB_ARTIFACTS", str(tmp_path))
    for sigma, seed, message in ((0.359, 0, "sigma 0.0, not 0.359"), (0.0, 1, "seed 0, not 1")):
        write_whole(presets.weights_path("flowavenet", "toy", "sine", "smoke", sigma, seed), raw)
        with pytest.raises(ValueError, match=message):
            presets.load_prior("flowavenet", "toy", "sine", sigma, "smoke", seed)


def test_damaged_weights_are_named(tmp_path):
    def poison(tensors):
        name = next(k for k, v in tensors.items() if v.is_floating_point())
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = float("nan")
        return tensors

    for model in ("wavetable", "flowavenet"):
        with pytest.raises(ValueError, match=f"{model}-sine.safetensors is damaged: .* contains NaN"):
            into(model, copy_of(weights(model), tmp_path, tensors=poison))
    with pytest.raises(ValueError, match="flowavenet-sine.safetensors is damaged: its header does not say model"):
        into("flowavenet", copy_of(weights(), tmp_path, meta=lambda m: {k: v for k, v in m.items() if k != "model"}))
    def cracked(tensors):
        return tensors | {"edges": tensors["edges"].flip(0)}

    from sepnb.pursuit import pursuit
    from sepnb.training import PriorBank

    path = copy_of(weights("wavetable"), tmp_path, tensors=cracked)
    config, _ = presets.recipe_for("wavetable", "toy", "smoke")
    prior = MODELS["wavetable"].kind(config)
    with pytest.raises(ValueError, match="this is no wavetable"):
        load_weights(prior, path)
        pursuit(torch.ones(1, 64) * 0.1, PriorBank({"a": prior}))
    short = lambda t: {k: v[:1] if k.endswith("first.weight") else v for k, v in t.items()}
    with pytest.raises(ValueError, match="flowavenet-sine.safetensors is damaged: its tensors do not fit FloWaveNet.*first.weight"):
        into("flowavenet", copy_of(weights(), tmp_path, tensors=short))
    for header, message in (("{broken", "its header is no JSON"), (json.dumps([1]), "its header holds list")):
        path = tmp_path / "header.safetensors"
        save_file({"w": torch.zeros(1)}, path, metadata={"sepnb": header})
        with pytest.raises(ValueError, match=f"header.safetensors is damaged: {message}"):
            into("flowavenet", path)


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    write_whole(path, b"old")

    def full(self, content):
        with open(self, "wb") as f:
            f.write(content[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=f"could not write {path}: No space left on device"):
        write_whole(path, b"newer")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_short_run_keeps_checkpoints_on_the_way(tmp_path, artifacts, monkeypatch):
    from sepnb import training

    seen, real = [], training._checkpoint
    monkeypatch.setattr(training, "_checkpoint", lambda *args: (seen.append(args[4]), real(*args)))
    presets.train("flowavenet", "toy", "sine", "smoke", run=tmp_path / "run", progress=False)
    assert len(seen) == 5 and seen[-1] == 150


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_learns_the_same_and_resumes_as_if_undisturbed(tmp_path):
    config = FloWaveNetConfig(blocks=1, flows=1, layers=1, width=4)
    recipe = Recipe(steps=40, batch=2, frame=64, lr=1e-3)
    data = SourceData(ToyData("train", t=64), "sine")

    def run(folder, **options):
        torch.manual_seed(0)
        model = FloWaveNet(config)
        fit(model, nll, data, recipe, run=tmp_path / folder, every=10, progress=False, **options)
        return model

    class Stop(Exception):
        pass

    def stop(step, model):
        if step == 30:
            raise Stop

    plain, compiled = run("plain"), run("compiled", compile_from=0.0)
    with pytest.raises(Stop):
        run("stopped", compile_from=0.0, callback=stop)
    assert load_tensors(tmp_path / "stopped/checkpoint.safetensors")[1]["compiled"], "noted, so that the run goes on with the same rounding"
    again = run("stopped")
    for a, b, c in zip(plain.parameters(), compiled.parameters(), again.parameters()):
        assert torch.allclose(a, b, atol=1e-4) and torch.equal(b, c)
