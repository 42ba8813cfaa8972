"""Vector quantisers and the codec that separates: codebooks are state, codes are the item's own, and training repeats and resumes."""
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sepnb import presets, rqvae
from sepnb.pairs import Together
from sepnb.presets import weights_path
from sepnb.registry import DATA
from sepnb.rqvae import LOSSES, RQ, RQVAE, RQVAEConfig, mel_filters, mel_loss, rqvae_loss, snr_loss, terms
from sepnb.store import EXPERIMENTS, load_tensors, load_weights, save_weights
from sepnb.training import Recipe, fit
from sepnb.vq import VQ, drawn_from, kmeans, learn_stages, nearest, perplexity, quantised, residual_decode, residual_encode, residual_vq, usage

SMALL = RQVAEConfig(4, quantizers=3, codes=8)
random = lambda: torch.Generator().manual_seed(0)


def begun(config=SMALL): # -> RQVAE whose codebooks have begun
    torch.manual_seed(0)
    model = RQVAE(config)
    for _ in range(3):
        model(torch.randn(4, 4000))
    return model.eval()


# ---- quantisers

def test_ours_and_theirs_choose_and_follow_alike():
    torch.manual_seed(0)
    rvq = residual_vq(5, 3, 16, expire=0).train()
    rvq(torch.randn(1, 500, 5))
    book = rvq.layers[0]._codebook
    ours = VQ(book.embed[0])
    ours.count.copy_(book.cluster_size[0]), ours.total.copy_(book.embed_avg[0])
    for _ in range(10):
        x = torch.randn(1, 300, 5)
        rvq.eval(), ours.eval()
        found, codes, _ = rvq(x)
        assert torch.equal(residual_encode(x[0], rvq.codebooks), codes[0])
        assert torch.allclose(residual_decode(codes[0], rvq.codebooks), found[0], atol=1e-5)
        rvq.train(), ours.train()
        assert torch.equal(ours(x[0])[1], rvq(x)[1][0, :, 0])
    assert torch.allclose(ours.codebook, book.embed[0], atol=1e-4)


def test_the_nearest_is_the_nearest():
    x, c = torch.randn(50, 3), torch.randn(7, 3)
    assert torch.equal(nearest(x, c), torch.stack([(v - c).square().sum(1).argmin() for v in x]))


def test_every_stage_leaves_less():
    x = torch.randn(600, 4, generator=random())
    codebooks = learn_stages(x, 4, 16, generator=random())
    codes = residual_encode(x, codebooks)
    left = [(x - residual_decode(codes[:, :q], codebooks)).square().mean() for q in range(1, 5)]
    assert all(a > 1.2 * b for a, b in zip(left, left[1:]))


def test_kmeans_finds_groups_and_keeps_codes_that_nobody_chooses():
    x = torch.cat([torch.randn(50, 2) * 0.1 + v for v in (0, 5)])
    assert (kmeans(x, 2, generator=random()).mean(1).sort().values - torch.tensor([0.0, 5.0])).abs().max() < 0.2
    assert kmeans(torch.ones(10, 2), 4).isfinite().all()


def test_a_code_that_is_not_chosen_expires_and_a_busy_one_stays():
    torch.manual_seed(0)
    for expire, alive in ((2, True), (0, False)):
        rvq = residual_vq(4, 1, 8, expire).train()
        rvq(torch.randn(1, 400, 4))
        book = rvq.layers[0]._codebook
        book.embed[0, 3] += 100
        book.embed_avg[0, 3] = book.embed[0, 3]
        book.cluster_size[0, 3] = 1.0
        others = torch.arange(8) != 3
        before = book.embed[0, others].clone()
        rvq(torch.randn(1, 400, 4))
        assert (book.embed[0, 3].abs().max() < 10) == alive
        assert (book.embed[0, others] - before).abs().max() < 0.5


def test_the_gradient_passes_once_whatever_the_depth():
    for depth in (1, 4):
        x = torch.randn(1, 200, 4, requires_grad=True)
        y, codes, commitment = quantised(residual_vq(4, depth, 16).train(), x)
        weight = torch.randn_like(y)
        (y * weight).sum().backward()
        assert torch.allclose(x.grad, weight, atol=1e-5) and codes.shape == (1, 200, depth) and commitment.shape == (depth,)


def test_draws_follow_the_generator_and_leave_the_others_alone():
    torch.manual_seed(5)
    plain = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for _ in range(2):
        with drawn_from(random()):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn) and torch.equal(torch.rand(3), plain) and not torch.equal(drawn[0], plain)
    with drawn_from(None):
        a = torch.rand(3)
    with drawn_from(None):
        assert not torch.equal(torch.rand(3), a)


def test_usage_and_perplexity():
    codes = torch.tensor([[[0, 0], [1, 0]], [[2, 0], [2, 0]]])
    assert usage(codes, 4).tolist() == [0.75, 0.25]
    assert torch.allclose(perplexity(codes, 4), torch.tensor([2**1.5, 1.0]).double())


# ---- the model

@pytest.mark.parametrize("length", [1, 199, 200, 201, 4321])
@pytest.mark.parametrize("skips", [True, False])
def test_any_length_in_gives_the_same_length_out(length, skips):
    found = begun(replace(SMALL, skips=skips))(torch.randn(2, length))
    assert found.sources.shape == (2, 4, length) and found.codes.shape == (2, -(-length // 200), 3)
    assert found.codes.dtype == torch.int64 and 0 <= found.codes.min() and found.codes.max() < 8


@pytest.mark.parametrize("config", [RQVAEConfig(2, (7, 7, 7, 5), (5, 5, 5, 3), 2, 4), RQVAEConfig(2, (7, 7, 7, 5), (5, 5, 4, 2), 2, 4), RQVAEConfig(2, (4, 3), (4, 3), 2, 4)])
def test_any_kernels(config):
    model = RQVAE(config, 2).eval()
    assert model(torch.randn(1, 1000)).sources.shape == (1, 2, 1000) and model.encode(torch.randn(1, 1000)).shape[1] == -(-1000 // config.fold)


def test_codes_do_not_depend_on_the_other_items():
    model, x = begun(), torch.randn(3, 3000)
    together = model(x)
    for i in range(3):
        alone = model(x[i : i + 1])
        assert torch.equal(alone.codes[0], together.codes[i]) and torch.allclose(alone.sources[0], together.sources[i], atol=1e-4)
    assert torch.equal(model.encode(x), together.codes)


def test_looking_changes_nothing():
    model = begun()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.randn(2, 3000)), model.encode(torch.randn(2, 3000)), model.separate(torch.randn(3000))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_codes_alone_are_enough_without_skips_only():
    x, model = torch.randn(2, 2001), begun(replace(SMALL, skips=False))
    codes = model.encode(x)
    assert torch.allclose(model.decode(codes, 2001), model(x).sources, atol=1e-5)
    other = (codes + 1) % 8
    assert not torch.allclose(model.decode(other, 2001), model.decode(codes, 2001), atol=1e-3)
    with pytest.raises(ValueError, match="its decoder needs the mix"):
        begun().decode(codes, 2001)
    for wrong, length, message in ((codes + 8, 2001, "from 0 to 7"), (codes[..., :2], 2001, "expected codes"), (codes[0], 2001, "expected codes"), (codes, 2201, "take 12 frames of codes, got 11")):
        with pytest.raises(ValueError, match=message):
            model.decode(wrong, length)


def test_what_goes_around_the_codes():
    "With skips the mix is heard in the output whatever the codes are."
    model, x = begun(), torch.randn(1, 2000)
    hs, z = model.features(x)
    a, b = (model.built(z, h, 2000) for h in (hs, [torch.zeros_like(v) for v in hs]))
    assert not torch.allclose(a, b, atol=1e-3)


def test_a_saved_model_is_the_same_model(tmp_path):
    model, x = begun(), torch.randn(2, 3000)
    save_weights(model, tmp_path / "w.safetensors", torch.float32)
    again = RQVAE(SMALL)
    load_weights(again, tmp_path / "w.safetensors")
    a, b = model(x), again.eval()(x)
    assert torch.equal(a.codes, b.codes) and torch.equal(a.sources, b.sources)
    model.train(), again.train()
    with drawn_from(random()):
        a = model(x)
    with drawn_from(random()):
        b = again(x)  # not begun anew with k-means
    assert torch.equal(a.codes, b.codes) and all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("gain", [1e-2, 30.0])
def test_stems_are_as_loud_as_the_mix(gain):
    model, mix = rqvae.load_rqvae(preset="smoke")[0], DATA["songs"].items("valid", t=16_000).songs[0][:16_000].sum(0)
    found = model.separate(mix)
    assert found.shape == (4, len(mix)) and torch.allclose(model.separate(gain * mix), gain * found, atol=5e-3 * gain * found.abs().max())
    assert model.separate(torch.zeros(3000)).abs().max() < 1e-4


@pytest.mark.parametrize("change", [dict(kernels=(3, 3, 3, 3)), dict(strides=(5, 5))])
def test_blocks_that_do_not_fit(change):
    with pytest.raises(ValueError, match="at least as long as its stride"):
        RQVAEConfig(**change)


# ---- losses

def test_the_mel_loss_is_zero_where_both_are_the_same_and_finite_in_silence():
    x, silent = torch.randn(2, 4, 6000), torch.zeros(2, 4, 6000, requires_grad=True)
    mel_loss(silent, x).backward()
    assert mel_loss(x, x) < 1e-3 < mel_loss(0.9 * x, x) < mel_loss(0.1 * x, x) and silent.grad.isfinite().all()


def test_no_filter_is_empty():
    assert all((mel_filters(2**i).sum(0) > 0).all() for i in range(6, 12)) and mel_filters(64).shape[1] < 64


@pytest.mark.parametrize("loss", [rqvae_loss, snr_loss])
def test_gradients_reach_the_encoder_through_the_codes(loss):
    torch.manual_seed(0)
    model, x = RQVAE(replace(SMALL, skips=False)), 0.1 * torch.randn(2, 4 * 4096)
    loss(model, x, random())
    loss(model, x, random()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.first[0].weight.grad.abs().max() > 1e-6 and model.lstm.weight_ih_l0.grad.abs().max() > 1e-6


def test_terms_add_up():
    model, x = begun(), 0.1 * torch.randn(2, 4 * 4096)
    parts = terms(model, x, random())
    assert set(parts) == set(rqvae.BALANCE) and torch.allclose(sum(rqvae.BALANCE[n] * v for n, v in parts.items()), rqvae_loss(model, x, random()))


@pytest.mark.parametrize("loss", [rqvae_loss, snr_loss])
def test_a_loss_that_falls(loss):
    torch.manual_seed(0)
    model, items = RQVAE(SMALL), Together(DATA["songs"].items("train", t=4096))
    x = torch.stack([items[i] for i in range(4)])
    loss(model, x, random())
    before, adam = loss(model, x, random()).item(), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(20):
        adam.zero_grad()
        loss(model, x, random()).backward()
        adam.step()
    assert loss(model, x, random()).item() < before - 0.1


# ---- training

class Stop(Exception):
    pass


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path):
    "Codes expire on the way, for which the package draws random numbers of its own."
    config, recipe = replace(SMALL, codes=32), Recipe(steps=12, batch=2, frame=4 * 4096, lr=2e-3, clip=5.0)
    items, asked = Together(DATA["songs"].items("train", t=4096)), []

    def run(folder, callback=None):
        torch.manual_seed(len(asked))  # of no account after the start, which a checkpoint has
        asked.append(folder)
        model = RQVAE(config)
        if folder == "a":
            torch.save(model.state_dict(), tmp_path / "start.pt")
        model.load_state_dict(torch.load(tmp_path / "start.pt"))
        fit(model, rqvae_loss, items, recipe, run=tmp_path / folder, every=3, callback=callback, progress=False)
        return model.state_dict()

    def stop(step, model):
        if step == 6:
            raise Stop

    undisturbed = run("a")
    with pytest.raises(Stop):
        run("b", stop)
    assert load_tensors(tmp_path / "b/checkpoint.safetensors")[1]["step"] == 6
    resumed = run("b")
    assert undisturbed.keys() == resumed.keys() and all(torch.equal(v, resumed[k]) for k, v in undisturbed.items())
    assert (undisturbed["rvq.layers.2._codebook.cluster_size"] == 2).any(), "nothing expired at the last step"


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_weights_are_the_whole_network(preset):
    path = weights_path("rqvae", "songs", "mix", preset)
    if not path.exists():
        pytest.skip(f"rqvae is not shipped at {preset}")
    model = RQVAE(RQ[preset][0])
    model.load_state_dict(load_file(path), strict=True)
    assert all(layer._codebook.initted for layer in model.rvq.layers) and path.stat().st_size < 8e6


def test_training_is_found_again_and_variants_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    monkeypatch.setattr(presets, "weights_path", lambda name, *args, **options: (names.append(name), tmp_path / f"{name}.safetensors")[1])
    variants = dict(skips=True), dict(skips=False), dict(loss="snr")
    trained = [rqvae.load_rqvae("songs", "smoke", **v)[0] for v in variants]
    assert names == ["rqvae", "rqvae-codes", "rqvae-snr"] and trained[1].config.skips is False
    assert load_tensors(tmp_path / "rqvae-snr.safetensors")[1]["steps"] == LOSSES["snr"][1] * RQ["smoke"][1].steps
    monkeypatch.setattr(presets, "fit", lambda *args, **options: pytest.fail("trained again"))
    again = rqvae.load_rqvae("songs", "smoke")[0]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in trained[0].state_dict().items())


@pytest.mark.parametrize("name", ["rqvae-valid", "rqvae-losses"])
def test_experiments_look_at_validation_songs_alone(name, monkeypatch):
    opened, real = [], DATA["songs"].items
    monkeypatch.setitem(rqvae.DATA, "songs", replace(DATA["songs"], items=lambda split, **k: (opened.append(split), real(split, **k))[1]))
    frame = EXPERIMENTS[name]("smoke")
    assert set(opened) <= {"train", "valid"} and "valid" in opened and frame.si_sdri.notna().all()
