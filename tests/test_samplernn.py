"""SampleRNN and strided attention: what is drawn with a memory is what is drawn without one, nothing hears the future, and the folded attention is the masked one."""
import math

import pytest
import torch
import torch.nn.functional as F

from sepnb.coverage import FAMILIES
from sepnb.samplernn import RECIPES_SAMPLERNN, SampleRNN, SampleRNNConfig, drawn_codes
from sepnb.strided import RECIPES_STRIDED, SHORT, Strided, StridedBlock, StridedConfig, multiplications, patterns, seen, strided_codes
from sepnb.training import nll

MODELS = {"samplernn": (SampleRNN, SampleRNNConfig(frame=4, width=8, up=3, embed=2, hidden=8), drawn_codes),
          "strided": (Strided, StridedConfig(width=16, heads=4, layers=2, stride=5), strided_codes)}


def made(name):
    torch.manual_seed(0)
    kind, config, draw = MODELS[name]
    return kind(config), draw


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("t", (1, 4, 5, 23))
def test_cached_sampling_is_naive_sampling(name, t):
    model, draw = made(name)
    with torch.no_grad():
        cached, codes, g = draw(model, 3, t, torch.Generator().manual_seed(1)), torch.zeros(3, t, dtype=int), torch.Generator().manual_seed(1)
        for i in range(t):
            mass = model(codes[:, : i + 1])[:, i].softmax(-1).cumsum(-1)
            codes[:, i] = (mass < torch.rand(3, 1, generator=g) * mass[:, -1:]).sum(-1)
    assert cached.equal(codes)
    assert model.sample(3, t, torch.Generator().manual_seed(1)).shape == (3, t)


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_hears_all_before_it_and_nothing_else(name):
    model, _ = made(name)
    codes = torch.randint(256, (1, 27))
    with torch.no_grad():
        for i in range(27):
            other = codes.clone()
            other[0, i] = (other[0, i] + 90) % 256
            heard = ((model(codes) - model(other)).abs().amax(-1)[0] > 1e-7).nonzero()[:, 0].tolist()
            assert heard == list(range(i + 1, 27))


@pytest.mark.parametrize("name", MODELS)
def test_masses_sum_to_one_and_have_gradients(name):
    model, _ = made(name)
    first = torch.linspace(-1, 1, 2001)[:, None]
    codes = torch.arange(256)[:, None]
    mass = model(codes).detach().log_softmax(-1)[:, 0].gather(1, codes).exp().sum()
    assert abs(mass - 1) < 1e-5 and (model.log_prob(first) < 0).all()
    nll(model, 2 * torch.rand(2, 13) - 1).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for n, p in model.named_parameters())


@pytest.mark.parametrize("t, stride", ((1, 4), (4, 4), (7, 4), (33, 8), (64, 8)))
def test_folded_attention_is_masked_attention(t, stride):
    torch.manual_seed(2)
    block, x = StridedBlock(16, 4, stride), torch.randn(2, t, 16)
    masked = block.answered(x, F.scaled_dot_product_attention(*block.asked(x, torch.arange(t)), attn_mask=patterns(t, stride).repeat_interleave(2, 0)))
    assert torch.allclose(block(x), masked, atol=1e-5)
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(seen(t, stride), (patterns(t, stride).float().sum((1, 2)) / t).tolist()))


def test_a_stride_of_the_root_costs_the_root():
    costs = [multiplications(StridedConfig(stride=s), s * s)[0] for s in (32, 64, 128)]
    assert all(abs(b / a - 2) < 0.02 for a, b in zip(costs, costs[1:]))


def test_what_is_kept_is_what_is_said():
    model, _ = made("strided")
    assert model.memory(3) == 2 * 2 * 16 * 3, "all of a short past"
    assert sum(v.numel() for b in model.blocks for v in b.ring(1, 40)) == model.memory(40)


def test_sizes_and_bad_input():
    for kind, recipes in ((SampleRNN, RECIPES_SAMPLERNN), (Strided, RECIPES_STRIDED), (Strided, SHORT)):
        assert sum(p.numel() for p in kind(recipes["laptop"][0]).parameters()) <= 200_000
    assert FAMILIES["samplernn"].says == FAMILIES["strided"].says == "mass"
    for name in MODELS:
        model, draw = made(name)
        with pytest.raises(ValueError, match="at least 1"):
            draw(model, 0, 3)
        with pytest.raises(ValueError, match="shape"):
            model.log_prob(torch.zeros(4))
    with pytest.raises(ValueError, match="heads must be even"):
        StridedConfig(heads=3)
    with pytest.raises(ValueError, match="frame must be at least 1"):
        SampleRNNConfig(frame=0)
    with pytest.raises(ValueError, match="stride"):
        strided_codes(Strided(StridedConfig(width=8, heads=2, layers=1, stride=0)), 1, 2)
