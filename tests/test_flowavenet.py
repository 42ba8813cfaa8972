"""FloWaveNet against an independent reading of it: channels first, convolutions, and the squeeze as its authors' code has it."""
import math

import pytest
import torch
import torch.nn.functional as F

from sepnb.flowavenet import FloWaveNet, FloWaveNetConfig


def conv(x, linear, kernel, dilation=1): # (b, c, t) through a linear layer on taps, as a convolution
    weight = linear.weight.view(linear.out_features, kernel, -1).transpose(1, 2)
    return F.conv1d(x, weight, linear.bias, padding=dilation * (kernel - 1) // 2, dilation=dilation)


def network(net, x): # front convolution and ReLU, gated residual layers, skip sum, ReLU, 1x1, ReLU, 1x1
    h, total = F.relu(conv(x, net.first, net.kernel)), 0.0
    for gates, mix, d in zip(net.gates, net.mixes, net.dilations):
        a, b = conv(h, gates, net.kernel, d).chunk(2, 1)
        out = conv(torch.tanh(a) * torch.sigmoid(b), mix, 1)
        h, total = (h + out[:, : net.width]) * math.sqrt(0.5), total + out[:, net.width :]
    return conv(F.relu(conv(F.relu(total), net.last[1], 1)), net.last[3], 1)


def reference(model, x): # (b, t) -> log-likelihood (b,)
    h, logdet = x[:, None], 0.0
    for block in model.blocks:
        b, c, t = h.shape
        h = h.view(b, c, t // 2, 2).permute(0, 1, 3, 2).reshape(b, 2 * c, t // 2)
        for flow in block:
            scale = flow.norm.log_scale.exp()[:, None]
            h, logdet = (h + flow.norm.shift[:, None]) * scale, logdet + scale.log().sum() * h.shape[2]
            keep, change = h.chunk(2, 1)
            log_s, shift = network(flow.coupling.net, keep).chunk(2, 1)
            h, logdet = torch.cat([(change - shift) * (-log_s).exp(), keep], 1), logdet - log_s.sum((1, 2))
    return -0.5 * (h.square() + math.log(2 * math.pi)).sum((1, 2)) + logdet


@pytest.mark.parametrize("flows", [2, 3])
def test_log_prob_is_that_of_the_authors_architecture(flows):
    torch.manual_seed(0)
    model = FloWaveNet(FloWaveNetConfig(blocks=3, flows=flows, layers=3, width=8)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(2, 64, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(x), reference(model, x), rtol=1e-10, atol=1e-10)


def test_every_coupling_splits_even_from_odd_samples():
    "The half that a coupling of any block keeps holds samples of one parity alone."
    from sepnb.flowavenet import squeeze

    h = torch.arange(32.0).view(1, 32, 1)
    for _ in range(4):
        h = squeeze(h)
        assert [set((half % 2).flatten().tolist()) for half in h.chunk(2, -1)] == [{0.0}, {1.0}]
