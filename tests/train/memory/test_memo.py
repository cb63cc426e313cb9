"""MEMO: the gradients for every share, what is moved, and the share that hides behind computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.train.memory import lean, memo, swap_share
from zoo.train.memory.spool import Spool

SHAPE: dict[str, Any] = {"dim": 32, "depth": 4, "mlp_dim": 96, "num_kv_heads": 4}
MODELS = {
    "plain": {},
    "gemma": {"norm_order": "both", "qk_norm": "head", "window": 11, "full_layers": (1,), "attention_softcap": 9.0},
    "sinks": {"attention_sinks": True, "qkv_bias": True, "num_kv_heads": 2, "qk_norm": "joint"},
}


def text(length: int = 50) -> Tensor:
    return torch.randint(0, 255, (2, length), generator=torch.Generator().manual_seed(0))


def gradients(model: Any, tokens: Tensor, **options: Any) -> list[Tensor]:
    model.zero_grad()
    model(tokens, labels=tokens).backward(**options)
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("batch", [(2, 50), (1, 32), (4, 8)])  # also as many tokens as channels
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradients_are_those_of_plain_training(alpha, kind, batch):
    model: Any = zoo.create_model("transformer_nano", dtype=torch.float64, **SHAPE | MODELS[kind]).train()
    tokens = text(400).flatten()[: batch[0] * batch[1]].view(batch)
    expected = gradients(model, tokens)
    lean(model, "memo", alpha=alpha, keep=1)
    for found, wanted in zip(gradients(model, tokens), expected, strict=True):
        if alpha == 1:
            assert torch.equal(found, wanted)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.1, 0.9])
def test_long_texts_and_short_rests_are_computed_in_the_same_way(alpha):
    """Norms and rotations compute few numbers by other operations than many, which save other tensors."""
    model: Any = zoo.create_model("transformer_nano", **SHAPE | {"dim": 128}).train()
    tokens = text(1200)[:1]
    expected = gradients(model, tokens)
    lean(model, "memo", alpha=alpha, keep=1)
    for found, wanted in zip(gradients(model, tokens), expected, strict=True):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_moved_bytes_grow_with_alpha_and_attention_is_computed_once(monkeypatch):
    """Input and output of attention whole, of the rest the share: a line in alpha."""
    spools: list[Spool] = []

    def noted(*arguments: Any) -> Spool:
        spools.append(Spool(*arguments))
        return spools[-1]

    monkeypatch.setattr(memo, "Spool", noted)
    attended, attend = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention", lambda *a, **k: attended.append(1) or attend(*a, **k)
    )
    model: Any = zoo.create_model("transformer_nano", **SHAPE).train()
    for alpha in (0.0, 0.5, 1.0):
        memory = lean(model, "memo", alpha=alpha)
        loss = model(text(64), labels=text(64))
        for write in spools[-1].writes:
            write.result()
        assert spools[-1].held == 0, "nothing of these blocks is in memory between the passes"
        loss.backward()
        memory.remove()
    assert len(attended) == 3 * SHAPE["depth"]
    none, half, whole = (spool.written for spool in spools)
    stream = 2 * 64 * 32 * 4
    assert 2 * 2 * stream <= none <= 2 * 3 * stream, "of two blocks"
    assert half - none == pytest.approx((whole - none) / 2, rel=0.1) and whole > 5 * none


def test_share_that_hides_behind_computation():
    """The closed form against the linear program by a fine grid."""
    grid = torch.linspace(0, 1, 100001, dtype=torch.float64)
    for seconds, bandwidth, whole, other, host, blocks in (
        (1.0, 10.0, 2.0, 14.0, math.inf, 12), (1.0, 10.0, 2.0, 14.0, 60.0, 12), (9.0, 10.0, 2.0, 14.0, math.inf, 4),
        (0.1, 10.0, 2.0, 14.0, math.inf, 4),
    ):  # fmt: skip
        fits = (whole + grid * other <= bandwidth * seconds) & ((blocks - 2) * (whole + grid * other) <= host)
        best = float(grid[fits].max()) if fits.any() else 0.0
        options: dict[str, Any] = {"host": host, "blocks": blocks}
        found = swap_share(seconds=seconds, bandwidth=bandwidth, whole=whole, other=other, **options)
        assert found == pytest.approx(best, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mamba2_nano", {}, "mixes tokens by Mamba2"),
        ("vit_nano", {}, "causal attention"),
        ("moe_nano", {}, "not of single tokens"),
        ("transformer_nano", {"alpha": 1.2}, "alpha must be in"),
    ],
)
def test_models_and_options_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        lean(zoo.create_model(name, device="meta"), "memo", **options)
