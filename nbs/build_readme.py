"""Writes README.md from nbs/README.md.in: every number in it comes from a stored result or from the header of shipped weights.

    python nbs/build_readme.py           writes it
    python nbs/build_readme.py --check   exits with 1 where README.md is not what would be written
"""
import sys
from pathlib import Path

import jinja2
import pandas as pd

from sepnb import langevin, music, presets, separation, store, staying
from sepnb.experts import by_song
from sepnb.likelihood import accuracy, as_cross, auroc
from sepnb.registry import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[1]
PRESET = "laptop"


def stored(name):
    return store.result(name, PRESET)


def minutes(*names):
    "Minutes that experiments took."
    return f"{max(1, round(sum(stored(n)[1]['seconds'] for n in names) / 60))} min"


def train(model, label=None, unit="steps each", losses=None):
    "The row of one model's training."
    table = presets.training_table(model, "toy", PRESET)
    steps = f"{table.steps.max()} {unit}"
    said = f", last losses {table.final_loss.min():.2f} to {table.final_loss.max():.2f} nats per sample" if losses else ""
    paper = losses or "-"
    return (f"| train four {label or model} priors | `sepnb train {model} toy all` | one CPU core | {max(1, round(table.seconds.sum() / 60))} min | "
            f"{steps}{said} | {paper} |")


def fig3(name, title, paper):
    frame, info = stored(name)
    cross = as_cross(frame)
    return (f"| {title} | `sepnb reproduce {name}` | one CPU core | {minutes(name)} | {100 * accuracy(cross):.1f} % named right, AUROC {auroc(cross).min():.3f} to "
            f"{auroc(cross).max():.3f}, {info['items']} test mixes | {paper} |")


def music_row(model, title):
    name = f"music-musdb18-songs-{model}"
    frame, info = stored(name)
    longest = frame[(frame.control == "as it is") & (frame.samples == frame.samples.max())]
    value, low, high = music.by_song(longest, music.named_right)
    return (f"| {title} | `sepnb data songs`, `sepnb train {model} musdb18-songs all`, `sepnb reproduce {name}` | one CPU core | {minutes(name)} after training | "
            f"{100 * value:.0f} % named right ({100 * low:.0f} to {100 * high:.0f} by song; chance 25), {info['items']} test frames, {info['training_steps']} steps | cannot discriminate (a picture, musdb18) |")


def landscape_row():
    "What the families of the landscape do on its scale."
    names = [n for n in EXPERIMENTS.members("landscape") if n.endswith("-scale")]
    frame = pd.concat([stored(n)[0] for n in names])
    off = frame[~frame.told].groupby("family").off.mean().sort_values()
    said = ", ".join(f"{name} {value:.0%}" for name, value in off.items())
    runs = frame.seed.nunique()
    return (f"| {len(names)} families of models on tones of a scale | `sepnb reproduce landscape` | one CPU core | {minutes(*names)} after training, about {frame.cpu_minutes.sum():.0f} min of it | "
            f"drawn clips that are off, that is, unlike everything on the scale, told nothing: {said}; {stored(names[0])[1]['items']} clips, {runs} training run{'s' * (runs > 1)} of each | - |")


def scores(row):
    "What one row of the separation table came to."
    frame, info = stored(f"separation-toy-{row}")
    v = frame.si_sdri.dropna()
    return dict(median=f"{v.median():.1f}", low=f"{v.quantile(0.25):.0f}", mean=f"{v.mean():.1f}", worst=f"{v.min():.1f}", exact=f"{100 * (v >= 160).mean():.1f} %",
                above=f"{100 * (v > 10).mean():.2f} %", n=info["items"], samples=info["samples"], seconds=f"{frame.seconds.median():.2f} s")


def row(name, title, before=()):
    s = scores(name)
    commands = ", then ".join(f"`sepnb reproduce separation-toy-{n}`" for n in (*before, name))
    length = "" if s["samples"] == 16000 else f" of {s['samples']} samples"
    return (f"| {title} | {commands} | one CPU core | {minutes(*(f'separation-toy-{n}' for n in (*before, name)))} | median {s['median']}, mean {s['mean']}, worst {s['worst']} dB SI-SDR improvement, "
            f"{s['exact']} exact, {s['above']} above 10 dB, {s['n']} test mixes{length} | - |")


def separation_rows():
    "The rows of separation and of the training of their priors, as far as they are computed."
    lines = [train("wavetable", unit="rounds at most"), ("pursuit", "Separation, pursuit"), ("formulas", "the same with the true formulas, an oracle"),
             train("score-pitch", "pitch-locked score"), ("repaired-pitch", "coordinate denoising with them, repaired", ("coordinate-pitch",)),
             train("score-blackbox", "black-box score"),
             ("exchanged-blackbox", "coordinate denoising with them, repaired twice", ("coordinate-blackbox", "repaired-blackbox"))]
    there = separation.measured(preset=PRESET)
    return "\n".join(line if isinstance(line, str) else row(*line) for line in lines if isinstance(line, str) or line[0] in there)


def between_row():
    "Half-way between two notes: Glover's latents, and the basis of the pitch."
    frame, info = stored("spectralflow-between-test")
    half = lambda way: 100 * (frame[frame.way == way].apply(lambda r: r.pitch == r.middle and str(r.counts).split()[len(str(r.counts).split()) // 2] == "1", axis=1)).mean()
    return (f"| Half-way between two notes, a flow over spectra (Glover) | `sepnb data notes`, `sepnb reproduce spectralflow-between-test` | one CPU core | {minutes('spectralflow-between-test')} after training | "
            f"one pitch is heard, the one half-way: in latents {half('flow, latents'):.0f} %, written in a basis of the pitch {half('pitched, labels moved'):.0f} % ({half('basis, no flow'):.0f} % without the flow), {info['items']} pairs of generated test notes | \"seemingly just learned to linearly interpolate the spectral magnitudes\" |")


def fig4(sigma):
    "Accuracies at one level, by way of training."
    frame = stored("fig4-flowavenet")[0]
    part = frame[(frame.quantity == "accuracy") & (frame.sigma == sigma)].groupby("way", sort=False).value.mean()
    names = {"fine-tuned": "fine-tuned", "told": "told the level", "scratch": "from scratch"}
    return ", ".join(f"{names[w]} {100 * v:.1f} %" for w, v in part.items())


def beyond_text(*conditions):
    "Medians of the pursuit where an assumption is broken."
    frame = stored("separation-beyond")[0]
    medians = frame.groupby("condition").si_sdri.median()
    return "; ".join(f"{c}, median {medians[c]:.1f} dB" for c in conditions)


def world_text(*conditions):
    "Medians of the search for tones that move, where those for steady ones fail."
    frame = stored("separation-world")[0]
    medians = frame[frame.method == "worldtones"].groupby("condition").si_sdri.median()
    return "; ".join(f"{c}, median {medians[c]:.1f} dB" for c in conditions)


def gains(row):
    "One row of the table of music on the three test sets, in dB."
    return ["{:.1f} ({:.1f} to {:.1f})".format(*by_song(stored(f"separation-songs-{row}-{split}")[0])[:3]) for split in ("test", "test-programs", "test-font")]


def songs(row):
    "The same as words."
    said = ("dB with instruments that were heard in training", "with others of the same SoundFont", "with another SoundFont")
    return ", ".join(f"{gain} {what}" for gain, what in zip(gains(row), said))


def songs_row(row, title, before):
    names = [f"separation-songs-{row}-{s}" for s in ("test", "test-programs", "test-font")]
    return (f"| {title} | {before}`sepnb reproduce {names[0]}` (and `-test-programs`, `-test-font`) | one CPU core | {minutes(*names)} after training | {songs(row)}: mean SI-SDR improvement and 95 % interval over "
            f"{stored(names[0])[1]['items']} songs each | - |")


def found(**at):
    "Share of the sources that annealed Langevin over exact priors finds or keeps."
    frame = stored("staying-find")[0]
    for k, v in at.items():
        frame = frame[frame[k] == v]
    return f"{frame.found.mean():.0%}"


def stays(top):
    "Of the sources that start at the truth with noise of such a level, and come down in the finest steps, how many end above 10 dB."
    part = stored("staying-descend")[0].query(f"gamma == 0.5 and top {top}")
    part = part[part["size"] == part["size"].min()]
    return f"{(part.si_sdr > 10).sum()} of {len(part)}"


def render():
    "The README as text."
    env = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    names = dict(between_row=between_row, landscape_row=landscape_row, separation_rows=separation_rows, train=train, fig3=fig3, row=row, scores=scores, fig4=fig4, minutes=minutes, beyond_text=beyond_text, world_text=world_text, gains=gains, songs_row=songs_row, found=found, stays=stays, stored=stored, music=music_row,
                 langevin=langevin, wide=list(staying.LADDERS)[-1])
    return env.from_string((ROOT / "nbs" / "README.md.in").read_text()).render(**names)


if __name__ == "__main__":
    text = render()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if text == (ROOT / "README.md").read_text() else "README.md is not what nbs/README.md.in and the stored results make: run make readme")
    (ROOT / "README.md").write_text(text)
