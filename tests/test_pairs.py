"""Networks that were shown pairs: any length and level, what is stored, and what is in common with the other chapters."""
import pytest
import torch
from safetensors.torch import load_file

from sepnb import experts, pairs, presets
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


@pytest.mark.parametrize("name, load", [("paired", pairs.load_paired), ("hdemucs", pairs.load_hdemucs)])
def test_training_takes_seconds_and_is_the_same_from_the_same_seed(name, load, tmp_path, monkeypatch):
    "Trained where there are no weights, with the loss in the header; found again without training."
    monkeypatch.chdir(tmp_path)
    trained = []
    for run in ("a", "b"):
        path = tmp_path / run / f"{name}-mix.safetensors"
        monkeypatch.setattr(presets, "weights_path", lambda *args, path=path, **options: path)
        monkeypatch.setattr(presets, "Path", lambda folder, run=run: tmp_path / run / folder)  # a run of its own, which is not resumed
        assert load("songs", "smoke")[1] < 1
        meta = load_tensors(path)[1]
        assert meta["losses"][-1] == [meta["steps"], pytest.approx(meta["final_loss"], abs=1e-3)]
        trained.append(load_file(path))
    assert all(torch.equal(v, trained[1][k]) for k, v in trained[0].items())
    monkeypatch.setattr(presets, "fit", lambda *args, **options: pytest.fail("trained again"))
    assert all(torch.equal(v.half() if v.is_floating_point() else v, trained[1][k]) for k, v in load("songs", "smoke")[0].state_dict().items())


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


def test_both_are_scored_on_the_same_songs():
    frame = EXPERIMENTS["hdemucs-valid"]("smoke")
    assert frame.groupby("method").chunks.sum().nunique() == 1 and set(frame.method) == {"paired", "hdemucs"}
    assert frame.attrs["seconds_per_second"].keys() == {"paired", "hdemucs"}
