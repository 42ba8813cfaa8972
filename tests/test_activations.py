"Coordinate descent through a WaveNet: what is cached is what would be computed."
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sepnb.activations import (FREE, Cached, Objective, answer, between, descend, flatness, front, gram, harmonics, layers_of, losses, multiplications, order_of, put, relaxed, shape_of, sweep,
                               toy_pairs)
from sepnb.quantize import mulaw_decode, mulaw_encode
from sepnb.toy import SOURCES, waveform
from sepnb.wavenet import WaveNet, WaveNetConfig

CONFIGS = {"two taps": WaveNetConfig(blocks=2, layers=3, kernel=2, width=6, skip=8, classes=16), "three taps": WaveNetConfig(blocks=1, layers=4, kernel=3, width=5, skip=8, classes=16)}


@pytest.fixture(scope="module", params=CONFIGS)
def exact(request): # in double precision
    torch.manual_seed(0)
    return WaveNet(CONFIGS[request.param]).double().eval().requires_grad_(False)


def objective_of(prior, t=60, depth=4, layers=(1, 2)):
    return Objective(prior, waveform("sine", 1000.0, 0.9, t=t).double(), waveform("saw", 700.0, 0.9, t=t).double(), 3.0, depth, layers)


def from_scratch(o, codes):
    return o(o.front(codes))[0]


@pytest.mark.parametrize("i", [0, 1, 20, 57, 59])
def test_every_candidate_costs_what_recomputing_says(exact, i):
    o = objective_of(exact)
    codes = torch.randint(16, (60,), generator=torch.Generator().manual_seed(1))
    tried = codes.repeat(16, 1)
    tried[:, i] = torch.arange(16)
    assert torch.allclose(losses(Cached(o, codes), i), from_scratch(o, tried), rtol=1e-9, atol=1e-12)


def test_after_many_changes_the_cache_is_still_the_clip(exact):
    o, rng = objective_of(exact), np.random.default_rng(0)
    cached = Cached(o, torch.zeros(60, dtype=torch.long))
    for i, code in zip(rng.integers(60, size=80), rng.integers(16, size=80)):
        put(cached, int(i), int(code))
    fresh = Cached(o, cached.codes)
    for name in ("a", "z", "h"):
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(getattr(cached, name), getattr(fresh, name)))
    assert torch.allclose(cached.grams, fresh.grams, atol=1e-10) and torch.allclose(cached.error, fresh.error, atol=1e-9)


def test_the_loss_never_rises_and_a_fixed_point_is_one(exact):
    o = objective_of(exact, 30)
    runs = list(descend(o, torch.randint(16, (30,), generator=torch.Generator().manual_seed(2)), 20))
    totals = [from_scratch(o, codes).item() for codes, _ in runs]
    assert all(b <= a + 1e-12 for a, b in zip(totals, totals[1:])) and totals[-1] < totals[0]
    codes, moved = runs[-1]
    assert moved == 0 and sweep(Cached(o, codes), range(30)) == 0
    best = [losses(Cached(o, codes), i).min().item() for i in range(30)]
    assert min(best) >= totals[-1] - 1e-12  # no single sample can do better


def test_the_content_is_a_fixed_point_where_style_is_its_own(exact):
    x = waveform("saw", 700.0, 0.9, t=50).double()
    o, codes = Objective(exact, x, x, 1.0, 4, (1, 2)), mulaw_encode(x, 16)
    assert from_scratch(o, codes).item() < 1e-20 and sweep(Cached(o, codes), range(50)) == 0


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_torch_counts_the_multiplications_of_the_formula(exact, depth):
    t, styles = 200, min(depth, 2)
    o = objective_of(exact, t, depth, (1, 2)[:styles])
    cached = Cached(o, torch.zeros(t, dtype=torch.long))
    with FlopCounterMode(display=False) as counted:
        losses(cached, 50)
    h = o.front(cached.codes)
    with FlopCounterMode(display=False) as whole:
        o(h)
    assert (counted.get_total_flops() // 2, 16 * whole.get_total_flops() // 2) == multiplications(exact.stack, depth, styles, t, 16)


def test_a_thousand_times_fewer_for_one_second_up_to_six_layers():
    stack = WaveNet(WaveNetConfig(blocks=3, layers=10, kernel=2, width=32)).stack
    fewer = [whole / cached for cached, whole in (multiplications(stack, n, min(n, 4), 16_000) for n in (5, 6, 7))]
    assert fewer[0] > fewer[1] > 1000 > fewer[2]


def test_residuals_are_those_of_the_network(exact):
    seen, caught = torch.randn(1, 40, exact.lookup().shape[1], dtype=torch.float64), []
    hooks = [g.register_forward_hook(lambda m, args, out: caught.append(out)) for g in exact.stack.gates]
    exact.stack(seen)
    [hook.remove() for hook in hooks]
    mine = [a for a, _, _ in layers_of(exact, front(exact, seen), len(caught))]
    assert all(torch.allclose(a, b) for a, b in zip(mine, caught)) and len(mine) == len(exact.stack.dilations)


def test_a_gram_matrix_is_blind_to_time():
    h = torch.randn(2, 30, 4, dtype=torch.float64)
    assert torch.allclose(gram(h), gram(h[:, torch.randperm(30)])) and torch.allclose(gram(h)[1], torch.einsum("ti,tj->ij", h[1], h[1]) / 30)


def test_between_codes_is_exact_at_codes_and_has_a_gradient(exact):
    values = mulaw_decode(torch.arange(16), 16, torch.float64)
    x = torch.cat([values, (values[3:4] + values[4:5]) / 2]).requires_grad_()
    seen = between(exact, x)[0]
    assert torch.allclose(seen[:16], exact.lookup(), atol=1e-9) and torch.allclose(seen[16], (exact.lookup()[3] + exact.lookup()[4]) / 2, atol=1e-9)
    seen.square().sum().backward()
    assert x.grad[16] != 0


@pytest.mark.parametrize("way", FREE)
def test_gradients_lower_the_loss_they_see(way):
    torch.manual_seed(0)
    prior = WaveNet(WaveNetConfig(blocks=1, layers=4, kernel=2, width=6, skip=8)).eval().requires_grad_(False)
    o = Objective(prior, waveform("sine", 1000.0, 0.9, t=60), waveform("saw", 700.0, 0.9, t=60), 3.0, 3, (1, 2))
    start = torch.randint(256, (60,), generator=torch.Generator().manual_seed(0))
    (kept, before), (codes, after) = relaxed(o, start, way, 0), relaxed(o, start, way, 40)
    assert torch.equal(kept, start) and after[0] < before[0] and codes.shape == (60,) and codes.min() >= 0 and codes.max() < 256


def test_harmonics_tell_pitch_and_shape():
    for s in SOURCES:
        x = waveform(s, 310.0, 0.4, 2.0, t=1600)
        assert shape_of(x, 310.0) == s and harmonics(x, 310.0)[0] > 0.9 > 0.5 > harmonics(x, 271.0)[0]
    amplitudes = harmonics(waveform("square", 310.0, 1.0, t=1600), 310.0)[1]
    assert amplitudes[0].item() == pytest.approx(4 / np.pi, rel=0.02) and amplitudes[2].item() == pytest.approx(4 / np.pi / 3, rel=0.05)
    assert flatness(torch.randn(4000)) > 0.7 > 0.05 > flatness(waveform("sine", 310.0, t=4000))


def test_pairs_are_of_two_shapes_and_the_answer_has_the_right_one():
    pairs = toy_pairs(5, 400)
    assert all(p["shape"] != p["wanted"] and 1.1 < max(p["f"] / p["style_f"], p["style_f"] / p["f"]) < 1.45 for p in pairs)
    assert all(torch.equal(p["content"], q["content"]) for p, q in zip(pairs, toy_pairs(5, 400))) and not torch.equal(pairs[0]["content"], toy_pairs(1, 400, "valid")[0]["content"])
    torch.manual_seed(0)
    prior = WaveNet(WaveNetConfig(blocks=1, layers=3, kernel=2, width=4, skip=8)).eval().requires_grad_(False)
    p = pairs[0]
    with torch.no_grad():
        codes = answer(Objective(prior, p["content"], p["style"], 1.0, 3, (1, 2)), p)
    assert shape_of(mulaw_decode(codes), p["f"]) == p["wanted"]


def test_orders_visit_every_sample_once():
    assert order_of("left to right", 9, None) == list(range(9)) == sorted(order_of("random", 9, torch.Generator().manual_seed(0)))


def test_what_cannot_be_asked_is_refused(exact):
    x = waveform("sine", 1000.0, 0.9, t=60).double()
    with pytest.raises(ValueError, match="1 to"):
        Objective(exact, x, x, depth=99)
    with pytest.raises(ValueError, match="style is silent"):
        Objective(exact, x, 0 * x)
    with pytest.raises(ValueError, match="crop the longer"):
        Objective(exact, x, x[:50])
    told = WaveNet(WaveNetConfig(blocks=1, layers=4, kernel=2, width=6, skip=8, cond_global=2)).double()
    with pytest.raises(ValueError, match="unconditional"):
        next(layers_of(told, torch.zeros(1, 9, 6, dtype=torch.float64), 2))
