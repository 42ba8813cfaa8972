"WaveNet across its parts: convolution parity, causality, the samplers against each other, conditioning, speed helpers."
import builtins, math, subprocess, sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sepnb import generation
from sepnb.quantize import mulaw_decode, mulaw_encode
from sepnb.store import load_weights, save_weights
from sepnb.blocks import GatedStack, taps
from sepnb.generation import CachedSteps, sample_codes
from sepnb.speed import sampling_speed
from sepnb.steered import f0_track, guess_source, train_conditional
from sepnb.toy import tone
from sepnb.wavenet import Conditioning, WaveNet, WaveNetConfig


def lively(seed=0, **kwargs):
    "Random weights whose predictions are far from uniform."
    torch.manual_seed(seed)
    net = WaveNet(WaveNetConfig(**(dict(blocks=2, layers=5, width=16, skip=24) | kwargs))).eval()
    for p in net.parameters():
        p.data.mul_(1.4)
    return net


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


STEERED = dict(cond_global=3, cond_local=2, hop=50)


def steering(n=2, t=400):
    g = torch.Generator().manual_seed(5)
    return dict(cond=torch.randn(n, 3, generator=g), local=torch.randn(n, math.ceil(t / 50), 2, generator=g))


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("dilation", [1, 4])
def test_dilated_convolution_is_torchs(kernel, dilation):
    stack = GatedStack(3, 5, 8, 6, (1, dilation), kernel=kernel, causal=True)
    h, linear = torch.randn(2, 30, 8), stack.gates[1]
    weight = linear.weight.view(16, kernel, 8).transpose(1, 2)
    want = F.conv1d(F.pad(h.transpose(1, 2), ((kernel - 1) * dilation, 0)), weight, linear.bias, dilation=dilation)
    torch.testing.assert_close(linear(taps(h, kernel, dilation, True)).transpose(1, 2), want)


def test_stack_is_the_papers_layer_by_layer():
    "Residual and skip connections added one layer at a time give what the one big product gives."
    stack = GatedStack(4, 5, 8, 6, (1, 2, 4), causal=True, cond=2)
    x, c = torch.randn(2, 25, 4), torch.randn(2, 2)
    h, total = stack.first(taps(x, 3, 1, True)), 0
    for gate, cond, mix, d in zip(stack.gates, stack.conds, stack.mixes, stack.dilations):
        f, g = (gate(taps(h, 3, d, True)) + cond(c)[:, None]).chunk(2, -1)
        r, s = mix(f.tanh() * g.sigmoid()).split([8, 6], -1)
        h, total = (h + r) * math.sqrt(0.5), total + s
    torch.testing.assert_close(stack(x, c), stack.last(total))


def test_causality_and_reach():
    net, codes = lively(), torch.randint(256, (1, 300))
    other = codes.clone()
    other[0, 100] = (codes[0, 100] + 99) % 256
    with torch.no_grad():
        change = (net(other) - net(codes))[0].norm(dim=0)
    assert change[:101].max() == 0 and change[101] > 0 and change[101 + net.receptive_field :].max() == 0


def test_log_prob_is_a_normalised_mass():
    "On three classes and four samples all sequences can be listed, and their probabilities add up to one."
    net = lively(classes=3, width=8, skip=8, blocks=1, layers=2)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    assert torch.isclose(net.log_prob_codes(every).exp().sum(), torch.tensor(1.0), atol=1e-5)


def test_log_prob_of_waveforms_is_that_of_their_codes():
    net, x = lively(), torch.rand(2, 200) * 2 - 1
    torch.testing.assert_close(net.log_prob(x), net.log_prob_codes(mulaw_encode(x)))
    assert (net.log_prob(x) < 0).all()


@pytest.mark.parametrize("kwargs", [{}, dict(kernel=2, output="sigmoid"), dict(kernel=1, input="scalar", width=12, skip=20), STEERED,
                                    STEERED | dict(upsample="nearest"), dict(cond_global=3), dict(width=10, classes=100)])
@pytest.mark.parametrize("prompted", [False, True])
def test_all_methods_make_the_same_codes(kwargs, prompted):
    net = lively(**kwargs)
    given = {k: v for k, v in steering().items() if getattr(net.config, dict(cond="cond_global", local="cond_local")[k])}
    prompt = torch.randint(net.config.classes, (1, 150), generator=seeded()) if prompted else None
    draw = lambda method: sample_codes(net, 2, 400, seeded(), 0.8, prompt, method=method, **given)
    fast, cached, naive = (draw(m) for m in ("fast", "cached", "naive"))
    assert torch.equal(fast, cached) and torch.equal(cached, naive)
    assert len(fast.unique()) > 20 and not torch.equal(fast[0, 150:], fast[1, 150:])
    if prompted:
        assert torch.equal(fast[:, :150], prompt.expand(2, -1))


def test_fast_equals_cached_over_thousands_of_samples():
    "The laptop model, past its receptive field of 6141 samples would take minutes; dilations wrap in any case after 2 * 256."
    net = lively(blocks=3, layers=8, width=32, skip=64)
    fast, cached = (sample_codes(net, 3, 3000, seeded(), method=m) for m in ("fast", "cached"))
    assert torch.equal(fast, cached) and net.receptive_field < 3000


def test_chunks_do_not_matter():
    net, u = lively(), torch.rand(1, 500, dtype=torch.float64).numpy()
    a, b = np.zeros((1, 500), np.int64), np.zeros((1, 500), np.int64)
    generation._sample_fast(net, a, 0, u, 1.0, None, lambda n: None)
    generation._sample_fast(net, b, 0, u, 1.0, None, lambda n: None, chunk=7)
    assert np.array_equal(a, b)


def test_chain_rule():
    net, codes = lively(), torch.randint(256, (2, 150), generator=seeded())
    steps, total = CachedSteps(net, 2), 0.0
    for i in range(150):
        logits = torch.from_numpy(steps(codes[:, i - 1].numpy() if i else None)).double()
        total = total + logits.log_softmax(-1)[range(2), codes[:, i]]
    torch.testing.assert_close(total.float(), net.log_prob_codes(codes), rtol=1e-5, atol=1e-3)


def test_sampling_follows_the_model():
    "Frequencies of the first sample over many waveforms match its predicted distribution."
    net = lively(classes=5)
    first = sample_codes(net, 4000, 1, seeded())[:, 0]
    want = net(torch.zeros(1, 1, dtype=torch.int64))[0, :, 0].softmax(0)
    assert (torch.bincount(first, minlength=5) / 4000 - want).abs().max() < 0.03


def test_temperature_sharpens():
    net = lively()
    cold, warm = (sample_codes(net, 4, 300, seeded(), temperature=v) for v in (0.05, 1.0))
    assert net.log_prob_codes(cold).mean() > net.log_prob_codes(warm).mean()


def test_waveform_prompt_and_progress(capsys):
    net, x = lively(), torch.linspace(-0.9, 0.9, 80)[None]
    out = net.sample(2, 120, seeded(), prompt=x, progress=True)
    assert out.shape == (2, 120) and out.dtype == torch.float32 and out.abs().max() <= 1
    torch.testing.assert_close(out[:, :80], mulaw_decode(mulaw_encode(x)).expand(2, -1))
    assert "sampling" in capsys.readouterr().err


def test_without_numba(monkeypatch):
    real = builtins.__import__
    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "numba":
            raise ImportError(name)
        return real(name, *args, **kwargs)
    net = lively()
    want = sample_codes(net, 1, 60, seeded())
    monkeypatch.setattr(builtins, "__import__", missing)
    assert torch.equal(sample_codes(net, 1, 60, seeded()), want)
    with pytest.raises(ModuleNotFoundError, match="numba"):
        sample_codes(net, 1, 60, method="fast")


def test_import_needs_no_numba():
    code = "import sys; sys.modules['numba'] = None; import sepnb.wavenet"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_read_only_install(monkeypatch):
    "Where numba finds no folder for its cache it compiles without one."
    import numba

    real = numba.njit
    def njit(*args, cache=False, **kwargs):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **kwargs)
    monkeypatch.setattr(numba, "njit", njit)
    generation._compiled.cache_clear()
    try:
        net = lively()
        assert torch.equal(sample_codes(net, 1, 30, seeded(), method="fast"), sample_codes(net, 1, 30, seeded(), method="cached"))
    finally:
        generation._compiled.cache_clear()


def test_conditioning_steers_every_gate():
    net, codes = lively(**STEERED), torch.randint(256, (2, 400))
    given = steering()
    base = net(codes, **given)
    assert not torch.allclose(base, net(codes, **given | dict(cond=given["cond"] + 1)))
    later = given["local"].clone()
    later[:, 6:] += 1  # frame 6 is sample 300; linear interpolation starts towards it at 250
    change = (net(codes, given["cond"], later) - base).abs().amax((0, 1))
    assert change[:251].max() == 0 and change[251:].min() > 0
    assert len(net.stack.conds) == 10


@pytest.mark.parametrize("change, message", [
    (dict(local=torch.zeros(2, 9, 2)), "8"), (dict(local=torch.zeros(2, 7, 2)), "one frame per 50 samples"),
    (dict(local=torch.zeros(2, 8, 3)), "local"), (dict(cond=torch.zeros(2, 4)), "global"), (dict(cond=torch.zeros(3, 3)), "global"),
    (dict(cond=None), "needs the global"), (dict(local=None), "needs the local"),
    (dict(cond=torch.full((2, 3), math.nan)), "finite"), (dict(local=torch.zeros(2, 8, 2, dtype=torch.int64)), "float")])
def test_conditioning_errors(change, message):
    net = lively(**STEERED)
    for f in (lambda **k: net(torch.zeros(2, 400, dtype=torch.int64), **k), lambda **k: net.sample(2, 400, **k)):
        with pytest.raises(ValueError, match=message):
            f(**steering() | change)


@pytest.mark.parametrize("codes, message", [
    (torch.full((1, 5), 256), "0..255"), (torch.full((1, 5), -1), "0..255"), (torch.zeros(1, 5), "int64"),
    (torch.zeros(1, 5, dtype=torch.int32), "int64"), (torch.zeros(5, dtype=torch.int64), "shape"), (torch.zeros(1, 0, dtype=torch.int64), "shape")])
def test_bad_codes(codes, message):
    for f in (lively(), lively().log_prob_codes):
        with pytest.raises(ValueError, match=message):
            f(codes)


@pytest.mark.parametrize("kwargs, message", [
    (dict(prompt=torch.zeros(1, 51)), "51 samples"), (dict(prompt=torch.zeros(3, 20)), "prompts"), (dict(temperature=0.0), "temperature"),
    (dict(temperature=-1.0), "temperature"), (dict(temperature=math.nan), "temperature"), (dict(method="slow"), "unknown method"),
    (dict(cond=torch.zeros(2, 3)), "without global"), (dict(local=torch.zeros(2, 3, 1)), "without local")])
def test_bad_sampling(kwargs, message):
    with pytest.raises(ValueError, match=message):
        lively().sample(2, 50, **kwargs)


@pytest.mark.parametrize("kwargs", [dict(width=0), dict(classes=1), dict(cond_local=-1), dict(hop=0), dict(upsample="cubic"),
                                    dict(input="onehot"), dict(output="softmax")])
def test_bad_config(kwargs):
    with pytest.raises(ValueError):
        WaveNetConfig(**kwargs)


def test_bad_waveforms():
    net = lively()
    for x in (torch.full((1, 50), 1.5), torch.full((1, 50), math.nan), torch.zeros(50), torch.zeros(1, 50, dtype=torch.int16)):
        with pytest.raises(ValueError):
            net.log_prob(x)


def test_weights_round_trip(tmp_path):
    net = lively(**STEERED)
    save_weights(net, tmp_path / "w.safetensors", dtype=torch.float32)
    copy = WaveNet(net.config)
    load_weights(copy, tmp_path / "w.safetensors")
    assert torch.equal(sample_codes(net, 1, 100, seeded(), **steering(1, 100)), sample_codes(copy, 1, 100, seeded(), **steering(1, 100)))


def test_sigmoid_output_has_a_floor():
    net = lively(output="sigmoid")
    for p in net.stack.last.parameters():
        p.data.mul_(100)
    lp = net.log_prob_codes(torch.randint(256, (4, 200))) / 200
    assert (lp <= -math.log(1 + 255 / math.e)).all() and (lp >= -math.log(1 + 255 * math.e)).all()


def test_smoke_training_and_listening():
    net, metrics = train_conditional("smoke", progress=False)
    assert np.isfinite(metrics.loss).all() and net.config.cond_global == 4
    x = tone("square", torch.full((8192,), 300.0))
    assert abs(f0_track(x)[1].median() - 300) < 1 and guess_source(x) == "square"
    with pytest.raises(ValueError, match="unknown preset"):
        train_conditional("huge")


def test_sampling_speed():
    table = sampling_speed(WaveNetConfig(blocks=1, layers=4, width=8, skip=8), budget=0.02, repeat=1)
    assert list(table.method) == ["naive", "cached", "fast"] and (table.samples_per_second > 0).all()
