"""Three ways to train one model of the plane: densities integrate to one, losses are what they are called, and the model is told what it is told."""
import math

import pytest
import torch

from sepnb.modes import BITS, SPREAD, WAYS, Adversary, Few, by_likelihood, by_reversal, centres, covering, draw_points, fitted_points, log_target, model_of, modes_plane, tune

random = lambda k=0: torch.Generator().manual_seed(k)


def perfect():
    "One component a mode, where the modes are."
    model = Few(BITS, 1).requires_grad_(False)
    model.means[:, 0], model.shape[:] = centres(), math.log(SPREAD) * torch.eye(2)
    return model


@pytest.mark.parametrize("bits", range(BITS + 1))
def test_points_have_the_density_that_they_are_said_to_have(bits):
    "Its entropy, known in closed form where modes do not overlap, against the mean over points."
    x, mode = draw_points(20_000, random())
    entropy = (BITS - bits) * math.log(2) + 1 + math.log(2 * math.pi * SPREAD**2)
    assert -log_target(x, mode >> (BITS - bits), bits).mean().item() == pytest.approx(entropy, abs=0.03)


def test_a_point_is_impossible_under_another_condition():
    x, mode = draw_points(50, random())
    assert (log_target(x, (mode + 4) % 8, BITS) < log_target(x, mode, BITS) - 50).all()


@pytest.mark.parametrize("loss", [by_likelihood, by_reversal])
def test_no_loss_is_lower_than_that_of_the_truth(loss):
    x, mode = draw_points(4000, random())
    right, wrong = perfect(), perfect()
    wrong.means += 0.1
    assert loss(right, x, mode, BITS, random(1)) < loss(wrong, x, mode, BITS, random(1))


def test_the_gradient_of_the_weights_is_exact():
    "Reversed divergence of weights alone has a closed form if components are apart: sum of w log w, plus what the target gives each."
    model = Few(0, 2, random())
    with torch.no_grad():
        model.means[0], model.shape[:], model.weights[0] = centres()[:2] * 1.0, math.log(SPREAD) * torch.eye(2), torch.tensor([0.3, -0.4])
    model.means.requires_grad_(False), model.shape.requires_grad_(False)
    by_reversal(model, None, torch.zeros(20_000, dtype=torch.int64), 0, random()).backward()
    w = model.weights.detach()[0].softmax(0)
    exact = w * (w.log() - (w * w.log()).sum())
    assert torch.allclose(model.weights.grad[0], exact, atol=0.01)


def test_the_adversary_trains_itself_and_leaves_the_model_alone():
    model, adversary = Few(1, generator=random()), Adversary(1)
    x, mode = draw_points(64, random())
    before, net = [p.clone() for p in model.parameters()], [p.clone() for p in adversary.net.parameters()]
    loss = adversary(model, x, mode >> 2, 1, random())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters())) and all(p.grad is None for p in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(net, adversary.net.parameters()))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_is_covered_is_counted():
    right = covering(perfect(), BITS)
    assert right["covered"] == 8 and right["off"] < 0.03 and abs(right["reverse"]) < 1e-5
    one = perfect()
    one.means[:, 0] = centres()[0]
    missing = covering(one, BITS)
    assert missing["covered"] == 1 and missing["off"] == pytest.approx(7 / 8, abs=0.03) and missing["forward"] > 10


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_repeated_number_for_number(way):
    one, two, other = (fitted_points(way, 1, "smoke", seed) for seed in (0, 0, 1))
    assert torch.equal(one.means, two.means) and not torch.equal(one.means, other.means)


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="unknown way 'magic'; choose one of likelihood, reversed, adversary"):
        fitted_points("magic", 0, "smoke")


def test_models_come_back_from_their_numbers():
    frame = modes_plane("smoke")
    row = frame[(frame.way == "reversed") & (frame.bits == 2)].iloc[0]
    assert torch.allclose(model_of(row).means, fitted_points("reversed", 2, "smoke").means, rtol=1e-3)


def test_the_centre_of_the_ring_is_rough_and_modes_are_pure():
    pure, rough = tune(centres()[:1], 0.5), tune(0.2 * centres()[:1], 0.5)
    peaks = [((S := torch.fft.rfft(x).abs()) > 0.3 * S.max()).nonzero()[:, 0].diff().gt(5).sum().item() + 1 for x in (pure, rough)]
    assert peaks == [1, 2]
