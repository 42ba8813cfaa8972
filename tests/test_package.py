"""What is installed: a wheel that separates a recording in an empty folder, offline, with nothing but what separation needs."""
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from sepnb import audio, toy

ROOT = Path(__file__).resolve().parent.parent
# of the research requirements, as they are imported
MORE = ("accelerate", "matplotlib", "PIL", "ipywidgets", "IPython", "museval", "musdb", "torchdiffeq", "nbdev", "fastcore")


@pytest.fixture(scope="module")
def built(tmp_path_factory): # a copy, because building writes into the tree
    import shutil

    tree = tmp_path_factory.mktemp("tree") / "sepnb"
    skip = shutil.ignore_patterns(".git", ".venv", "_build", "_site", "runs", "nbs", "tests", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=skip)
    run = lambda *args: subprocess.run([sys.executable, "setup.py", "-q", *args], cwd=tree, capture_output=True, text=True, check=True)
    run("sdist"), run("bdist_wheel")
    return tree / "dist"


def test_an_installed_package_separates(built, tmp_path):
    wheel, = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()
    audio.save(empty / "mix.wav", toy.mix(toy.ToyData("test").batch([9]))[0])
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); sys.modules.update(dict.fromkeys({MORE!r})); from sepnb import cli; cli.main()"
    done = subprocess.run([sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", code, "separate", "mix.wav"], cwd=empty, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if not k.startswith(("SEPNB_", "PYTHONPATH"))})
    assert done.returncode == 0 and "nothing speaks against the stems" in done.stdout, done.stderr[-2000:]
    assert sorted(p.name for p in (empty / "stems").iterdir()) == ["saw.wav", "sine.wav", "square.wav", "triangle.wav"]


def test_the_source_distribution_is_complete(built):
    source, = built.glob("*.tar.gz")
    names = {n.split("/", 1)[1] for n in tarfile.open(source).getnames() if "/" in n}
    assert {"settings.ini", "setup.py", "README.md", "LICENSE", "sepnb/wavetable.py", "artifacts/weights/laptop/toy/wavetable-saw.safetensors"} <= names


@pytest.mark.parametrize("module", ["quantize", "toy", "wavetable", "recordings", "presets"])
def test_no_plotting_is_loaded_where_nothing_is_drawn(module):
    code = f"import sys, sepnb.{module}; assert not {{'matplotlib', 'IPython', 'ipywidgets'}} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
