"""Next-scale prediction: inputs of each scale written out, who sees whom, decoding against the parallel form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo


def opened(**options: Any) -> Any:
    model: Any = zoo.create_model("next_scale_nano", dtype=torch.float64, dim=32, depth=2, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def tokens(batch: int = 2) -> torch.Tensor:
    return torch.randint(16, (batch, 2, 21))


def test_a_scale_reads_the_sum_of_the_coarser_ones():
    model, x = opened(), tokens()
    maps = model.maps(x)
    first = model.quantizer.codes(x[:, :, :1].mT[:, None], torch.float64)
    assert torch.equal(maps[0], first.expand(-1, -1, 2, 2).flatten(2).mT)
    second = model.quantizer.codes(x[:, :, 1:5].mT.unflatten(1, (2, 2)), torch.float64)
    total = first.expand(-1, -1, 4, 4) + 0.5 * F.interpolate(second, (4, 4), mode="bilinear")
    torch.testing.assert_close(maps[1], total.flatten(2).mT)
    assert len(model.maps(x[:, :, :5])) == 2 and len(maps) == 3


def test_a_scale_sees_no_finer_one():
    model, x = opened(), tokens(1)
    classes = torch.tensor([3])
    before = model(x, classes=classes)
    for place, start in ((0, 1), (3, 5), (12, 21)):  # of the first, second and third scale
        changed = x.clone()
        changed[0, 1, place] = (changed[0, 1, place] + 1) % 16
        apart = (model(changed, classes=classes) - before).abs().amax((0, 1, 3))
        assert apart[:start].max() < 1e-12 and (start == 21 or apart[start:].min() > 1e-9)
    assert (model(x, classes=torch.tensor([4])) - before).abs().amin() > 0


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_decoding_is_the_parallel_form(guidance):
    model, classes, seen = opened(), torch.tensor([1, 7]), []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    made = model.decode(2, choose, classes=classes, guidance=guidance)
    wanted, none = model(made, classes=classes), model(made)
    weight = guidance * torch.tensor([0.0, *[0.5] * 4, *[1.0] * 16], dtype=torch.float64)[:, None]
    torch.testing.assert_close(torch.cat(seen, 2), (1 + weight) * wanted - weight * none)
    assert torch.equal(made, model.sample(2, classes=classes, temperature=0, guidance=guidance))
    begun = model.decode(2, choose, classes=classes, guidance=guidance, given=made[:, :, :5])
    assert torch.equal(begun, made)
    assert torch.equal(model.decode(2, choose, classes=classes, guidance=guidance, stop=2), made[:, :, :5])


def test_samples_follow_the_softmax():
    model = opened().train()
    drawn = model.sample(4000, generator=torch.Generator().manual_seed(0))
    assert model.training
    law = model.eval()(drawn[:1])[0, :, 0].softmax(-1)  # of the first scale, which has no history
    for group in range(2):
        counts = torch.bincount(drawn[:, group, 0], minlength=16) / 4000
        assert (counts - law[group]).abs().max() < 0.03
    kept = model.sample(500, top_k=2)[:, 0, 0].unique()
    assert set(kept.tolist()) <= set(law[0].topk(2).indices.tolist())


def test_classes_are_hidden_in_training():
    model, x = opened(class_drop_rate=0.5).train(), tokens(64)
    wanted, none = model.eval()(x, classes=torch.full((64,), 3)), model(x)
    torch.manual_seed(0)
    seen = model.train()(x, classes=torch.full((64,), 3))
    hidden = torch.tensor([torch.equal(a, b) for a, b in zip(seen, none, strict=True)])
    given = torch.tensor([torch.equal(a, b) for a, b in zip(seen, wanted, strict=True)])
    assert (hidden ^ given).all() and 16 < hidden.sum() < 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (2, 1)}, "scales must rise"),
        ({"num_heads": 5}, "num_heads must divide dim, got 5 and 96"),
        ({"class_drop_rate": 1.0}, r"class_drop_rate must be in \[0, 1\)"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("next_scale_nano", **options)


def test_errors_of_inputs():
    model = opened()
    with pytest.raises(ValueError, match=r"tokens must be int64 of shape \(batch, 2, 21\)"):
        model(torch.zeros(1, 21, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"classes must have shape \(2,\)"):
        model(tokens(), classes=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="batch_size must be at least 1 and guidance at least 0, got 0"):
        model.sample(0)
