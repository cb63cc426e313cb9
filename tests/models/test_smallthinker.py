"""SmallThinker under the names of its authors' files, against its equations in float64; routing before attention."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo.checkpoints.convert import foreign_config, smallthinker
from zoo.convert import convert

Weights = dict[str, Tensor]
DIM, DEPTH, VOCAB, HEADS, KV, WIDTH, EXPERTS, TOP, HIDDEN = 20, 5, 50, 6, 2, 8, 5, 3, 12
CONFIG = {
    "model_type": "smallthinker", "hidden_size": DIM, "num_hidden_layers": DEPTH, "vocab_size": VOCAB,
    "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": WIDTH, "moe_num_primary_experts": EXPERTS,
    "moe_num_active_primary_experts": TOP, "moe_ffn_hidden_size": HIDDEN, "rope_layout": [0, 1, 1, 0, 1],
    "sliding_window_layout": [0, 1, 0, 1, 1], "sliding_window_size": 6, "rope_theta": 300.0, "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False, "norm_topk_prob": True, "rope_scaling": None, "max_position_embeddings": 64,
}  # fmt: skip


def published() -> Weights:
    """Random weights with the names and shapes of the authors' files."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, DIM), "lm_head.weight": (VOCAB, DIM)}
    shapes["model.norm.weight"] = (DIM,)
    for i in range(DEPTH):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{name}_layernorm.weight": (DIM,) for name in ("input", "post_attention")}
        heads = {"q": HEADS, "k": KV, "v": KV}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (count * WIDTH, DIM) for name, count in heads.items()}
        shapes[f"{layer}self_attn.o_proj.weight"] = (DIM, HEADS * WIDTH)
        shapes[f"{layer}block_sparse_moe.primary_router.weight"] = (EXPERTS, DIM)
        for e in range(EXPERTS):
            expert = f"{layer}block_sparse_moe.experts.{e}."
            shapes |= {f"{expert}{name}.weight": (HIDDEN, DIM) for name in ("up", "gate")}
            shapes[f"{expert}down.weight"] = (DIM, HIDDEN)
    return {name: 0.4 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()


def turned(x: Tensor, position: int) -> Tensor:
    """A head (WIDTH,), its halves as real and imaginary parts."""
    half = WIDTH // 2
    angle = position * 300.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    y = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([y.real, y.imag])


def attention(x: Tensor, p: Weights, layer: str, rope: int, window: int | None) -> Tensor:
    """x (T, D), a query after another."""
    q, k, v = ((x @ p[f"{layer}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, WIDTH)) for name in ("q", "k", "v"))
    rows = []
    for t in range(len(x)):
        first, heads = 0 if window is None else max(0, t - window + 1), []
        for h in range(HEADS):
            g = h * KV // HEADS
            query = turned(q[t, h], t) if rope else q[t, h]
            keys = torch.stack([turned(k[s, g], s) if rope else k[s, g] for s in range(first, t + 1)])
            heads.append((keys @ query / WIDTH**0.5).softmax(0) @ v[first : t + 1, g])
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ p[f"{layer}self_attn.o_proj.weight"].T


def experts(x: Tensor, read: Tensor, p: Weights, layer: str, softmax: bool) -> Tensor:
    """x (T, D), routed by what the router makes of ``read`` (T, D), a token after another."""
    rows = []
    for token, logits in zip(x, read @ p[f"{layer}block_sparse_moe.primary_router.weight"].T, strict=True):
        values, chosen = logits.topk(TOP)
        weights = values.softmax(0) if softmax else values.sigmoid() / values.sigmoid().sum()
        row = torch.zeros_like(token)
        for weight, e in zip(weights, chosen.tolist(), strict=True):
            up, gate, down = (p[f"{layer}block_sparse_moe.experts.{e}.{n}.weight"] for n in ("up", "gate", "down"))
            row += weight * (down @ ((up @ token) * (gate @ token).clamp(min=0)))
        rows.append(row)
    return torch.stack(rows)


def expected_logits(tokens: Tensor, p: Weights, config: dict[str, Any]) -> Tensor:
    """tokens (T,) -> (T, VOCAB)."""
    x = p["model.embed_tokens.weight"][tokens]
    for i in range(DEPTH):
        layer = f"model.layers.{i}."
        window = config["sliding_window_size"] if config["sliding_window_layout"][i] else None
        h = x + attention(normed(x, p[f"{layer}input_layernorm.weight"]), p, layer, config["rope_layout"][i], window)
        softmax = config.get("moe_primary_router_apply_softmax", False)
        x = h + experts(normed(h, p[f"{layer}post_attention_layernorm.weight"]), x, p, layer, softmax)
    return normed(x, p["model.norm.weight"]) @ p["lm_head.weight"].T


@pytest.mark.parametrize("softmax", [False, True])
def test_the_authors_folder_loads_and_computes_their_equations(softmax, tmp_path):
    weights, config = published(), CONFIG | {"moe_primary_router_apply_softmax": softmax}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype="auto").eval()
    tokens = torch.randint(0, VOCAB, (2, 17))
    expected = torch.stack([expected_logits(row, weights, config) for row in tokens])
    torch.testing.assert_close(model(tokens), expected, atol=1e-10, rtol=1e-10)
    state = model.init_state(2)
    steps = torch.cat([model(part, state) for part in tokens.split([7, *[1] * 10], dim=1)], dim=1)
    torch.testing.assert_close(steps, expected, atol=1e-10, rtol=1e-10)


def test_conversion_is_its_own_inverse(tmp_path):
    model = zoo.create_model("smallthinker_nano", score="softmax")
    zoo.save_model(model, tmp_path / "zoo")
    convert(tmp_path / "zoo", tmp_path / "theirs", to="transformers")
    again = zoo.create_model(f"local-dir:{tmp_path / 'theirs'}")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    weights = published()
    back = smallthinker.to_transformers(smallthinker.to_zoo(weights))
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)
    assert not smallthinker.recognises(model.state_dict())


def test_a_blocks_routing_is_settled_before_its_attention():
    """Other attention weights leave the choices of the first block alone, and change those of the second."""
    model: Any = zoo.create_model("smallthinker_nano", dtype=torch.float64)
    tokens = torch.randint(0, 256, (2, 30))

    def routed() -> list[Tensor]:
        model(tokens)
        return [layer.routing.weights.detach() for layer in model.experts]

    before = routed()
    for parameter in model.blocks[0].mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    after = routed()
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_a_router_that_takes_all_experts_is_a_softmax_over_them():
    model: Any = zoo.create_model("smallthinker_nano", top_k=8, score="softmax", dtype=torch.float64)
    tokens = torch.randint(0, 256, (1, 9))
    model(tokens)
    layer = model.experts[0]
    weights = torch.zeros(9, 8, dtype=torch.float64).scatter(1, layer.routing.experts, layer.routing.weights)
    torch.testing.assert_close(weights, layer.router(model.embed(tokens))[0].softmax(-1))
    assert sum(zoo.auxiliary_losses(model).values()) > 0


def test_sizes_are_the_reports():
    """The active parameters without the tables of words."""
    for name, total, active, tables in (
        ("smallthinker_4b_a0_6b", 4.035, 0.63, 1), ("smallthinker_21b_a3b", 21.507, 2.93, 2),
    ):  # fmt: skip
        model: Any = zoo.create_model(name, device="meta")
        assert abs(zoo.model_info(name).num_parameters / 1e9 - total) < 6e-4
        used = model.num_active_parameters() - tables * model.embedding.weight.numel()
        assert abs(used / 1e9 - active) < 0.015


def test_published_configurations_are_the_registered_ones():
    """config.json of the 4B; of the 21B the fields that the report gives."""
    small = {
        "model_type": "smallthinker", "hidden_size": 1536, "num_hidden_layers": 32, "num_attention_heads": 12,
        "num_key_value_heads": 2, "head_dim": 128, "moe_ffn_hidden_size": 768, "moe_num_primary_experts": 32,
        "moe_num_active_primary_experts": 4, "rope_layout": [1] * 32, "sliding_window_layout": [0] * 32,
        "sliding_window_size": 4096, "rope_theta": 1.5e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "vocab_size": 151936, "max_position_embeddings": 32768, "norm_topk_prob": True, "attention_dropout": 0.0,
    }  # fmt: skip
    large = small | {
        "hidden_size": 2560, "num_hidden_layers": 52, "num_attention_heads": 28, "num_key_value_heads": 4,
        "moe_num_primary_experts": 64, "moe_num_active_primary_experts": 6, "rope_layout": [0, 1, 1, 1] * 13,
        "sliding_window_layout": [0, 1, 1, 1] * 13, "tie_word_embeddings": False, "max_position_embeddings": 16384,
    }  # fmt: skip
    for name, config in (("smallthinker_4b_a0_6b", small), ("smallthinker_21b_a3b", large)):
        registered, (family, fields) = zoo.registry.lookup(name).configure(), foreign_config(config)
        assert family == "smallthinker" and {field: getattr(registered, field) for field in fields} == fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_layout": [1, 1]}, r"rope_layout must be 0 or 1 for each of the 5 layers, got \[1, 1\]"),
        ({"sliding_window_layout": [2] * 5}, "sliding_window_layout must be 0 or 1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary positions must be unscaled"),
        ({"use_qk_norm": True}, "use_qk_norm must be False, got True"),
        ({"moe_layer_layout": [1, 1, 0, 1, 1]}, "moe_layer_layout must have experts in every layer"),
    ],
)
def test_options_without_a_counterpart_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        foreign_config(CONFIG | change)


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match=r"score must be one of \['softmax', 'sigmoid'\], got 'tanh'"):
        zoo.create_model("smallthinker_nano", score="tanh")
