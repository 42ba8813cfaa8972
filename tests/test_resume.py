"""A run that is killed with SIGKILL and started again ends with the same weights as an undisturbed one."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sepnb.flowavenet import FloWaveNet, FloWaveNetConfig
from sepnb.toy import SourceData, ToyData
from sepnb.store import load_tensors, save_weights
from sepnb.training import Recipe, fit, nll

CONFIG = FloWaveNetConfig(blocks=2, flows=1, layers=1, width=4)
RECIPE = Recipe(steps=40, batch=3, frame=64, lr=1e-3, clip=1.0, ema=0.9)

SCRIPT = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from test_resume import *
# slow enough to be killed in the middle; sleeping changes no random number
run(sys.argv[1], sys.argv[2], callback=lambda step, model: time.sleep(float(sys.argv[3])))
"""


def run(folder, weights, callback=None):
    torch.manual_seed(0)
    model = FloWaveNet(CONFIG)
    fit(model, nll, SourceData(ToyData("train", t=128), "saw"), RECIPE, run=folder, every=4, callback=callback, progress=False)
    save_weights(model, weights, dtype=torch.float32)


def start(folder, weights, pause):
    code = SCRIPT.format(tests=os.path.dirname(__file__))
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(weights), str(pause)])


def test_kill_and_resume(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed.safetensors", tmp_path / "killed.safetensors"
    run(tmp_path / "a", undisturbed)

    process, checkpoint = start(tmp_path / "b", killed, pause=0.5), tmp_path / "b" / "checkpoint.safetensors"
    deadline = time.time() + 120
    while not checkpoint.exists():
        assert process.poll() is None and time.time() < deadline, "the run ended before its first checkpoint"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    step = load_tensors(checkpoint)[1]["step"]
    assert 0 < step < RECIPE.steps

    assert start(tmp_path / "b", killed, pause=0).wait() == 0
    a, b = load_tensors(undisturbed)[0], load_tensors(killed)[0]
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()


def test_truncated_checkpoint_is_refused(tmp_path):
    run(tmp_path / "a", tmp_path / "w.safetensors")
    checkpoint = tmp_path / "a" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="checkpoint.safetensors is truncated"):
        run(tmp_path / "a", tmp_path / "w2.safetensors")


def test_foreign_checkpoint_is_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "a").mkdir()
    save_file({"w": torch.zeros(3)}, tmp_path / "a" / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="not written by sepnb"):
        run(tmp_path / "a", tmp_path / "w.safetensors")


def test_nan_leaves_the_last_good_checkpoint(tmp_path):
    def poisoned(model, x, generator):
        poisoned.calls += 1
        return nll(model, x, generator) * (float("nan") if poisoned.calls > 12 else 1.0)

    poisoned.calls = 0
    model = FloWaveNet(CONFIG)
    with pytest.raises(FloatingPointError, match="at step 11 with learning rate.*checkpoint of step 8 stays"):
        fit(model, poisoned, SourceData(ToyData("train", t=128), "saw"), RECIPE, run=tmp_path, every=4, progress=False)
    tensors, meta = load_tensors(tmp_path / "checkpoint.safetensors")
    assert meta["step"] == 8 and all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point())
    assert not list(tmp_path.glob(".*partial")), "no temporary file is left behind"
