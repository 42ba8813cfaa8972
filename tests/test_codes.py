"""The transformer over codes, the codecs of solos and the variants: causal, cached equals uncached, resumed equals undisturbed, nothing listens to what it must not."""
from dataclasses import replace

import pytest
import torch

from sepnb import rqtransformer, rqvariants
from sepnb.presets import new_prior, weights_path
from sepnb.registry import DATA
from sepnb.rqtransformer import Block, RQTransformer, RQTransformerConfig, Windows, drawn, load_rqtransformer, nll_by_stage, rqt_loss, unigram
from sepnb.rqvae import RQVAEConfig
from sepnb.rqvariants import Orderless, orderless_loss, trials, tried
from sepnb.solocodec import SoloCodec, SoloCodecConfig
from sepnb.store import load_tensors, save_tensors, save_weights, load_weights
from sepnb.training import PriorBank, Recipe, fit

SMALL = RQTransformerConfig(3, 8, 16, 2, 2, 4, 8, 2)
random = lambda: torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    m = RQTransformer(SMALL)
    fit(m, rqt_loss, Windows([torch.randint(8, (60, 3), generator=random())], 20, 5), Recipe(steps=10, batch=2, frame=60, lr=1e-2), progress=False)
    return m.eval()


# ---- the transformer

def test_probabilities_of_all_codes_add_up_to_one(model):
    "Summed over every value of the last code of a frame, and of the first."
    codes = torch.randint(8, (1, 6, 3), generator=random())
    for d in (0, 2):
        every = codes.repeat(8, 1, 1)
        every[:, 5, d] = torch.arange(8)
        assert model.log_prob(every)[:, 5, d].exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("i, d", [(0, 0), (3, 1), (6, 2)])
def test_a_code_is_heard_by_those_after_it_alone(model, i, d):
    codes = torch.randint(8, (1, 8, 3), generator=random())
    other = codes.clone()
    other[:, i, d] = (codes[:, i, d] + 1) % 8
    same = (model.log_prob(codes) == model.log_prob(other))[0].flatten()
    assert same[: i * 3 + d].all() and not same[i * 3 + d + 1 :].all()


def test_the_window_is_where_a_layer_stops_listening():
    block, x = Block(8, 2, window=3), torch.randn(1, 9, 8, generator=random())
    other = x.clone()
    other[:, 2] += 1
    with torch.no_grad():
        same = (block(x) == block(other)).all(2)[0]
    assert same.tolist() == [True, True, False, False, False, True, True, True, True]


def test_positions_count_by_distance_alone():
    block, x = Block(8, 2, window=4), torch.randn(1, 12, 8, generator=random())
    with torch.no_grad():
        assert torch.allclose(block(x)[:, 7:], block(x[:, 3:])[:, 4:], atol=1e-5)  # by then both have a full window


@pytest.mark.parametrize("options", [dict(), dict(temperature=0.7, top_p=0.8), dict(begin=torch.tensor([[[1, 2, 3]] * 5] * 2))])
def test_cached_equals_uncached_code_for_code(model, options):
    "Over many times the window."
    a, b = (model.sample(2, 30, random(), cached=c, **options) for c in (True, False))
    assert torch.equal(a, b) and a.min() >= 0 and a.max() < 8


def test_what_was_given_stays(model):
    begin = torch.randint(8, (1, 6, 3), generator=random())
    assert torch.equal(model.sample(1, 10, random(), begin=begin)[:, :6], begin)


def test_draws_follow_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20_000, 1)
    share = torch.bincount(drawn(logits, 2.0, 1.0, random()), minlength=4) / 20_000
    assert torch.allclose(share, (logits[0] / 2).softmax(0), atol=0.02)
    share = torch.bincount(drawn(logits, 1.0, 0.7, random()), minlength=4) / 20_000  # 0.64, 0.24, 0.09, 0.03: two are needed
    assert (share[2:] == 0).all() and share[1] > 0.2
    assert (drawn(logits, 1.0, 1e-6, random()) == 0).all()
    for bad in (dict(temperature=0.0), dict(top_p=0.0), dict(top_p=1.1)):
        with pytest.raises(ValueError, match="temperature must be positive"):
            drawn(logits, **bad)


def test_it_learns_what_can_be_foreseen():
    "Codes that repeat cost little, codes by chance what chance costs."
    torch.manual_seed(0)
    n, q = 200, 2
    steady = torch.stack([torch.arange(n) % 4, torch.randint(4, (n,))], 1)
    m = RQTransformer(RQTransformerConfig(q, 4, 32, 2, 1, 8, 16, 1))
    fit(m, rqt_loss, Windows([steady], 40, 8), Recipe(steps=150, batch=4, frame=40 * q, lr=1e-2, gamma=0.5), progress=False)
    nll, _ = nll_by_stage(m.eval(), [torch.stack([torch.arange(n) % 4, torch.randint(4, (n,))], 1)])
    assert nll[0] < 0.15 and 1.2 < nll[1] < 2.5
    assert torch.allclose(unigram([steady], 4).exp().sum(1), torch.ones(2))


def test_bad_codes_are_refused(model):
    for bad in (torch.zeros(1, 5, 2, dtype=torch.int64), torch.zeros(1, 5, 3), torch.full((1, 5, 3), 8), torch.zeros(5, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="whole numbers"):
            model.log_prob(bad)


def test_resumed_equals_undisturbed(tmp_path):
    def run(folder, stop=None):
        torch.manual_seed(0)
        m = RQTransformer(SMALL)

        def callback(step, _):
            if step == stop:
                raise KeyboardInterrupt

        try:
            fit(m, rqt_loss, Windows([torch.randint(8, (60, 3), generator=random())], 20, 5), Recipe(steps=8, batch=2, frame=60, lr=1e-2), run=folder, every=2, callback=callback, progress=False)
        except KeyboardInterrupt:
            return run(folder)
        return m.state_dict()

    one, two = run(tmp_path / "a"), run(tmp_path / "b", stop=4)
    assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values()))


def test_saved_and_loaded_it_says_the_same(model, tmp_path):
    save_weights(model, tmp_path / "m.safetensors", preset="smoke")
    other = RQTransformer(SMALL)
    load_weights(other, tmp_path / "m.safetensors")
    codes = torch.randint(8, (1, 20, 3), generator=random())
    assert torch.allclose(other.eval().log_prob(codes), model.log_prob(codes), atol=2e-2)  # half precision


def test_a_transformer_of_another_codec_is_refused(tmp_path, monkeypatch):
    for name in ("rqtransformer", "rqvae-codes"):
        path = weights_path(name, "songs", "mix", "smoke")
        to = tmp_path / "weights" / "smoke" / "songs" / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
    monkeypatch.setenv("SEPNB_ARTIFACTS", str(tmp_path))
    load_rqtransformer(preset="smoke")
    path = weights_path("rqtransformer", "songs", "mix", "smoke")
    tensors, meta = load_tensors(path)
    save_tensors(path, tensors, {**meta, "codec": "0" * 12})
    with pytest.raises(ValueError, match="another codec"):
        load_rqtransformer(preset="smoke")


# ---- codecs of solos

def test_evidence_of_codecs_follows_the_level():
    torch.manual_seed(0)
    bank = PriorBank({n: SoloCodec(SoloCodecConfig(4, quantizers=3, codes=8, window=256)).eval() for n in "ab"})
    X = torch.randn(2, 129, 40, dtype=torch.complex64, generator=random())
    with torch.no_grad():
        a, b = SoloCodec.evidence(bank, X), SoloCodec.evidence(bank, 3 * X)
    assert a.shape == (2, 2, 129, 40) and torch.allclose(b - a, torch.tensor(3.0).log() * 2 * torch.ones_like(a), atol=1e-2)


# ---- variants

def test_the_orderless_one_hears_only_what_is_given():
    torch.manual_seed(0)
    net = Orderless(RQVAEConfig(4, quantizers=3, codes=8))
    mix, s = torch.randn(2, 1000), torch.randn(2, 4, 1000)
    net.estimated(mix, s, torch.ones(2, 4))
    net.eval()
    given = torch.tensor([[1.0, 0, 1, 0]]).repeat(2, 1)
    other = s.clone()
    other[:, [1, 3]] += 1
    with torch.no_grad():
        assert torch.equal(net.estimated(mix, s, given).sources, net.estimated(mix, other, given).sources)
        other[:, 0] += 1
        assert not torch.equal(net.estimated(mix, s, given).sources, net.estimated(mix, other, given).sources)


def test_the_orderless_loss_asks_for_what_is_not_given(monkeypatch):
    "With everything but one source given, a model that is right about that one and wrong about the others has no error."
    monkeypatch.setattr(rqvariants, "mel_loss", lambda a, b: (a - b).abs().mean())
    monkeypatch.setattr(rqvariants, "shown", lambda model, x, g: (model(x.view(len(x), 4, -1).sum(1)), x.view(len(x), 4, -1)))
    x = torch.randn(3, 4 * 100, generator=random())

    class Right(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Conv1d(1, 4, 1)

        def estimated(self, mix, known, given):
            s = torch.where(given[..., None] > 0, known + 7, known)
            return rqvariants.Separated(s, None, torch.zeros(3))

    assert orderless_loss(Right(), x, random()).item() < 1e-6


def test_the_search_goes_on_where_it_was(tmp_path, monkeypatch):
    trial, calls = trials("smoke")[0], []
    row = tried(trial, "smoke", tmp_path)
    monkeypatch.setattr(rqvariants, "fit", lambda *a, **k: calls.append(a))
    assert tried(trial, "smoke", tmp_path) == row and not calls
    assert all(set(t) == set(trials("laptop")[0]) for t in trials("laptop"))
