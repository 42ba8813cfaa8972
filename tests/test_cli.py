"""The command line, run as a user runs it."""
import os
import subprocess
import sys

import pytest

from sepnb import cli, presets


def sepnb(*args):
    return subprocess.run([sys.executable, "-m", "sepnb.cli", *args], capture_output=True, text=True, env=os.environ)


def test_help_needs_no_torch():
    code = "import sys, sepnb.cli; assert 'torch' not in sys.modules, 'importing the command line imported torch'"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    out = sepnb("--help")
    assert out.returncode == 0 and "reproduce" in out.stdout


@pytest.mark.parametrize("args, message", [
    (("train", "diffwave", "toy", "sine"), "unknown model 'diffwave'; choose one of dictionary, flowavenet, "),
    (("train", "flowavenet", "jazz", "sine"), "unknown data set 'jazz'; choose one of musdb18, musdb18-songs, "),
    (("train", "flowavenet", "toy", "flute"), "unknown source 'flute'; choose one of sine"),
    (("train", "flowavenet", "toy", "sine", "--preset", "huge"), "unknown preset 'huge'; choose one of smoke"),
    (("reproduce", "fig99"), "unknown experiment 'fig99'; choose one of "),
])
def test_bad_names(args, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sepnb", *args])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    err = capsys.readouterr().err
    assert exit_.value.code == 1 and message in err and "Traceback" not in err


def test_wrong_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sepnb", "train"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2


def test_train_then_load(tmp_path, artifacts, monkeypatch):
    out = sepnb("train", "flowavenet", "toy", "saw", "--run", str(tmp_path / "run"))
    assert out.returncode == 0, out.stderr
    monkeypatch.setenv("SEPNB_PRESET", "smoke")
    prior = presets.load_prior("flowavenet", "toy", "saw")
    assert prior.sample(1, 64).shape == (1, 64)
    with pytest.raises(FileNotFoundError, match="sepnb train flowavenet toy sine --preset smoke"):
        presets.load_prior("flowavenet", "toy", "sine")


def test_weights_of_another_model_are_refused(artifacts):
    path = presets.weights_path("flowavenet", "toy", "sine", "smoke")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a safetensors file at all")
    with pytest.raises(ValueError, match="truncated or is no safetensors file"):
        presets.load_prior("flowavenet", "toy", "sine", preset="smoke")
    config, _ = presets.recipe_for("flowavenet", "toy", "laptop")
    from sepnb.flowavenet import FloWaveNet
    from sepnb.store import save_weights
    save_weights(FloWaveNet(config), path)
    with pytest.raises(ValueError, match="but it was to be loaded into FloWaveNet"):
        presets.load_prior("flowavenet", "toy", "sine", preset="smoke")


def test_two_processes(tmp_path, artifacts):
    "Data-parallel training, as torchrun starts it on several GPUs; here on two CPU processes."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               "-m", "sepnb.cli", "train", "flowavenet", "toy", "sine", "--preset", "smoke"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "ACCELERATE_USE_CPU": "1"})
    assert out.returncode == 0, out.stderr[-3000:]
    prior = presets.load_prior("flowavenet", "toy", "sine", preset="smoke")
    assert all(p.isfinite().all() for p in prior.parameters())
