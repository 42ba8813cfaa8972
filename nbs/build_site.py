"""Builds `_site/`: run every notebook of the sidebar, then render with Quarto, or with Sphinx where Quarto is missing.

    python nbs/build_site.py [--stored] [--js FOLDER]

Notebooks are written in the Markdown that Quarto and nbdev read. For Sphinx this file translates the subset that
they use (callouts, citations, labels, cell options) to MyST, and says clearly where a notebook leaves that subset.
Both renderers show the same pages under the same names: `nbs/00_audio.ipynb` is `audio.html`.
"""
import argparse
import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import yaml
from execnb.nbio import nb2dict, read_nb
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_links, add_show_docs, exec_show_docs, insert_warning

ROOT = Path(__file__).resolve().parent.parent
NBS, BUILD, SITE = ROOT / "nbs", ROOT / "_build", ROOT / "_site"
CALLOUTS = ("note", "tip", "warning", "important", "caution")
KINDS = {"fig": "Figure", "tbl": "Table", "sec": "Section", "eq": "Equation"}
# cell option and value -> the MyST-NB tag that does the same
TAGS = {("echo", "false"): "remove-input", ("output", "false"): "remove-output", ("include", "false"): "remove-cell",
        ("code-fold", "true"): "hide-input", ("code-fold", "show"): "hide-input"}
KNOWN = {"echo", "output", "include", "code-fold", "code-summary", "label", "fig-cap", "tbl-cap", "fig-alt",
         "eval", "warning", "error", "fig-width", "fig-height"}


class SiteError(Exception):
    "A notebook or the sidebar asks for something that cannot be built; the message says where and what."


# --- the sidebar ---------------------------------------------------------------------------------------------

def page_name(notebook):
    "`00_audio.ipynb` -> `audio`, as nbdev names its pages"
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", Path(notebook).stem)


def sidebar(config):
    "[(section title, [notebook, ...]), ...] of a parsed `_quarto.yml`"
    sections = config["website"]["sidebar"]["contents"]
    return [(s["section"], s["contents"]) for s in sections]


def read_config():
    "The parsed `_quarto.yml`, after a check that its notebooks exist"
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    listed = [nb for _, nbs in sidebar(config) for nb in nbs]
    missing = [nb for nb in listed if not (NBS / nb).exists()]
    if missing:
        raise SiteError(f"_quarto.yml lists {', '.join(missing)}, not found in nbs/")
    if "index.ipynb" not in listed:
        raise SiteError("_quarto.yml must list index.ipynb, the front page")
    return config, listed


# --- running the notebooks -----------------------------------------------------------------------------------

def execute(path):
    "Run one notebook in place; return (name, None or what went wrong)"
    env = {k: v for k, v in os.environ.items() if k != "SEPNB_PRESET"}  # unset: notebooks show stored results
    env["OMP_NUM_THREADS"] = "1"  # two notebooks run at once
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace",
               "--log-level", "WARN", "--ExecutePreprocessor.timeout=1200", path.name]
    done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True)
    print(f"  {'ok    ' if done.returncode == 0 else 'FAILED'} {path.name}", flush=True)
    if done.returncode == 0:
        return path.name, None
    return path.name, re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)[-3000:]  # without terminal colours


def run_notebooks(listed, stored=False):
    "Copy nbs/ to a build folder and run the listed notebooks there, so that committed outputs stay as they are"
    work = BUILD / "nbs"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(NBS, work, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.py", "nbdev.yml"))
    if not stored:
        print("running the notebooks", flush=True)
        with ThreadPoolExecutor(2) as pool:
            failed = [(n, e) for n, e in pool.map(execute, [work / nb for nb in listed]) if e]
        if failed:
            raise SiteError("\n\n".join(f"nbs/{n} failed:\n{e}" for n, e in failed))
    for path in work.glob("*.ipynb"):
        nb = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(show_sources(no_progress_bars(nb))), encoding="utf-8")
    return work


def no_progress_bars(nb):
    "A finished progress bar says nothing to a reader"
    def is_bar(output):
        text = output.get("text") if output.get("name") == "stderr" else output.get("data", {}).get("text/plain", "")
        return re.search(r"\d+%\|.*\d+/\d+ \[", "".join(text or ""))

    for cell in nb["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if not is_bar(output)]
    return nb


def show_sources(nb):
    "nbdev replaces an exported cell by its documentation; here the code is part of the story, so a copy follows it"
    cells = []
    for cell in nb["cells"]:
        cells.append(cell)
        source = "".join(cell["source"])
        code = re.sub(r"^#\|\s*export\s*$\n?", "", source, count=1, flags=re.M)
        if cell["cell_type"] != "code" or code == source:
            continue
        nodes = ast.parse(code).body
        names = [node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        if names:
            code = f"#| code-fold: true\n#| code-summary: Source of {', '.join(names)}\n#| eval: false\n" + code
        elif all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes):
            continue
        cells.append({**cell, "id": cell.get("id", "cell") + "s", "source": code})
    return {**nb, "cells": cells}


# --- Quarto Markdown -> MyST ---------------------------------------------------------------------------------

class Page:
    "What the translation of one page needs to know: its names, its numbered labels, the keys that may be cited"

    def __init__(self, name="page", module=None, pages=(), keys=(), syms=None):
        self.name, self.module, self.keys, self.syms = name, module, set(keys), syms or {}
        self.pages = {nb: page_name(nb) for nb in pages}
        self.labels = {}  # "fig-x" -> "Figure 1"

    def number(self, label, title=None):
        "Give a label its number on this page: figures and tables count from 1 on each page, as in Quarto"
        kind = label.split("-")[0]
        n = 1 + sum(known.startswith(kind + "-") for known in self.labels)
        if label in self.labels:
            raise SiteError(f"{self.name}: the label {label} is used twice")
        self.labels[label] = title or f"{KINDS[kind]} {n}"

    def ref(self, label):
        if label not in self.labels:
            raise SiteError(f"{self.name}: @{label} refers to a label that this notebook does not have")
        target = f"{self.name}-{label}"
        return f"{{eq}}`{target}`" if label.startswith("eq-") else f"[{self.labels[label]}](#{target})"

    def href(self, full):
        "Where a full name is documented; Sphinx gives it the same anchor (nbdev's `#squeeze` would be that of a section, too)"
        return f"{self.syms[full].removeprefix('sepnb.')}.html#{full}"

    def symbol(self, name):
        "The full name of a documented function, class or method written as `name`, `module.name` or in full"
        found = [full for full, module in self.syms.items()
                 if name in (full, full.removeprefix("sepnb."), full.removeprefix(module + "."))]
        found = [full for full in found if self.syms[full] == self.module] or found
        return found[0] if len(found) == 1 else None


# Nothing is translated inside these: fenced code, math, inline code, HTML comments
PROTECTED = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)\s*?$|\$\$.*?\$\$|`[^`\n]+`|(?<![\\\w])\$[^$\n]+\$|<!--.*?-->)", re.S | re.M)
LABEL = r"(?:fig|tbl|sec|eq)-[\w-]+"


def find_labels(text, page):
    "Number the labels that stand in the Markdown itself: headings, equations, images, tables"
    for title, label in re.findall(r"^#+\s+(.*?)\s*\{#(sec-[\w-]+)\}", text, re.M):
        page.number(label, title)
    for label in re.findall(r"(?:\$\$|\)|^:.*)\s*\{#((?:fig|tbl|eq)-[\w-]+)\}", text, re.M):
        page.number(label)


def callouts(text, page):
    "`::: {.callout-note title=\"...\"}` ... `:::` -> a MyST admonition"
    out, depth, fence, lines = [], 0, False, iter(text.split("\n"))
    for line in lines:
        if re.match(r"\s*(```|~~~)", line):
            fence = not fence
        opened = None if fence else re.match(r":::+\s*\{(.*)\}\s*$", line)
        if opened:
            depth += 1
            kind = re.search(r"\.callout-(\w+)", opened[1])
            if opened[1].strip() == "#refs":
                out.append(":" * (12 - depth) + "{bibliography}\n:all:")
                continue
            if not kind or kind[1] not in CALLOUTS:
                raise SiteError(f"{page.name}: '{line}' is not a callout; known are {', '.join(CALLOUTS)}")
            title = re.search(r'title="([^"]*)"', opened[1])
            title = title[1] if title else kind[1].capitalize()
            folded = " dropdown" if 'collapse="true"' in opened[1] else ""
            out.append(":" * (12 - depth) + f"{{admonition}} {title}\n:class: {kind[1]}{folded}\n")
        elif not fence and re.match(r":::+\s*$", line) and depth:
            out.append(":" * (12 - depth))
            depth -= 1
        else:
            out.append(line)
    if depth:
        raise SiteError(f"{page.name}: a ':::' block is not closed in its own cell")
    return "\n".join(out)


def html_links(text):
    "`href=\"toy.html#fig-shapes\"`, Quarto's address of a label, as Sphinx has it"
    return re.sub(rf'href="([\w-]+)\.html#({LABEL})"', r'href="\1.html#\1-\2"', text)


def one_citation(item, page):
    "`@key` or `see @key, sec. 2` -> the form sphinxcontrib-bibtex reads"
    before, key, after = re.match(r"\s*(.*?)\s*@([\w:.-]*\w)\s*(.*?)\s*$", item, re.S).groups()
    if key not in page.keys:
        raise SiteError(f"{page.name}: @{key} is neither a key in nbs/references.bib nor a label")
    after = after.lstrip(", ")
    return (f"{{{before}}}" if before else "") + key + (f"{{{after}}}" if after else "")


def inline(text, page):
    "Citations, references and links between notebooks, in text that is neither code nor math"
    def bracketed(m):
        if re.fullmatch(rf"@{LABEL}", m[1]):
            return page.ref(m[1][1:])
        return "{cite:p}`" + ",".join(one_citation(item, page) for item in m[1].split(";")) + "`"

    def bare(m):
        return page.ref(m[1]) if re.fullmatch(LABEL, m[1]) else "{cite:t}`" + one_citation("@" + m[1], page) + "`"

    def link(m):
        if m[1] not in page.pages:
            raise SiteError(f"{page.name}: links to {m[1]}, which the sidebar in _quarto.yml does not list")
        if m[2] and re.fullmatch(LABEL, m[2][1:]):  # a label of another page: in Sphinx one name among those of all pages
            return f"](#{page.pages[m[1]]}-{m[2][1:]})"
        return f"]({page.pages[m[1]]}.ipynb{m[2] or ''})"

    text = re.sub(r"\[([^\[\]]*(?<![\w.])@[^\[\]]+)\](?![(\[])", bracketed, text)
    text = re.sub(r"(?<![\w`/.@\\])@([A-Za-z][\w:-]*\w)", bare, text)
    return re.sub(r"\]\(([\w.-]+\.ipynb)(#[\w-]+)?\)", link, text)


def to_myst(text, page):
    "One Markdown cell, from Quarto's Markdown to MyST"
    text = callouts(text, page)
    text = re.sub(rf"^(#+\s+.*?)\s*\{{#({LABEL})\}}\s*$", rf"({page.name}-\2)=\n\1", text, flags=re.M)
    text = re.sub(r"\$\$\s*\{#(eq-[\w-]+)\}", rf"$$ ({page.name}-\1)", text)
    text = re.sub(r"^!\[(.*)\]\((\S+)\)\{#(fig-[\w-]+)\}\s*$",
                  lambda m: f"```{{figure}} {m[2]}\n:name: {page.name}-{m[3]}\n\n{caption(m[3], m[1], page)}\n```", text, flags=re.M)
    text = re.sub(r"^:\s+(.*?)\s*\{#(tbl-[\w-]+)\}\s*$",
                  lambda m: f"\n{{#{page.name}-{m[2]} .caption}}\n{caption(m[2], m[1], page)}", text, flags=re.M)
    return link_names(text, page, "{{py:obj}}`{name} <{full}>`", lambda part: inline(part, page))


def to_quarto(text, page):
    "One Markdown text as Quarto reads it: the names of what is documented become links"
    return link_names(text, page, "[`{name}`]({href})")


def link_names(text, page, link, prose=str):
    "Fill the template `link` for inline code that names something documented; `prose` translates what is neither code nor math"
    parts = PROTECTED.split(text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = prose(part)
        elif part.startswith("`") and not part.startswith("```") and not parts[i - 1].rpartition("\n")[2].startswith("#"):
            name = part.strip("`")
            linked = parts[i - 1].endswith(("[", "}"))  # a link's own text, or a MyST role
            full = None if linked else page.symbol(name.removesuffix("()"))
            parts[i] = link.format(name=name, full=full, href=page.href(full)) if full else part
    return "".join(parts)


def caption(label, text, page):
    return f"**{page.labels[label]}.** {text}"


# --- API documentation ---------------------------------------------------------------------------------------

def signature(obj):
    "`(x, rate=16000, config=Config())`: no annotations, and defaults in their short form"
    if isinstance(obj, property):
        return ""
    try:
        sig = inspect.signature(obj)
    except (TypeError, ValueError):
        return "()"
    params = []
    for p in sig.parameters.values():
        if p.name == "self":
            continue
        default = p.default
        if default is not p.empty and not isinstance(default, (int, float, str, bool, tuple, list, type(None))):
            short = repr(default) if re.fullmatch(r"[\w.]+", repr(default)) else f"{type(default).__name__}()"
            default = getattr(default, "__name__", short)
            p = p.replace(default=type("shown", (), {"__repr__": lambda _, d=default: d})())
        params.append(p.replace(annotation=p.empty))
    return str(sig.replace(parameters=params, return_annotation=sig.empty))


def type_name(annotation):
    if annotation in (inspect.Parameter.empty, None, type(None)):
        return ""
    return "*" + str(getattr(annotation, "__name__", None) or annotation).replace("|", "\\|") + "*"


def find(full):
    "(module, name in it, object) of a full name"
    module, _, name = full.rpartition(".")
    try:
        return module, name, getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:  # a method: the last part but one is its class
        module, _, cls = module.rpartition(".")
        return module, f"{cls}.{name}", getattr(getattr(importlib.import_module(module), cls), name)


def members(name, obj):
    "{name: object}: what is documented with an object, that is itself and the public methods of a class that say what they do"
    inside = vars(obj).items() if inspect.isclass(obj) else ()
    # a function that is the default of a field is no method
    own = lambda v: isinstance(v, property) or (inspect.isfunction(v) and v.__qualname__.startswith(f"{obj.__qualname__}."))
    return {name: obj} | {f"{name}.{k}": v for k, v in inside if not k.startswith("_") and own(v) and (v.__doc__ or returned(v))}


def names():
    "{full name: module} of everything that the pages document"
    scope = {}
    exec((ROOT / "sepnb" / "_modidx.py").read_text(encoding="utf-8"), scope)
    found = {}
    for module, listed in scope["d"]["syms"].items():
        for full in listed:
            first, *method = full.removeprefix(module + ".").split(".")
            if not first.startswith("_") and (not method or f"{first}.{method[0]}" in members(first, find(f"{module}.{first}")[2])):
                found[full] = module
    return found


def described(obj, text):
    "Docstring, table of documented parameters and what is returned, in Markdown that `text` translates"
    from fastcore.docments import docments
    rows, result = [], returned(obj)
    for param, doc in docments(obj, full=True, returns=False).items() if not isinstance(obj, property) else ():
        before, arrow, after = (doc.docment or "").replace("\n", " ").rpartition("->")
        if arrow and after.strip() in result:  # what is returned is said below
            said = "" if result.startswith("Takes") else before
        else:
            said = before + arrow + after
        if param != "self" and said.strip():
            rows.append(f"| `{param}` {type_name(doc.anno)} | " + re.sub(r"(?<!\\)\|", r"\\|", text(said.strip())) + " |")
    table = "\n".join(["| parameter | |", "|---|---|", *rows]) if rows else ""
    return "\n\n".join(filter(None, [text(inspect.cleandoc(obj.__doc__ or "")), table, result]))


def api_myst(full, page):
    "What `show_doc` shows, in the form Sphinx indexes: signature, docstring, documented parameters; methods inside their class"
    module, name, obj = find(full)
    out = []
    for called, member in members(name, obj).items():
        kind = ("class" if inspect.isclass(member) else "property" if isinstance(member, property)
                else "method" if "." in called else "function")
        text = described(member, lambda text: to_myst(text, page))
        if called == name:
            out += [f"::::::{{py:{kind}}} {name}{signature(member)}", f":module: {module}", "", text, ""]
        else:
            out += [f":::::{{py:{kind}}} {called.rpartition('.')[2]}{signature(member)}", "", text, ":::::", ""]
    return "\n".join([*out, "::::::"])


def api_quarto(full, page):
    "The same for Quarto: a heading, with the anchor that links lead to, for each function, class and method"
    module, name, obj = find(full)
    source, out = f"{get_config().git_url}/blob/{get_config().branch}/{module.replace('.', '/')}.py", []
    for called, member in members(name, obj).items():
        line = inspect.getsourcelines(inspect.unwrap(getattr(member, "fget", member)))[1]
        out += [f"{'###' if called == name else '####'} {called} {{#{module}.{called}}}", "",
                f'[source]({source}#L{line}){{target="_blank" style="float:right; font-size:smaller"}}', "",
                "```python", f"{called}{signature(member)}", "```", "", described(member, lambda text: to_quarto(text, page)), ""]
    return "\n".join(out)


def returned(obj):
    "What the comment on the last line of a signature says: `): # -> (b, t)`, or `def f(x): # (b, t) -> (b,)`"
    if not inspect.isfunction(obj):
        return ""
    end = re.search(r"^[^#\n]*\)\s*(?:->[^#\n]*)?:[ \t]*(?:#[ \t]*(.*?)->[ \t]*(.*?))?[ \t]*$", inspect.getsource(obj), re.M)
    if not end or end[2] is None:
        return ""
    # only where the whole signature is one line is the comment about what goes in; else it is about the last parameter
    whole = end[1].strip() and end[0].lstrip().startswith(("def ", "async def "))
    return f"Takes {end[1].strip()}, returns {end[2]}." if whole else f"Returns {end[2]}."


# --- notebooks, as nbdev processes them, for Quarto -----------------------------------------------------------

class in_order(Processor):
    "nbdev documents the names of one cell last to first: turn each run of `show_doc` cells that it added"
    def begin(self):
        runs = [list(run)[::-1] if added else list(run) for added, run in groupby(self.nb.cells, lambda c: bool(c.get("has_sd")))]
        self.nb.cells = [cell for run in runs for cell in run]


class Filter(FilterDefaults):
    """nbdev's processors, but for those that run cells (an error where a cell needs another one) and that link names.

    Both is done below from the package itself, the same for both renderers."""

    def base_procs(self):
        kept = [p for p in super().base_procs() if p not in (add_links, exec_show_docs, insert_warning)]
        return [q for p in kept for q in ((p, in_order) if p is add_show_docs else (p,))]

    def __call__(self, nb):
        widgets = nb.metadata.pop("widgets", None)  # nbdev cannot read a jslink in it
        super().__call__(nb)
        if widgets:
            nb.metadata["widgets"] = widgets


def documented(cell, page):
    "The full name of what a `show_doc` cell shows; None for other cells"
    call = re.search(r"^show_doc\(([\w.]+)", cell["source"], re.M) if cell["cell_type"] == "code" else None
    if call and not page.symbol(call[1]):
        raise SiteError(f"{page.name}: {call[1]} is not in sepnb/_modidx.py; run nbdev_export")
    return call and page.symbol(call[1])


def for_quarto(nb, page):
    "Process a notebook in place, as nbdev does for Quarto"
    Filter()(nb)
    for cell in nb.cells:
        full = documented(cell, page)
        if full:
            cell["outputs"] = [shown(api_quarto(full, page))]
        elif cell["cell_type"] == "markdown":
            cell["source"] = to_quarto(cell["source"], page)
        for data in markdown_in(cell) if not full else ():
            data["text/markdown"] = to_quarto("".join(data["text/markdown"]), page)


def markdown_in(cell):
    "The data of those outputs of a cell that are Markdown"
    return [o["data"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})]


def shown(text):
    return {"output_type": "display_data", "metadata": {}, "data": {"text/markdown": text}}


def allow_jslink():
    "execnb splits every value called `source` into lines when it writes, and a jslink's `source` is a list"
    from execnb import nbio
    split = nbio.nb2dict
    nbio.nb2dict = lambda d, k=None: d if k == "source" and isinstance(d, list) else split(d, k)


def build_quarto(work, listed):
    from nbdev import quarto, serve
    allow_jslink()
    (ROOT / "README.md").touch()  # nbdev would overwrite a README older than index.ipynb
    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    pages = make_pages(listed)
    serve.FilterDefaults = lambda: lambda nb: for_quarto(nb, pages[Path(nb.path_).name])
    quarto.nbdev_docs.__wrapped__(path=work, n_workers=0)  # in this process, for the filter's sake


# --- notebooks -> MyST notebooks -----------------------------------------------------------------------------

def options(source):
    "({option: value}, the rest of the cell) of the `#| option: value` lines at the top of a cell"
    lines, found = source.split("\n"), {}
    while lines and re.match(r"#\|", lines[0]):
        m = re.match(r"#\|\s*([\w-]+)\s*:\s*(.*?)\s*$", lines.pop(0))
        if m:
            found[m[1]] = str(yaml.safe_load(m[2])) if m[2][:1] in "\"'" else m[2]
    return found, "\n".join(lines)


def code_cell(cell, page):
    "Cell options -> tags and figure metadata"
    opts, cell["source"] = options(cell["source"])
    unknown = set(opts) - KNOWN
    if unknown:
        raise SiteError(f"{page.name}: unknown cell option '#| {unknown.pop()}:'; known are {', '.join(sorted(KNOWN))}")
    meta = cell["metadata"]
    tags = {TAGS[o] for o in opts.items() if o in TAGS}
    if tags:
        meta["tags"] = sorted(tags | set(meta.get("tags", [])))
    render = meta.setdefault("mystnb", {})
    if "code-summary" in opts:
        render["code_prompt_show"] = render["code_prompt_hide"] = opts["code-summary"]
    for data in markdown_in(cell):
        data["text/markdown"] = to_myst("".join(data["text/markdown"]), page)
    for output in cell["outputs"]:
        if "text/html" in output.get("data", {}):
            output["data"]["text/html"] = html_links("".join(output["data"]["text/html"]))
    label, outputs = opts.get("label", ""), cell["outputs"]
    text = opts.get("fig-cap") or opts.get("tbl-cap")
    if label and label in page.labels:
        if not text:
            raise SiteError(f"{page.name}: the cell labelled {label} has no caption")
        # a caption is an output of its own: this holds for images, tables, players and widgets alike
        text = f"{{#{page.name}-{label} .caption}}\n{caption(label, to_myst(text, page), page)}"
        cell["outputs"] = [shown(text), *outputs] if label.startswith("tbl-") else [*outputs, shown(text)]
    if opts.get("fig-alt"):
        render["image"] = {"alt": opts["fig-alt"]}
    for output in cell["outputs"]:
        if label in page.labels or "text/html" in output.get("data", {}):
            output.get("data", {}).pop("text/plain", None)
    if not render:
        del meta["mystnb"]


def convert(path, page):
    "Read one executed notebook; return it as a notebook that MyST-NB renders"
    nb = read_nb(path)
    head = next((c.source for c in nb.cells if c.cell_type == "markdown"), "")
    if re.sub(r"^(#\s.*|>.*|-\s.*:.*|\s*)$", "", head, flags=re.M).strip():
        raise SiteError(f"{path.name}: the first Markdown cell may hold only '# Title' and '> summary': nbdev drops the rest")
    Filter()(nb)
    widgets = nb.metadata.pop("widgets", None)
    nb = nb2dict(nb)
    for cell in nb["cells"]:
        cell["source"] = "".join(cell["source"])
        cell.pop("id", None)
    for cell in nb["cells"]:  # numbers first: text may refer to a figure further down
        if cell["cell_type"] == "markdown":
            find_labels(cell["source"], page)
        elif cell["cell_type"] == "code":
            label = options(cell["source"])[0].get("label", "")
            if re.fullmatch(LABEL, label):
                page.number(label)
    cells = []
    for cell in nb["cells"]:
        full = documented(cell, page)
        if cell["cell_type"] == "raw":
            cell = markdown(title(yaml.safe_load(cell["source"].strip().strip("-")), page))
        elif full:
            cell = markdown(api_myst(full, page))
        elif cell["cell_type"] == "markdown":
            cell = markdown(to_myst(cell["source"], page))
        else:
            code_cell(cell, page)
        cells.append(cell)
    meta = {"kernelspec": {"name": "python3", "display_name": "python3"}, "language_info": {"name": "python"}}
    if widgets:
        meta["widgets"] = widgets
    return {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 4}


def markdown(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def title(front, page):
    out = f"# {front['title']}\n"
    return out + (f"\n{{.summary}}\n{to_myst(front['description'], page)}\n" if "description" in front else "")


# --- Sphinx --------------------------------------------------------------------------------------------------

def toctrees(config):
    "The sidebar, at the end of the front page, where Sphinx looks for it"
    out = []
    for section, notebooks in sidebar(config):
        entries = ["self" if nb == "index.ipynb" else page_name(nb) for nb in notebooks]
        out.append("\n".join(["```{toctree}", ":hidden:", f":caption: {section}", "", *entries, "```"]))
    return markdown("\n\n".join(out))


def make_pages(listed):
    "{notebook: Page}"
    from pybtex.database import parse_file
    keys, syms = parse_file(NBS / "references.bib").entries, names()
    return {nb: Page(page_name(nb), f"sepnb.{page_name(nb)}", listed, keys, syms) for nb in listed}


def convert_all(folder, listed):
    "{page name: converted notebook}; what is wrong in any of them is reported together"
    done, wrong = {}, []
    for nb, page in make_pages(listed).items():
        try:
            done[page.name] = convert(folder / nb, page)
        except SiteError as error:
            wrong.append(str(error))
    if wrong:
        raise SiteError("\n".join(wrong))
    return done


def build_sphinx(work, config, listed, js):
    from sphinx.application import Sphinx
    src = BUILD / "sphinx"
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(work, src, ignore=shutil.ignore_patterns("*.ipynb", "_quarto.yml"))
    static = src / "_static"
    static.mkdir()
    for file in ("tex-svg-full.js", "embed-amd.js", "require.js"):
        shutil.copy(Path(js) / file, static)
    shutil.copy(work / "styles.css", static)
    pages = convert_all(work, listed)
    pages["index"]["cells"].append(toctrees(config))
    for name, nb in pages.items():
        (src / f"{name}.ipynb").write_text(json.dumps(nb), encoding="utf-8")
    html = BUILD / "html"
    shutil.rmtree(html, ignore_errors=True)
    app = Sphinx(src, None, html, BUILD / "doctrees", "html", confoverrides=settings(config), freshenv=True,
                 warningiserror=True, status=None)
    app.build()
    if app.statuscode:
        raise SiteError("Sphinx reported the warnings above")
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(html, SITE)


# The widgets still speak to MathJax 2 when they draw their labels; MathJax 3 has no `Hub`
MATHJAX_2 = "addEventListener('load', () => { if (window.MathJax) MathJax.Hub = {Queue: job => MathJax.typesetPromise([job[2]])} })"


def settings(config):
    site = config["website"]
    return {
        "project": site["title"], "author": "The sepnb authors",
        "copyright": "2026 onwards, The sepnb authors", "html_show_sphinx": False,
        "html_title": site["title"], "html_theme": "furo",
        "extensions": ["myst_nb", "sphinxcontrib.bibtex", "sphinx_togglebutton", "sphinx_copybutton", "sphinx.ext.viewcode"],
        "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence", "attrs_inline", "attrs_block", "deflist"],
        "myst_heading_anchors": 3, "myst_dmath_double_inline": True,
        "nb_execution_mode": "off", "nb_render_markdown_format": "myst", "nb_merge_streams": True,
        "nb_code_prompt_show": "Code", "nb_code_prompt_hide": "Code",
        "nb_ipywidgets_js": {"require.js": {}, "embed-amd.js": {}}, "mathjax_path": "tex-svg-full.js",
        "bibtex_bibfiles": ["references.bib"], "bibtex_reference_style": "author_year", "bibtex_default_style": "plain",
        "html_static_path": ["_static"], "html_css_files": ["styles.css"], "html_copy_source": False,
        "html_show_search_summary": False,  # it would fetch pages, which a browser refuses on file://
        "html_js_files": [(None, {"body": MATHJAX_2})],
        "toc_object_entries_show_parents": "hide", "add_module_names": False,
        "copybutton_exclude": ".linenos, .gp, .go", "togglebutton_hint": "", "togglebutton_hint_hide": "",
        "math_eqref_format": "Equation {number}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stored", action="store_true", help="show the outputs stored in nbs/ instead of running the notebooks")
    parser.add_argument("--js", default=ROOT / ".venv/js", help="where MathJax and the widget scripts are (Sphinx only)")
    args = parser.parse_args()
    os.chdir(ROOT)  # nbdev looks for settings.ini upwards from here
    try:
        config, listed = read_config()
        convert_all(NBS, listed)  # finds a wrong reference before the notebooks have run, not after
        work = run_notebooks(listed, args.stored)
        quarto = shutil.which("quarto")
        print(f"rendering with {'Quarto' if quarto else 'Sphinx'}", flush=True)
        build_quarto(work, listed) if quarto else build_sphinx(work, config, listed, args.js)
    except SiteError as error:
        sys.exit(f"make site: {error}")
    print(f"open {(SITE / 'index.html').relative_to(ROOT)} in a browser")


if __name__ == "__main__":
    main()
