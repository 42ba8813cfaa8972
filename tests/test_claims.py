"""The map of the five documents: every table and figure of theirs has a row, links lead somewhere, and verdicts follow from stored results."""
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from docutils.nodes import make_id

from sepnb import claims, pitchbasis
from sepnb.claims import DOCUMENTS, VERDICTS, Claim

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "nbs"))
import build_site as site  # noqa: E402

# what is numbered in the documents; where nothing is, pictures and sounds are counted, and slides named
NUMBERED = {
    "Frank & Ilse 2020": ["Fig. 1", "Fig. 2", *(f"Fig. 3({c})" for c in "abcd"), *(f"Fig. 4({c})" for c in "abcdef"), "Fig. 5", "Table 1", "Table 2", "Algorithm 1"],
    "Berti 2024": ["Table 1, RQ-VAE", "Table 1, Demucs + Gibbs", "Table 1, MSDM"],
    "Glover 2018": [*(f"Picture {n}" for n in (1, 2, 3)), *(f"Sound {n}" for n in (1, 2, 3))],
    "Foote, Yang & Rohaninejad 2016": [*(f"Picture {n}" for n in range(1, 9)), "Sound 1", "Sound 2"],
    "Dieleman 2020": ["symbols", "guitar", "magnitude, phase", "random phase", "phase", "mu-law", "likelihood", "taxonomy", "autoregression", "flows", "VAE", "adversary", "exotic flavours",
                      "conditions", "covering", "seeking", "densely told, in the plane", "densely told, families", "WaveNet", "dilation", "SampleRNN", "distilled WaveNets", "WaveGlow, FloWaveNet", "depth", "memory", "discrete autoencoders",
                      "levels of WaveNets", "Wave2Midi2Wave", "sparse attention", "Jukebox", "translation", "death metal", "WaveGAN", "GANSynth", "GAN-TTS", "MelGAN", "EATS", "diversity",
                      "discriminators", "Griffin-Lim", "vocoders", "DDSP", "summary: feasible", "summary: GANs", "summary: structure"],
}
ALL = [(document, c) for document, (_, items) in DOCUMENTS.items() for c in items]


@pytest.fixture(scope="module")
def every():
    return claims.claims()


def test_every_table_and_figure_has_a_row():
    assert set(NUMBERED) == set(DOCUMENTS)
    for document, items in NUMBERED.items():
        have = [c.item for c in DOCUMENTS[document][1]]
        assert len(set(have)) == len(have), f"{document}: an item is there twice"
        assert not set(items) - set(have), f"{document} lacks {set(items) - set(have)}"
        numbered = [i for i in have if re.match(r"(Table|Fig\.|Algorithm|Picture|Sound) ?\d", i)]
        assert document == "Dieleman 2020" or set(numbered) == set(items), f"{document} has no {set(numbered) - set(items)}"


def anchors(notebook):
    "The labels and headings of a notebook, as both renderers name them; a heading that they name differently is left out."
    found, titles = set(), []
    for cell in json.loads((ROOT / "nbs" / notebook).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            label = site.options(text)[0].get("label", "")
            found |= {label} if re.fullmatch(site.LABEL, label) else set()
        else:
            titles += re.findall(r"^#+\s+(.*?)\s*$", text, re.M)
            found |= set(re.findall(rf"\{{#({site.LABEL})\}}", text))
    for title in titles:
        pandoc = re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", title.lower()))
        if pandoc == make_id(title) and titles.count(title) == 1:
            found.add(pandoc)
    return found


@pytest.mark.parametrize("document, claim", [(d, c) for d, c in ALL if c.page], ids=lambda v: getattr(v, "item", v))
def test_every_link_leads_to_a_cell(document, claim):
    notebook = claims.notebook(claim.page)
    listed = [n for _, names in site.sidebar(site.read_config()[0]) for n in names]
    assert notebook in listed and site.page_name(notebook) == claim.page
    assert claim.anchor in anchors(notebook), f"{document}, {claim.item}: {notebook} has no {claim.anchor!r}"


def test_what_has_no_page_says_why():
    for document, c in ALL:
        assert c.page or c.judged()[1] in ("to come", "cannot be", "not built"), f"{document}, {c.item}"
        assert not (c.anchor and not c.page), f"{document}, {c.item}"
        assert c.says and "|" not in c.item + c.says


def test_verdicts_are_known_and_have_grounds(every):
    assert set(every.verdict) <= set(VERDICTS) and len(every) == len(ALL)
    assert every[every.verdict != "to come"].ours.str.len().gt(3).all(), "what was found, or the reason"
    assert not every[every.verdict == "to come"].page.any()
    assert not every.ours.str.contains("|", regex=False).any(), "it would split the table"
    with pytest.raises(ValueError, match="no verdict"):
        Claim("x", "y", found=lambda: ("", "true")).judged()


def test_verdicts_are_those_of_the_stored_results(every, monkeypatch):
    "Some, recomputed by hand, also where a test run asks for tiny models; and a verdict changes with its result."
    monkeypatch.setenv("SEPNB_PRESET", "smoke")
    of = every.set_index(["document", "item"])
    frank, berti = (of.loc[d] for d in ("Frank & Ilse 2020", "Berti 2024"))
    langevin = claims.result("langevin", "laptop")[0]
    noise = langevin[(langevin.start == "noise") & ~langevin.method.isin(("Algorithm 1, printed", "as released"))]
    assert (frank.verdict["it fails"] == "holds") == (noise.si_sdr < 10).all()
    speed = claims.result("speed-wavenet", "laptop")[0].set_index("method").samples_per_second
    assert (frank.verdict["slow"] == "holds") == (speed["fast"] < 16_000) and speed["naive"] < 16_000
    fig4 = claims.result("fig4-flowavenet", "laptop")[0]
    named = fig4[(fig4.way == "fine-tuned") & (fig4.quantity == "accuracy")].groupby("sigma").value.mean()
    assert f"FloWaveNet {100 * named[0.359]:.1f} %" in frank.ours["Fig. 4(f)"]
    variants = claims.result("rqvae-variants", "laptop")[0].groupby("variant").si_sdri.mean()
    assert (berti.verdict["dilation"] == "holds") == (variants["dilated convolutions"] < variants["unchanged"])
    assert [r.verdict for r in pitchbasis.verdicts("laptop").itertuples()] == claims.table("notes").verdict.tolist()

    real = claims.result
    faster = lambda name, preset: (real(name, preset)[0].assign(samples_per_second=1.0), {}) if name == "speed-wavenet" else real(name, preset)
    monkeypatch.setattr(claims, "result", faster)
    assert claims._wavenet_is_slow()[1] == "holds"


def test_rows_agree_or_hold_in_part():
    assert claims.together(["does not hold", "does not hold"]) == "does not hold"
    assert claims.together(["holds in part", "does not hold"]) == "holds in part" == claims.together(["holds", "undecided"])
    assert claims.together(["undecided"]) == "undecided"
    with pytest.raises(ValueError, match="there are: Flo"):
        claims.rows("fig3", "Nobody")()
    with pytest.raises(ValueError, match="Frank & Ilse 2020"):
        claims.claims("Mozart 1791")


def test_the_map_is_a_link_for_every_item(every):
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append((tag, dict(attrs)))
    parser.feed(claims.claims_map(every))
    links = [a for tag, a in seen if tag == "a"]
    assert [a["href"] for a in links] == [f"{r.page}.html#{r.anchor}" for r in every.itertuples() if r.page]
    assert all(a["title"] for a in links), "the tooltip says the claim"
    for sign in {VERDICTS[v] for v in every.verdict}:
        assert f"<b>{sign}</b>" in claims.claims_map(every), "without colour the sign tells"
    assert len(set(VERDICTS.values())) == len(VERDICTS)


def test_labels_of_other_pages_are_found_by_both_renderers():
    page = site.Page("claims", "sepnb.claims", ["20_likelihood.ipynb"])
    assert site.to_myst("[a](20_likelihood.ipynb#fig-fig3), [b](20_likelihood.ipynb#the-claims)", page) == "[a](#likelihood-fig-fig3), [b](likelihood.ipynb#the-claims)"
    assert site.html_links('<a href="likelihood.html#fig-fig3"><a href="likelihood.html#the-claims">') == '<a href="likelihood.html#likelihood-fig-fig3"><a href="likelihood.html#the-claims">'
