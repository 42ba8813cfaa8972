"""How the house is built: a new model and a new data set touch no other notebook, imports go to the left, and what is listed comes from the registries."""
import ast
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from sepnb import cli, samplers, separation, store
from sepnb.registry import DATA, EXPERIMENTS, MODELS, PRESET_NAMES, DataSet, Model
from sepnb.training import Prior, Recipe

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))}
EXPORTED = {stem: [s for c in nb["cells"] if c["cell_type"] == "code" and re.search(r"^#\| export", s := "".join(c["source"]), re.M)] for stem, nb in NOTEBOOKS.items()}
MODULES = {stem.split("_", 1)[1]: stem for stem in NOTEBOOKS}


# ---- a data set and a model that nothing knows of

@dataclass(frozen=True)
class LevelConfig:
    log_scale: float = -1.0


class Level(Prior):
    "Independent Gaussian samples with one learned scale: all it can know of a source is how loud it is."

    def __init__(self, config=LevelConfig()):
        super().__init__(config)
        self.log_scale = torch.nn.Parameter(torch.tensor(config.log_scale))

    def log_prob(self, x, sigma=None):
        return torch.distributions.Normal(0.0, self.log_scale.exp()).log_prob(x).sum(-1)

    def sample(self, n, t, generator=None):
        return self.log_scale.exp() * torch.randn(n, t, generator=generator)


class Hum:
    "Two noises, a loud one and a soft one."

    def __init__(self, split, t=16000, seed=0):
        self.t, self.seed = t, 1000 * seed + ("train", "valid", "test").index(split)

    def __len__(self):
        return 60

    def batch(self, indices):
        noise = lambda i: torch.randn(2, self.t, generator=torch.Generator().manual_seed(100 * self.seed + int(i)))
        return torch.stack([noise(i) for i in indices]) * torch.tensor([[0.3], [0.03]])

    def __getitem__(self, i):
        return self.batch([i])[0]


class OneHum(torch.utils.data.Dataset):
    def __init__(self, items, source):
        self.items, self.k = items, ("loud", "soft").index(source)

    def __len__(self):
        return len(self.items)

    def batch(self, indices):
        return self.items.batch(indices)[:, self.k]

    def __getitem__(self, i):
        return self.batch([i])[0]


@pytest.fixture
def newcomers(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPNB_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DATA, "hum", DataSet(("loud", "soft"), Hum, OneHum, summed=True))
    monkeypatch.setitem(MODELS, "level", Model(Level, {p: (LevelConfig(), Recipe(steps=60, batch=4, frame=256, lr=0.1)) for p in PRESET_NAMES}))
    monkeypatch.setitem(separation.ROWS, "projection-level", separation.Row(samplers.projection, "level", 1024, tried=({"sigmas": (0.3, 0.1, 0.03)},), data=("hum",)))


def test_a_new_model_and_a_new_data_set_touch_no_other_notebook(newcomers, tmp_path):
    run = lambda *args: CliRunner().invoke(cli.app, list(args), catch_exceptions=False)
    listed = run("list").output
    assert "level" in listed and "hum: loud, soft" in listed and "fig3-hum-level" in listed and "separation-hum-projection-level" in listed
    assert run("train", "level", "hum", "all", "--preset", "smoke").exit_code == 0
    assert run("reproduce", "fig3-hum-level", "--preset", "smoke").exit_code == 0
    frame, info = store.result("fig3-hum-level", "smoke")
    best = frame.loc[frame.groupby(["item", "source"]).log_prob.idxmax()]
    assert (best.source == best.prior).mean() > 0.95, "a loud noise is told from a soft one"
    assert info["weights"].keys() == {"hum/level-loud", "hum/level-soft"} and not store.changed(info)
    assert run("reproduce", "separation-hum-projection-level", "--preset", "smoke").exit_code == 0
    rows, info = store.result("separation-hum-projection-level", "smoke")
    assert set(rows.source) == {"loud", "soft"} and math.isfinite(rows.si_sdri.mean()) and info["data"].startswith("hum test set")
    with pytest.raises(ValueError, match="unknown source 'sine'; choose one of loud, soft"):
        run("train", "level", "hum", "sine", "--preset", "smoke")


def test_no_other_combination_is_offered(newcomers):
    names = EXPERIMENTS.everything()
    assert "separation-toy-projection-level" not in names and "separation-hum-formulas" not in names and "separation-hum-pursuit" in names


# ---- the notebooks

def test_modules_import_from_their_left():
    for stem, cells in EXPORTED.items():
        for node in ast.walk(ast.parse("\n\n".join(cells))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sepnb"):
                names = [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]
                for name in names:
                    assert MODULES.get(name, "00") < stem or stem == "99_cli", f"{stem} imports {name}, which stands to its right"


def test_names_live_in_one_module():
    "A name is imported from where it is defined, not from a module that happens to import it."
    top = lambda tree: {t for n in tree.body for t in ([n.name] if isinstance(n, (ast.FunctionDef, ast.ClassDef)) else
           [e.id for target in n.targets for e in (getattr(target, "elts", None) or [target]) if isinstance(e, ast.Name)] if isinstance(n, ast.Assign) else [])}
    trees = {stem.split("_", 1)[1]: ast.parse("\n\n".join(cells)) for stem, cells in EXPORTED.items()}
    for here, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sepnb."):
                home = node.module.split(".")[1]
                for a in node.names:
                    assert a.name in top(trees[home]), f"{here} imports {a.name} from {home}, which does not define it"


def test_imports_are_used():
    for stem, cells in EXPORTED.items():
        tree = ast.parse("\n\n".join(cells))
        imported = {(a.asname or a.name).split(".")[0] for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert imported <= used, f"{stem}: {sorted(imported - used)}"


def test_the_sidebar_has_every_notebook_in_order():
    sections = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    listed = [n for s in sections for n in s["contents"]]
    assert listed == ["index.ipynb", *(f"{stem}.ipynb" for stem in NOTEBOOKS), "references.ipynb"]


def test_nothing_but_the_classes_knows_a_model():
    "The code that trains and loads by name, and that stores, has no model's name in it."
    for stem in ("02_registry", "03_store", "10_training", "19_presets", "99_cli"):
        code = "\n".join(EXPORTED[stem])
        for model in MODELS:
            assert f'"{model}"' not in code, f"{stem} knows {model}"
        assert '"toy"' not in re.sub(r'data:str="toy"|= "toy"', "", code), f"{stem} knows a data set"


def test_networks_on_another_device_give_the_same_results(monkeypatch):
    """Networks live on a GPU, waveforms stay on the CPU. A second precision plays the second device: networks are in float64 and what enters
    and leaves them is taken there and back by the very function that would take it to a GPU; what it misses ends in an error of torch."""
    from sepnb import langevin, presets, training

    for name in [n for n in langevin.METHODS if n not in ("BASIS, fine-tuned", "PnF, WaveNet")]:
        monkeypatch.delitem(langevin.METHODS, name)  # two of them, one of each kind of prior, are enough here
    plain = {name: EXPERIMENTS[name]("smoke") for name in ("fig3-toy-flowavenet", "separation-toy-coordinate-blackbox", "langevin-choice")}
    kinds = []

    def moved(v, like):
        if isinstance(v, (tuple, list, dict)):
            return original(v, like)
        kinds.append(like.dtype)
        return v.to(like.dtype) if torch.is_tensor(v) and v.is_floating_point() else v

    original, load = training._moved, presets.load_prior

    def far(*args, **kwargs):
        prior = load(*args, **kwargs)
        return prior.double() if next(prior.parameters(), None) is not None else prior

    monkeypatch.setattr(training, "_moved", moved)
    monkeypatch.setattr(presets, "load_prior", far)
    for name, was in plain.items():
        kinds.clear()
        ours = EXPERIMENTS[name]("smoke")
        assert {torch.float32, torch.float64} <= {*kinds}, "the networks were elsewhere"
        numbers = ours.select_dtypes("number").drop(columns="seconds", errors="ignore")
        assert len(ours) == len(was) and (numbers - was[numbers.columns]).abs().median().max() < 0.5, name


def test_what_builds_on_a_result_takes_the_one_of_this_process(artifacts, monkeypatch):
    monkeypatch.setenv("SEPNB_PRESET", "smoke")
    asked = []
    monkeypatch.setitem(EXPERIMENTS, "once", lambda preset: asked.append(preset) or pd.DataFrame(dict(x=[1])))
    with pytest.raises(FileNotFoundError, match="no stored result 'once'"):
        store.result("once", "smoke")
    store.result("once")
    frame, info = store.result("once", "smoke")
    assert asked == ["smoke"] and frame.x.tolist() == [1] and info["preset"] == "smoke"
