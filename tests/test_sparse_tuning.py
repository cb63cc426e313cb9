"""SPT: keep-all is the dense model, selection and routed blocks by their formulas, what learns, saving."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.layers import CausalAttention, CodeMatchedAttention, RMSNorm, SwiGLU
from zoo.layers.attention import ProductQuantizer
from zoo.layers.moe import RoutedBlocks

close = partial(torch.testing.assert_close, atol=1e-9, rtol=1e-9)
HEADS, GROUPS, WIDTH = 4, 2, 8
ADDED = (".down.", ".up.", ".router.", ".codebook", ".delta")
NAMES = ["transformer_nano", "moe_nano", "deepseek_nano"]


def text(length: int = 20) -> Tensor:
    return torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(1))


def attention(keys: int, **options: Any) -> CodeMatchedAttention:
    options = {"num_kv_heads": GROUPS, "head_dim": WIDTH, "codeword_dim": 4, "codewords": 3} | options
    return CodeMatchedAttention(24, HEADS, keys=keys, **options).double().eval()


def by_query(made: CodeMatchedAttention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, list[int]]:
    """q (T, d) over k and v (T, d) of a head, a query at a time; how many keys each saw."""

    def codes(z: Tensor) -> list[int]:
        parts = z.split(4)
        return [int((p - c).abs().sum(-1).argmin()) for p, c in zip(parts, made.quantizer.codebook, strict=True)]

    of_keys, rows, seen = [codes(z) for z in k], [], []
    for t, query in enumerate(q):
        own = codes(query)
        counts = [(sum(a == b for a, b in zip(own, of_keys[s], strict=True)), s) for s in range(t + 1)]
        kept = [s for _, s in sorted(counts, reverse=True)[: made.keys]]
        logits = k[kept] @ query / WIDTH**0.5
        if made.clamp is not None:
            logits = logits.clamp(-made.clamp, made.clamp)
        rows.append(logits.softmax(0) @ v[kept])
        seen.append(len(kept))
    return torch.stack(rows), seen


@pytest.mark.parametrize("clamp", [None, 0.1])
def test_matched_attention_is_its_definition(clamp, monkeypatch):
    """By query head, in parts of a few queries, with its gradients; the newest of equal counts."""
    monkeypatch.setattr("zoo.layers.attention.code_matched.ROWS", 5)
    made = attention(3, clamp=clamp)
    q, k, v = (torch.randn(1, h, 13, WIDTH, dtype=torch.float64, requires_grad=True) for h in (HEADS, GROUPS, GROUPS))
    expected = []
    for head in range(HEADS):
        found, seen = by_query(made, q[0, head], k[0, head // 2], v[0, head // 2])
        expected.append(found)
        assert seen == [1, 2, *[3] * 11]
    given = made.attend(q, k, v, None)
    close(given, torch.stack(expected)[None])
    for ours, theirs in zip(
        *(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (given, torch.stack(expected))), strict=True
    ):
        close(ours, theirs)


def test_all_keys_taken_are_whole_attention():
    made = attention(13)
    q, k, v = (torch.randn(2, h, 13, WIDTH, dtype=torch.float64) for h in (HEADS, GROUPS, GROUPS))
    seen, codes = torch.ones(13, 13, dtype=torch.bool).tril(), made.quantizer.codes(k)
    close(made.among(q, k, v, codes, seen, made.least(q, codes, seen)), CausalAttention.attend(made, q, k, v, None))
    made.keys = 4
    taken = made.ranks(q, codes, seen) >= made.least(q, codes, seen)
    assert torch.equal(taken.sum(-1), torch.arange(1, 14).clamp(max=4).expand(2, HEADS, -1))


def test_the_codebooks_loss_is_its_formula_and_learns():
    made, z = ProductQuantizer(6, codewords=4, width=3, weight=0.5).double(), torch.randn(5, 6, dtype=torch.float64)
    total = 0.0
    for part, codebook in zip(z.split(3, dim=1), made.codebook, strict=True):
        distance = (part[:, None] - codebook).abs().sum(-1)
        hard, soft = codebook[distance.argmin(-1)], (1 / distance).softmax(-1)
        soft = ((1 / distance) / (1 / distance).sum(-1, keepdim=True)) @ codebook
        total = total + ((soft - hard).square().sum() + (part - hard).square().sum()) / z.numel()
    made.learn(z)
    close(made.auxiliary_losses["codebook"], 0.5 * total)
    made.auxiliary_losses["codebook"].backward()
    assert made.codebook.grad.any()


def test_routed_blocks_are_their_formula():
    torch.manual_seed(3)
    source = SwiGLU(10, 12).double()
    made = RoutedBlocks(10, 12, 4, 2, rank=3).double()
    made.take(source)
    for delta in (made.delta1, made.delta3, made.delta2):
        nn.init.normal_(delta.shared, std=0.3)
        nn.init.normal_(delta.each, std=0.3)
    x, rows = torch.randn(2, 7, 10, dtype=torch.float64), []
    d1, d3, d2 = (delta.product() for delta in (made.delta1, made.delta3, made.delta2))
    w1, w3, w2 = source.w1.weight.T, source.w3.weight.T, source.w2.weight.T
    for token in x.flatten(0, 1):
        p, row = made.router(token).sigmoid(), torch.zeros_like(token)
        for e in p.topk(2).indices.tolist():
            block, c = slice(3 * e, 3 * e + 3), 2 * p[e]
            gate, up = (c * token @ w[:, block] + token @ d[e] for w, d in ((w1, d1), (w3, d3)))
            hidden = F.silu(gate) * up
            row = row + c * hidden @ w2[block] + hidden @ d2[e]
        rows.append(row)
    expected = torch.stack(rows).view_as(x)
    close(made(x), expected)
    mask = torch.arange(7) > 2
    close(made(x, mask.expand(2, -1)), expected * mask[:, None])
    assert made.activity["tokens_per_block"].sum() == 2 * 2 * 4
    nn.init.zeros_(made.router.weight)
    nn.init.zeros_(made.router.bias)
    whole = RoutedBlocks(10, 12, 4, 4, rank=3).double()
    whole.load_state_dict(made.state_dict())
    for factor in (whole.delta1.each, whole.delta3.each, whole.delta2.shared):
        nn.init.zeros_(factor)
    close(whole(x), source(x))


@pytest.mark.parametrize("name", NAMES)
def test_keep_all_is_the_model_as_it_was(name):
    model: Any = zoo.create_model(name, dtype=torch.float64).eval()
    expected = model(text())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    zoo.sparse_tuning(model, keys=20, active_blocks=4, rank=3)
    close(model(text()), expected)
    held = {key.replace(".layer.", "."): tensor for key, tensor in model.state_dict().items()}
    assert all(torch.equal(held[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", NAMES[:2])
def test_what_learns_is_added_and_all_of_it_does(name):
    model: Any = zoo.sparse_tuning(zoo.create_model(name, qk_norm="head"), keys=6, rank=3).train()
    learns = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(any(part in key for part in ADDED) for key in learns)
    for key, parameter in model.named_parameters():
        if ".up." in key or ".delta" in key:
            nn.init.normal_(parameter, std=0.1)  # away from 0, where the other factor does not learn
    loss = model(text(), labels=text()) + sum(zoo.auxiliary_losses(model).values())
    assert "codebook" in zoo.auxiliary_losses(model)
    loss.backward()
    assert all((parameter.grad is not None) == (key in learns) for key, parameter in model.named_parameters())
    assert all(parameter.grad.any() for key, parameter in model.named_parameters() if key in learns)


def test_decoding_agrees_with_the_whole_padded_or_not():
    model: Any = zoo.sparse_tuning(zoo.create_model("transformer_nano", dtype=torch.float64), keys=5).eval()
    tokens = text(17)
    expected, state = model(tokens), model.init_state(2)
    steps = torch.cat([model(part, state) for part in tokens.split([9, *[1] * 8], dim=1)], dim=1)
    close(steps, expected)
    ids = torch.tensor([[-1] * 4 + [0] * 17] * 2)
    padded = F.pad(tokens, (4, 0))
    close(model(padded, seq_idx=ids)[:, 4:], expected)
    close(model(tokens.flip(0))[1], expected[0])
    assert not torch.allclose(expected, zoo.create_model("transformer_nano", dtype=torch.float64).eval()(tokens))


def test_saved_reloaded_and_trained_further(tmp_path):
    model: Any = zoo.sparse_tuning(zoo.create_model("transformer_nano"), keys=5, rank=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}")
    assert torch.equal(again.eval()(text()), model.eval()(text()))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


def test_bfloat16_and_autocast_are_finite():
    low: Any = zoo.sparse_tuning(zoo.create_model("transformer_nano", dtype=torch.bfloat16), keys=5)
    assert low(text()).isfinite().all()
    model: Any = zoo.sparse_tuning(zoo.create_model("transformer_nano"), keys=5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(text(), labels=text())
    loss.backward()
    assert loss.isfinite() and model.blocks[0].mlp.router.weight.grad.any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mamba2_nano", {}, "has neither"),
        ("transformer_nano", {"keys": 0}, "keys must be at least 1, got 0"),
        ("transformer_nano", {"rank": 0}, "rank must be at least 1, got 0"),
        ("transformer_nano", {"codeword_dim": 5}, "codeword_dim must divide the width of a head, got 5 for 32"),
        ("transformer_nano", {"codewords": 257}, "codewords must be at most 256"),
        ("transformer_nano", {"blocks": 5}, "num_blocks must divide the inner channels, got 5 for 384"),
        ("transformer_nano", {"active_blocks": 6}, "top_k must lie in"),
    ],
)
def test_wrong_options_say_the_rule_and_change_nothing(name, options, message):
    model = zoo.create_model(name)
    before = model.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        zoo.sparse_tuning(model, **options)
    assert model.state_dict().keys() == before and all(p.requires_grad for p in model.parameters())


def test_norms_of_queries_and_scales_are_kept():
    source = CausalAttention(24, 3, head_dim=8, scale=0.2, q_norm=RMSNorm(8), k_norm=RMSNorm(8)).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    close(CodeMatchedAttention.of(source, keys=9)(x), source(x))
