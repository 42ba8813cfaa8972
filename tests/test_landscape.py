"""Families of the landscape: what cannot be told refuses, and an RQ-VAE with its transformer learns, is stored and draws."""
from dataclasses import replace

import pandas as pd
import pytest
import torch

from sepnb.coverage import FAMILIES, SAMPLES, hear, scale_clips
from sepnb.familiar import RQS, ClipRQ, clip_rq_loss
from sepnb.landscape import UP, measured, told_tune, when_told
from sepnb.registry import discover
from sepnb.store import load_weights, save_weights

CONFIG = RQS["smoke"][0]


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny():
    torch.manual_seed(0)
    return ClipRQ(CONFIG)


def test_what_cannot_be_told_refuses():
    discover()
    for name, family in FAMILIES.items():
        if not family.told:
            with pytest.raises(ValueError, match="cannot be told"):
                family.load("scale", "smoke", told=True)


def test_both_parts_have_the_same_codes():
    with pytest.raises(ValueError, match="2 codebooks of 9 codes and the transformer 2 of 8"):
        replace(CONFIG, autoencoder=replace(CONFIG.autoencoder, codes=9))


def test_both_parts_learn_from_one_loss():
    model, x = tiny().train(), scale_clips("valid").waves[:8]
    clip_rq_loss(model, x, random()).backward()
    for part in (model.autoencoder.down, model.autoencoder.up, model.autoencoder.lstm, model.prior):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


def test_the_transformer_teaches_the_autoencoder_nothing():
    "Codes are whole numbers: what the transformer finds likely does not move the encoder"
    losses, x = [], scale_clips("valid").waves[:8]
    for scale in (1.0, 50.0):
        model = tiny().train()
        with torch.no_grad():
            model.prior.head.mul_(scale)
        clip_rq_loss(model, x, random()).backward()
        losses.append(model.autoencoder.first[0].weight.grad.clone())
    assert torch.equal(*losses)


def test_the_loss_follows_from_its_generator():
    x = scale_clips("valid").waves[:8]
    a, b = (clip_rq_loss(tiny().train(), x, random()).item() for _ in range(2))
    assert a == b


@pytest.mark.parametrize("t", [1, 16, 100, SAMPLES])
def test_clips_have_any_length(t):
    y = tiny().eval().sample(2, t, random())
    assert y.shape == (2, t) and y.isfinite().all()


def test_weights_come_back(tmp_path):
    model, x = tiny().train(), scale_clips("valid").waves[:8]
    clip_rq_loss(model, x, random())  # the codebooks begin
    save_weights(model.eval(), tmp_path / "rq.safetensors", dtype=torch.float32)
    again = ClipRQ(CONFIG)
    load_weights(again, tmp_path / "rq.safetensors")
    assert torch.equal(again.eval().sample(2, 64, random()), model.sample(2, 64, random()))


def test_a_row_holds_what_the_table_shows():
    row = measured("rq", "scale", "smoke", 0, False)
    assert row["nats"] != row["nats"] and 0 <= row["off"] <= 1 and row["parameters"] > 0 and len(row["pitches"].split()) == 24


def test_a_tune_is_played_as_told():
    x = told_tune("true clips", "saw").view(28, SAMPLES)
    heard = hear(x, "scale")
    assert heard.pitches.tolist() == UP + UP[::-1] and (heard.classes == scale_clips("test").names.index("saw")).all()
    assert told_tune("ddsp", preset="smoke").shape == (28 * SAMPLES,)
    with pytest.raises(ValueError, match="cannot be told"):
        told_tune("rq", preset="smoke")


def rows_of(distances):  # {(family, told): levels of the training runs} -> rows as the landscape stores them
    return pd.DataFrame([dict(family=f, told=t, seed=s, off=0.5, level=v, phase=0.1) for (f, t), levels in distances.items() for s, v in enumerate(levels)])


def test_families_that_grow_alike_are_counted():
    frame = rows_of({("wavenet", False): (0.1, 0.2), ("wavegan", False): (0.5, 0.4), ("wavenet", True): (0.2, 0.3), ("wavegan", True): (0.3, 0.6), ("samplernn", False): (0.9, 0.9)})
    tests = when_told(frame).set_index(["histogram", "families"])
    levels = tests.loc["level", "all that play"]
    assert levels.nothing == pytest.approx(0.3) and levels.told == pytest.approx(0.2) and (levels.shrinks, levels.runs) == (1, 2)  # what cannot be told does not count
    assert tests.loc["phase", "all that play"].shrinks == 0


def test_what_is_given_its_phases_is_counted_apart():
    frame = rows_of({("wavenet", False): (0.1,), ("ddsp", False): (0.8,), ("wavenet", True): (0.1,), ("ddsp", True): (0.2,)})
    assert when_told(frame)[lambda t: t.histogram == "level"].nothing.tolist() == pytest.approx([0.7, 0.0])


def test_what_never_plays_is_no_test_of_covering():
    frame = rows_of({("wavenet", False): (0.1,), ("wavegan", False): (0.9,), ("wavenet", True): (0.1,), ("wavegan", True): (0.9,)})
    frame.loc[frame.family == "wavegan", "off"] = 0.99
    assert (when_told(frame).nothing == 0).all()
