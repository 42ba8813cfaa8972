"""Networks that were shown pairs: any length and level, what is stored, and what is in common with the other chapters."""
import pytest
import torch
from safetensors.torch import load_file

from sepnb import experts, pairs
from sepnb.presets import weights_path
from sepnb.registry import DATA
from sepnb.store import EXPERIMENTS, load_tensors

SIZE = 8000  # samples of a piece


@pytest.fixture(scope="module")
def hybrid():
    return pairs.load_hdemucs("songs", "smoke")[0]


@pytest.fixture(scope="module")
def sources():
    return DATA["songs"].items("valid", t=16_000).songs[0][:]


@pytest.mark.parametrize("length", [1, 100, 4000, 7999, 8000, 8001, 20_003])
def test_any_length_in_gives_the_same_length_out(hybrid, length):
    found = hybrid.separate(0.1 * torch.randn(length, generator=torch.Generator().manual_seed(0)), SIZE)
    assert found.shape == (4, length) and found.isfinite().all()


@pytest.mark.parametrize("gain", [1e-2, 30.0])
def test_stems_are_as_loud_as_the_mix(hybrid, sources, gain):
    mix = sources.sum(0)
    found = hybrid.separate(mix, SIZE)
    assert found.square().mean() > 1e-8 and torch.allclose(hybrid.separate(gain * mix, SIZE), gain * found, atol=2e-3 * gain * found.abs().max())


def test_silence_stays_silent(hybrid):
    assert hybrid.separate(torch.zeros(10_000), SIZE).abs().max() < 1e-6


def test_pieces_begin_where_they_should(hybrid, monkeypatch):
    "A network that gives out what it is given, in four parts, gives back the mix."
    monkeypatch.setattr(hybrid.net, "forward", lambda x: (torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1) * x[:, None]))
    mix = torch.randn(30_001)
    found = hybrid.separate(mix, SIZE)
    assert torch.allclose(found.sum(0), mix, atol=1e-5) and torch.allclose(found[2], 0.3 * mix, atol=1e-5)


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
@pytest.mark.parametrize("name", ["paired", "hdemucs"])
def test_weights_are_the_whole_network(name, preset):
    "Every tensor of the network is in the file and no other, and the file is small."
    kind, presets = dict(paired=(pairs.Paired, pairs.PAIRED), hdemucs=(pairs.Hybrid, pairs.HYBRID))[name]
    path = weights_path(name, "songs", "mix", preset)
    if not path.exists():
        pytest.skip(f"{name} is not shipped at {preset}")
    kind(presets[preset][0]).load_state_dict(load_file(path), strict=True)
    assert path.stat().st_size < 2e6


def test_training_takes_seconds_and_keeps_its_loss(artifacts, tmp_path, monkeypatch):
    "Trained anew where there are no weights, the same from the same seed; found again without training."
    monkeypatch.chdir(tmp_path)
    model, minutes = pairs.load_hdemucs("songs", "smoke")
    path = weights_path("hdemucs", "songs", "mix", "smoke")
    meta = load_tensors(path)[1]
    assert minutes < 1 and meta["losses"][-1] == [meta["steps"], pytest.approx(meta["final_loss"], abs=1e-3)]
    was = load_file(path)
    monkeypatch.setattr(pairs, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = pairs.load_hdemucs("songs", "smoke")[0]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    monkeypatch.undo()
    monkeypatch.setenv("SEPNB_ARTIFACTS", str(tmp_path / "other")), monkeypatch.chdir(tmp_path / "other") if (tmp_path / "other").mkdir() else None
    pairs.load_hdemucs("songs", "smoke")
    assert all(torch.equal(was[k], v) for k, v in load_file(weights_path("hdemucs", "songs", "mix", "smoke")).items())


def test_a_loss_that_falls():
    torch.manual_seed(0)
    model = pairs.Hybrid(pairs.HybridConfig(256, 4, depth=3))
    items = pairs.Together(DATA["songs"].items("train", t=4096))
    x = torch.stack([items[i] for i in range(4)])
    loss = lambda: pairs.hybrid_loss(model, x, torch.Generator().manual_seed(0))
    before, adam = loss().item(), torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(20):
        adam.zero_grad()
        loss().backward()
        adam.step()
    assert loss().item() < before - 0.2


def test_scores_are_those_of_the_table(sources):
    "`improvements` stands left of `chunk_scores`, and says the same; so does `through`, of `masked`."
    net, long = pairs.load_paired("songs", "smoke")[0], sources.repeat(1, 3)[:, : 10 * 16_000]
    mix = long.sum(0)
    with torch.no_grad():
        est = pairs.through(net, mix)
        assert torch.equal(est, experts.masked(mix, net.masks, net.config.window))
    for cut in (len(mix), 50_001):
        ours, theirs = pairs.improvements(est[:, :cut], long[:, :cut], mix[:cut]), experts.chunk_scores(est[:, :cut], long[:, :cut], mix[:cut])
        assert torch.allclose(ours, theirs, equal_nan=True)


def test_both_are_scored_on_the_same_songs():
    frame = EXPERIMENTS["hdemucs-valid"]("smoke")
    assert frame.groupby("method").chunks.sum().nunique() == 1 and set(frame.method) == {"paired", "hdemucs"}
    assert frame.attrs["seconds_per_second"].keys() == {"paired", "hdemucs"}
