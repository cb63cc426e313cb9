"""Attention made linear: the attention it was, the equations step by step, its state, saving, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers import CausalAttention, LizardAttention, RMSNorm
from zoo.layers.attention import Rotary

OPTIONS = {"qk_norm": "head", "qkv_bias": True, "attention_softcap": 2.0, "attention_sinks": True, "head_dim": 10}
ALONE = {"window": 40, "meta_tokens": 0, "linear": False}
close = partial(torch.testing.assert_close, atol=1e-9, rtol=1e-9)


def built(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, dtype=torch.float64, **options).eval()


def noisy(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(length: int = 30) -> Tensor:
    return torch.arange(2 * length).reshape(2, length) * 37 % 256


@pytest.mark.parametrize(
    ("name", "options"),
    [("transformer_nano", {}), ("transformer_nano", OPTIONS), ("falcon_h1_nano", {}), ("moe_nano", {})],
)
@torch.no_grad()
def test_a_window_over_all_of_it_is_the_attention_that_was(name, options):
    """The parallel form, and decoding, which goes on from another state."""
    model, x = built(name, **options), tokens()
    expected = model(x)
    assert zoo.linearize(model, **ALONE) is model
    close(model(x), expected)
    state = model.init_state(2)
    close(torch.cat([model(part, state) for part in x.split([12, 1, 17], 1)], 1), expected)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("window", [None, 5])
def test_the_equations_step_by_step(gate, window):
    torch.manual_seed(0)
    attention = CausalAttention(12, 4, 2, head_dim=6, rotary=Rotary(4), q_norm=RMSNorm(6), k_norm=RMSNorm(6))
    layer = noisy(LizardAttention(attention, window, 3, gate=gate, chunk_size=8).double())
    x = torch.randn(1, 20, 12, dtype=torch.float64)
    q, k, v = (proj(x).unflatten(-1, (-1, 6)) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k = layer.q_norm(q), layer.k_norm(k)
    turned_q, turned_k = layer.rotary(torch.arange(20), q, k)
    gates = layer.gate_proj(x).sigmoid()[0] if gate else torch.ones(20, 4)
    found = torch.zeros(20, 4, 6, dtype=torch.float64)
    for head in range(4):
        total, norm = 0.0, 0.0
        for t in range(20):
            query, key = (
                q[0, t, head] @ layer.memory.q_map.weight[head],
                k[0, t, head // 2] @ layer.memory.k_map.weight[head],
            )
            query, key = (torch.cat([y, -y]).exp() for y in (query, key))
            total = gates[t, head] * total + key[:, None] * v[0, t, head // 2]
            norm = gates[t, head] * norm + key
            found[t, head] = query @ total / (query @ norm)
            if window is not None:
                near = slice(max(0, t + 1 - window), t + 1)
                weights = (turned_k[0, near, head // 2] @ turned_q[0, t, head] / 6**0.5).exp()
                share = weights / (layer.sinks[head].exp() + weights.sum())
                found[t, head] += layer.anchor_scale[0] * (share @ v[0, near, head // 2])
    close(layer(x), layer.out_proj(found.flatten(1))[None])


def test_gates_within_the_feature_maps_are_the_recurrence():
    """The paper's form for hardware: features [exp(q W + log C), exp(-q W + log C)], C the product of the gates."""
    torch.manual_seed(0)
    memory = noisy(LizardAttention(CausalAttention(12, 3), None).double()).memory
    q, k, v = torch.randn(3, 1, 20, 3, 4, dtype=torch.float64)
    logits = torch.randn(1, 20, 3, dtype=torch.float64)
    total = logits.sigmoid().log().cumsum(1)[..., None]
    query, key = (memory.q_map(q) + total).exp(), (memory.k_map(k) - total).exp()
    weights = torch.einsum("bthf,bshf->bhts", query, key).tril()
    expected = torch.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdim=True), v)
    close(memory(torch.cat([q.flatten(2), k.flatten(2), v.flatten(2), logits], -1)), expected.flatten(2))


@torch.no_grad()
def test_large_features_stay_numbers():
    layer = LizardAttention(CausalAttention(12, 3), None)
    for features in (layer.memory.q_map, layer.memory.k_map):
        features.weight.mul_(torch.tensor([1.0, 300.0, -1e4])[:, None, None])
    assert layer(10 * torch.randn(2, 300, 12)).isfinite().all()


def test_starts_from_meta_tokens_alike_and_slow_gates():
    layer = LizardAttention(CausalAttention(12, 3), 8, meta_tokens=4)
    assert torch.equal(layer.sinks.exp(), torch.full((3,), 4.0)) and layer.anchor_scale == 1
    assert 0.98 < layer.gate_proj.bias.sigmoid().min() < 0.99


@torch.no_grad()
def test_the_state_does_not_grow():
    model = zoo.linearize(built("transformer_nano", depth=2), window=16)
    state, sizes = model.init_state(2), []
    for _ in range(3):
        model(tokens(), state)
        sizes.append(state.nbytes)
    assert len(set(sizes)) == 1 and sizes[0] == 8 * 2 * model.state_size(30) == 8 * 2 * model.state_size(10**6)


@pytest.mark.parametrize(("share", "kept"), [(0.0, ()), (0.25, (2,)), (0.5, (1, 3)), (0.75, (0, 2, 3)), ((1,), (1,))])
def test_a_share_of_the_blocks_keeps_softmax(share, kept):
    model: Any = zoo.linearize(zoo.create_model("transformer_nano", depth=4, device="meta"), softmax=share)
    assert tuple(i for i, mixer in enumerate(model.mixers) if type(mixer) is CausalAttention) == kept


@torch.no_grad()
def test_saved_reloaded_and_factorised_like_any_model(tmp_path):
    model = zoo.linearize(built("transformer_nano"), window=7, gate=False, softmax=(1,))
    noisy(model)
    zoo.factorize(model, 8, skip=["blocks.1.*"])
    zoo.save_model(model, tmp_path / "model")
    zoo.convert(tmp_path / "model", tmp_path / "converted")
    for folder in ("model", "converted"):
        again = zoo.create_model(f"local-dir:{tmp_path / folder}", dtype=torch.float64).eval()
        assert torch.equal(again(tokens()), model(tokens()))
    assert isinstance(model.mixers[0], LizardAttention) and type(model.mixers[1]) is CausalAttention


def test_the_family_is_what_the_call_makes():
    made = zoo.linearize(zoo.create_model("transformer_nano"), window=32)
    known: Any = zoo.create_model("lizard_nano")
    known.load_state_dict(made.state_dict())
    close(known.eval()(tokens()), made.eval()(tokens()), atol=0.0, rtol=0.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mamba_nano", {}, "MambaLanguageModel has no attention to make linear"),
        ("transformer_nano", {"softmax": 1.0}, r"softmax must be a share of the blocks in \[0, 1\)"),
        (
            "transformer_nano",
            {"softmax": (5,)},
            r"softmax_blocks must be some of the blocks with attention, \[0, 1, 2\]",
        ),
        ("transformer_nano", {"window": 0}, "window must be at least 1, got 0"),
        ("transformer_nano", {"meta_tokens": -1}, "meta_tokens must be at least 0, got -1"),
        ("transformer_nano", {"window": None, "linear": False}, "needs a window, a memory or both"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(name, options, message):
    model = zoo.create_model(name)
    before = model.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        zoo.linearize(model, **options)
    assert model.state_dict().keys() == before
