"""The site: the translation of Quarto's Markdown to MyST, piece by piece, and what must hold of the committed notebooks."""
import ast
import builtins
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "nbs"))
import build_site as site  # noqa: E402

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
CELLS = {p.name: json.loads(p.read_text(encoding="utf-8"))["cells"] for p in NOTEBOOKS}


@pytest.fixture
def page():
    syms = {"sepnb.toy.mix": "sepnb.toy", "sepnb.toy.ToyData": "sepnb.toy", "sepnb.toy.ToyData.batch": "sepnb.toy",
            "sepnb.audio.load": "sepnb.audio", "sepnb.presets.load": "sepnb.presets"}
    page = site.Page("toy", "sepnb.toy", ["04_toy.ipynb", "14_flowavenet.ipynb"], ["frank2020problems", "kim2019flowavenet"], syms)
    for label in ("fig-waves", "tbl-score", "eq-mix"):
        page.number(label)
    return page


@pytest.mark.parametrize("quarto, myst", [
    ("as shown [@frank2020problems]", "as shown {cite:p}`frank2020problems`"),
    ("[@frank2020problems; @kim2019flowavenet]", "{cite:p}`frank2020problems,kim2019flowavenet`"),
    ("[see @kim2019flowavenet, sec. 2]", "{cite:p}`{see}kim2019flowavenet{sec. 2}`"),
    ("@frank2020problems show", "{cite:t}`frank2020problems` show"),
    ("in @fig-waves.", "in [Figure 1](#toy-fig-waves)."),
    ("[@tbl-score]", "[Table 1](#toy-tbl-score)"),
    ("by @eq-mix", "by {eq}`toy-eq-mix`"),
    ("[next](14_flowavenet.ipynb)", "[next](flowavenet.ipynb)"),
    ("[part](14_flowavenet.ipynb#the-flow)", "[part](flowavenet.ipynb#the-flow)"),
    ("`mix` and `toy.mix()`", "{py:obj}`mix <sepnb.toy.mix>` and {py:obj}`toy.mix() <sepnb.toy.mix>`"),
    ("`ToyData.batch`", "{py:obj}`ToyData.batch <sepnb.toy.ToyData.batch>`"),
    ("`batch`, `load`, `x @ y`", "`batch`, `load`, `x @ y`"),  # a method alone, a name of two modules, no name at all
    ("mail a@b.org, $x_@frank$", "mail a@b.org, $x_@frank$"),
    ("```python\n@frank2020problems\n::: {.callout-note}\n```", "```python\n@frank2020problems\n::: {.callout-note}\n```"),
    ("## Mixing {#sec-mixing}", "(toy-sec-mixing)=\n## Mixing"),
    ("$$ m = s $$ {#eq-mix}", "$$ m = s $$ (toy-eq-mix)"),
    (": Scores {#tbl-score}", "\n{#toy-tbl-score .caption}\n**Table 1.** Scores"),
    ("![Two $x$](a.png){#fig-waves}", "```{figure} a.png\n:name: toy-fig-waves\n\n**Figure 1.** Two $x$\n```"),
])
def test_markdown(page, quarto, myst):
    assert site.to_myst(quarto, page) == myst


def test_callouts(page):
    text = '::: {.callout-tip title="Why [@frank2020problems]"}\nInner\n::: {.callout-note collapse="true"}\nDeep\n:::\n:::'
    lines = [line for line in site.to_myst(text, page).split("\n") if line]
    assert lines == [":::::::::::{admonition} Why {cite:p}`frank2020problems`", ":class: tip", "Inner",
                     "::::::::::{admonition} Note", ":class: note dropdown", "Deep", "::::::::::", ":::::::::::"]


@pytest.mark.parametrize("text, message", [
    ("[@nobody1999]", "@nobody1999 is neither"), ("see @fig-none", "@fig-none"), ("[x](99_none.ipynb)", "99_none.ipynb"),
    ("::: {.panel}\nx\n:::", "not a callout"), ("::: {.callout-note}\nx", "not closed"),
])
def test_what_cannot_be_translated_is_named(page, text, message):
    with pytest.raises(site.SiteError, match=re.escape(message)):
        site.to_myst(text, page)


def cell(source, *outputs):
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": list(outputs)}


def shown(**data):
    return {"output_type": "display_data", "metadata": {}, "data": {k.replace("_", "/"): v for k, v in data.items()}}


@pytest.mark.parametrize("option, tag", [("echo: false", "remove-input"), ("output: false", "remove-output"),
                                         ("include: false", "remove-cell"), ("code-fold: true", "hide-input")])
def test_cell_options(page, option, tag):
    c = cell(f"#| {option}\n1 + 1")
    site.code_cell(c, page)
    assert (c["source"], c["metadata"]) == ("1 + 1", {"tags": [tag]})


def test_figures_and_tables(page):
    c = cell('#| label: fig-waves\n#| fig-cap: "Of [@frank2020problems]: $x$"\nplot()', shown(image_png="..."))
    site.code_cell(c, page)
    assert [list(o["data"]) for o in c["outputs"]] == [["image/png"], ["text/markdown"]]
    assert c["outputs"][1]["data"]["text/markdown"] == "{#toy-fig-waves .caption}\n**Figure 1.** Of {cite:p}`frank2020problems`: $x$"
    c = cell("#| label: tbl-score\n#| tbl-cap: Scores\ndf", shown(text_html="<table>"))
    site.code_cell(c, page)
    assert [list(o["data"]) for o in c["outputs"]] == [["text/markdown"], ["text/html"]]
    assert c["outputs"][0]["data"]["text/markdown"] == "{#toy-tbl-score .caption}\n**Table 1.** Scores"
    assert "mystnb" not in c["metadata"]
    c = cell('#| fig-alt: "A line: it rises"\nplot()', shown(image_png="..."), shown(text_markdown=["See @fig-waves\n", "and `mix`."]))
    site.code_cell(c, page)
    assert c["metadata"]["mystnb"]["image"] == {"alt": "A line: it rises"}  # MyST-NB writes it into the <img>
    assert c["outputs"][1]["data"]["text/markdown"] == "See [Figure 1](#toy-fig-waves)\nand {py:obj}`mix <sepnb.toy.mix>`."
    with pytest.raises(site.SiteError, match="fig-capp"):
        site.code_cell(cell("#| fig-capp: x\n1"), page)


def test_progress_bars_are_left_out():
    bar = shown(text_plain="  0%|          | 0/200 [00:00<?, ?it/s]", image_png="...")
    stream = {"output_type": "stream", "name": "stderr", "text": ["100%|###| 3/3 [00:01<00:00, 2.1it/s]\n"]}
    kept = shown(text_plain="5% | of 3/3")
    assert site.no_progress_bars({"cells": [cell("x", bar, stream, kept)]})["cells"][0]["outputs"] == [kept]


def test_exported_code_is_shown():
    nb = {"cells": [cell("#| export\nimport os"), cell("#| export\nA = 1"), cell("#| export\ndef f(): pass"), cell("f()")]}
    sources = [c["source"] for c in site.show_sources(nb)["cells"]]
    assert sources == ["#| export\nimport os", "#| export\nA = 1", "A = 1", "#| export\ndef f(): pass",
                       "#| code-fold: true\n#| code-summary: Source of f\n#| eval: false\ndef f(): pass", "f()"]


def test_api(page):
    page.syms["build_site.page_name"] = "build_site"
    text = site.api_myst("build_site.page_name", page)
    assert "{py:function} page_name(notebook)" in text and "as nbdev names its pages" in text

    class Thing:
        "A thing."
        def f(self, x, # (b, t) of `mix`
              rate:int=3, # Hz
              g=None, dtype=json.dumps): # -> (b,)
            "Does."
        def untold(self): pass
        @property
        def size(self): "How large."
    f = Thing.f
    assert site.signature(f) == "(x, rate=3, g=None, dtype=dumps)" and site.returned(f) == "Returns (b,)."
    assert list(site.members("Thing", Thing)) == ["Thing", "Thing.f", "Thing.size"] and site.signature(Thing.size) == ""
    text = site.described(f, lambda text: site.to_quarto(text, page))
    assert "| `x`  | (b, t) of [`mix`](toy.html#sepnb.toy.mix) |\n| `rate` *int* | Hz |\n" in text and "NoneType" not in text


def test_page_names():
    assert [site.page_name(n) for n in ("index.ipynb", "00_audio.ipynb", "17a_style_transfer.ipynb")] == ["index", "audio", "style_transfer"]


# --- the repository ------------------------------------------------------------------------------------------

def test_sidebar_lists_the_notebooks():
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    listed = [nb for _, notebooks in site.sidebar(config) for nb in notebooks]
    assert sorted(listed) == [p.name for p in NOTEBOOKS], "_quarto.yml must list every notebook in nbs/, once"
    assert set(config["format"]) == {"html"}, "a second format renders every page and copies every figure twice"


def test_notebooks_translate(monkeypatch):
    monkeypatch.chdir(ROOT)  # where nbdev looks for settings.ini
    site.convert_all(ROOT / "nbs", [p.name for p in NOTEBOOKS])


def test_quarto_documentation(monkeypatch):
    "What Quarto is given: names documented in the order of the source, clean signatures, and every link to a name has its anchor"
    monkeypatch.chdir(ROOT)
    anchors, links = set(), set()
    for nb, page in site.make_pages([p.name for p in NOTEBOOKS]).items():
        done = site.read_nb(ROOT / "nbs" / nb)
        site.for_quarto(done, page)
        docs = {site.documented(c, page): "".join(site.markdown_in(c)[0]["text/markdown"]) for c in done.cells if site.documented(c, page)}
        lines = [int(re.search(r"\.py#L(\d+)", text)[1]) for text in docs.values()]
        assert lines == sorted(lines), f"{nb} does not document {list(docs)} in the order of their source"
        signatures = [code for text in docs.values() for code in re.findall(r"^```python\n(.*?)\n```", text, re.S | re.M)]
        assert not [s for s in signatures if "](" in s or "NoneType" in s]
        anchors |= {f"{page.name}.html#{a}" for text in docs.values() for a in re.findall(r"^###.* \{#(.*)\}$", text, re.M)}
        links |= set(re.findall(r"`\]\((\w+\.html#[\w.]+)\)", "\n".join([*docs.values(), *(c["source"] for c in done.cells)])))
    assert {"wavetable.html#sepnb.wavetable.Table.learned", "training.html#sepnb.training.PriorBank.cross_log_prob"} <= links
    assert not links - anchors


FILTER = """
import sys
from execnb.nbio import read_nb
from nbdev.processors import FilterDefaults
for path in sys.argv[1:]:
    nb = read_nb(path)
    nb.metadata.pop("widgets", None)  # nbdev cannot read a jslink in it
    try:
        FilterDefaults()(nb)
    except Exception as error:
        print(f"FAILED {path}: {error} {error.__cause__!r}\\n")
"""


def test_nbdev_can_filter_a_notebook():
    "What `nbdev_docs` and `nbdev_preview` do to each"
    command = [sys.executable, "-W", "ignore", "-c", FILTER, "nbs/00_audio.ipynb", "nbs/97_landscape.ipynb"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"IN_TEST": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_imports_stand_alone(path):
    "nbdev runs the cells that hold an import, and no others but exported ones: they may use what such cells define, and nothing else"
    known = {*vars(builtins), "__name__", "__file__"}
    for cell in CELLS[path.name]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.startswith("%") or "#| eval: false" in source:
            continue
        nodes = list(ast.walk(ast.parse(source)))
        exported = re.match(r"#\|\s*exporti?\b", source)
        if not exported and not any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes):
            continue
        known |= {(a.asname or a.name).partition(".")[0] for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        known |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler))} | {n.arg for n in nodes if isinstance(n, ast.arg)}
        known |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        missing = {n.id for n in nodes if isinstance(n, ast.Name)} - known
        assert exported or not missing, f"put the import into a cell of its own; {sorted(missing)} is not there yet:\n{source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_figures(path):
    "A labelled cell shows one thing (of two, Quarto makes sub-figures without captions), and every picture is described in words"
    code = [("".join(c["source"]), c["outputs"]) for c in CELLS[path.name] if c["cell_type"] == "code"]
    seen = [(source, [o["data"] for o in outputs if o["output_type"] in ("display_data", "execute_result")]) for source, outputs in code]
    many = [source for source, shown in seen if "label" in site.options(source)[0] and len(shown) > 1]
    assert not many, f"a labelled cell has one output; give the others a cell of their own:\n{many[0]}"
    dumb = [source for source, shown in seen if any("image/png" in data for data in shown) and not site.options(source)[0].get("fig-alt")]
    dumb += [source for source, _ in seen if site.options(source)[0].get("label", "").startswith("fig-") and not site.options(source)[0].get("fig-alt")]
    assert not dumb, f"say what is seen in a line '#| fig-alt: \"...\"':\n{dumb[0]}"


def test_quarto_configuration_is_linked():
    link = ROOT / "nbs" / "_quarto.yml"
    assert link.is_symlink() and link.readlink() == Path("../_quarto.yml")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_committed_outputs_are_clean(path):
    outputs = [o for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"], "holds an error: run it from top to bottom"
    text = json.dumps([{k: v for k, v in o.get("data", {}).items() if k.startswith("text/")} | {"text": o.get("text")} for o in outputs])
    found = re.search(r"(?<![\w:/.])/(?:home|root|work|tmp|Users|opt|var)/[^\s\"\\]*", text)
    assert not found, f"an output holds the path {found[0]} of the machine it ran on"
    assert path.stat().st_size < 2.5e6, "larger than 2.5 MB: shorten its sounds, or lower the dpi of its figures"
