"""StreamBP: exact for every size of chunk, and how much is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.train.memory import lean
from zoo.train.memory.count import Saved, saved_bytes

SHAPE: dict[str, Any] = {"depth": 2, "dim": 32, "mlp_dim": 96}


def text(length: int = 60) -> Tensor:
    return torch.randint(0, 255, (2, length), generator=torch.Generator().manual_seed(0))


def gradients(model: Any, tokens: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(tokens, labels=tokens).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transformer_nano", SHAPE),
        ("transformer_nano", {**SHAPE, "num_kv_heads": 4, "norm_order": "both", "qk_norm": "head"}),
        ("transformer_nano", {**SHAPE, "attention_sinks": True}),
        ("transformer_nano", {**SHAPE, "window": 11, "full_layers": (1,), "attention_softcap": 5.0}),
        ("mamba2_nano", {"depth": 2}),
        ("falcon_h1_nano", {"depth": 2}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk_size", [60, 24, 7])
def test_gradients_are_those_of_the_whole_sequence(name, options, chunk_size):
    model: Any = zoo.create_model(name, dtype=torch.float64, **options).train()
    expected, loss = gradients(model, text()), model(text(), labels=text())
    lean(model, "streambp", chunk_size=chunk_size)
    assert torch.allclose(model(text(), labels=text()), loss, rtol=0, atol=1e-12)
    for found, wanted in zip(gradients(model, text()), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def kept(kind: str | None, **options: Any) -> Saved:
    model: Any = zoo.create_model("transformer_nano", **SHAPE | {"depth": 4, "vocab_size": 64}).train()
    if kind is not None:
        lean(model, kind, **options)
    tokens = text(512) % 64
    return saved_bytes(model, lambda: model(tokens, labels=tokens))


def test_kept_is_an_input_a_block_and_most_a_chunk_of_one_block():
    """As much as checkpointing between the passes; what the backward pass keeps besides goes with the chunk."""
    plain, checkpointing = kept(None), kept("checkpointing")
    small, large = kept("streambp", chunk_size=64), kept("streambp", chunk_size=256)
    stream = 2 * 512 * 32 * 4
    assert small.between == large.between < 1.1 * checkpointing.between < 0.25 * plain.between
    assert 4 * stream < small.between < 8 * stream, "four inputs, and what norm and loss keep"
    assert small.most < large.most < plain.most
    assert small.most - small.between < 0.5 * (large.most - large.between)


def test_logits_are_never_whole(monkeypatch):
    """Even of a head that is no plain matrix."""
    model: Any = zoo.create_model("transformer_nano", **SHAPE)
    lean(model.train(), "streambp", chunk_size=16)
    largest = []
    nn.Module.register_forward_hook(model.head, lambda _, __, output: largest.append(output.numel()))
    tokens = text(600)
    model(tokens, labels=tokens).backward()
    assert largest and max(largest) <= 512 * 256 < tokens.numel() * 256


@pytest.mark.parametrize("name", ["transformer_nano", "falcon_h1_nano"])
@pytest.mark.parametrize("cast", [True, False])
def test_low_precision_is_as_near_as_plain_training(name, cast):
    """Under autocast, and of a model in bfloat16."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, depth=2).train().to(torch.float32 if cast else torch.bfloat16)
    exact: Any = zoo.create_model(name, depth=2).train()
    exact.load_state_dict(model.state_dict())
    wanted = torch.cat([gradient.flatten() for gradient in gradients(exact, text())])

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            found = torch.cat([gradient.float().flatten() for gradient in gradients(model, text())])
        return ((found - wanted).norm() / wanted.norm()).item()

    plain = error()
    lean(model, "streambp", chunk_size=7)
    assert error() < 1.2 * plain < 0.03


def test_dropout_draws_the_same_twice():
    class Dropped(nn.Module):
        def __init__(self, mlp: nn.Module):
            super().__init__()
            self.mlp = mlp

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.mlp(x), 0.5)

    model: Any = zoo.create_model("transformer_nano", dtype=torch.float64, **SHAPE).train()
    model.blocks[0].mlp = Dropped(model.blocks[0].mlp)
    lean(model, "streambp", chunk_size=16)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return model(text(), labels=text())

    loss().backward()
    weight = model.blocks[0].mixer.q_proj.weight
    step = torch.randn_like(weight) * 1e-6
    before, change = loss(), (weight.grad * step).sum()
    weight.data += step
    assert (loss() - before).item() == pytest.approx(change.item(), rel=1e-3)


def test_a_weight_that_was_changed_before_the_backward_pass_is_an_error():
    model: Any = zoo.create_model("transformer_nano", **SHAPE).train()
    lean(model, "streambp", chunk_size=16)
    loss = model(text(), labels=text())
    with torch.no_grad():
        model.blocks[0].mlp.w1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_nano", {}, "causal blocks"),
        ("zamba2_nano", {}, "causal blocks"),
        ("moe_nano", {}, "side losses"),
        ("mod_nano", {}, "side"),
        ("scatterbrain_nano", {}, "blocks.0.mixer .* computes a whole sequence in training as no chunks of it are"),
        ("transformer_nano", {"adapter": {"kind": "sink_lora", "groups": 2}}, "computes a whole sequence"),
        ("longconv_nano", {"kernel_dropout": 0.1}, "computes a whole sequence"),
    ],
)
def test_models_that_cannot_be_streamed(name, options, message):
    model: Any = zoo.create_model(name, device="meta", **options)
    with pytest.raises(ValueError, match=f"{message}.*: take checkpointing"):
        lean(model, "streambp")
    assert not model.grad_checkpointing


def test_a_window_alone_can_be_streamed_where_hashes_cannot():
    torch.manual_seed(0)
    model: Any = zoo.create_model("scatterbrain_nano", dtype=torch.float64, num_hashes=0, window=16).train()
    expected = gradients(model, text())
    lean(model, "streambp", chunk_size=7)
    for found, wanted in zip(gradients(model, text()), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
