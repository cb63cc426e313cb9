"""BASED against the formulas of the paper written out, under the tensor names of the authors' checkpoints."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.checkpoints.convert import based as converter
from zoo.checkpoints.convert import foreign_config, mamba, to_zoo
from zoo.layers.attention import SlidingWindowAttention, TaylorAttention
from zoo.layers.conv import GatedConv

SMALL = {"vocab_size": 50, "dim": 32, "mlp_dim": 40, "num_heads": 2, "feature_dim": 5, "window": 4}


def small(**changes: Any) -> Any:
    """A nano model whose window is shorter than the test's tokens; biases that are not zero."""
    model: Any = zoo.create_model("based_nano", dtype=torch.float64, **SMALL | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def published_weights(depth: int, pattern: str, vocab: int, dim: int, hidden: int, heads: int, features: int) -> dict:
    """Random weights with the names and shapes of the authors' files."""
    linear = {
        "c": {"in_proj": (4 * dim, dim), "out_proj": (dim, 2 * dim)},
        "s": {"Wqkv": (3 * dim, dim), "out_proj": (dim, dim)},
        "a": {"Wqkv": (3 * dim, dim), "out_proj": (dim, dim)},
        "t": {"proj_q": (heads * features, dim), "proj_k": (heads * features, dim), "proj_v": (dim, dim)},
    }
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (vocab, dim), "ln_f.weight": (dim,)}
    for i in range(depth):
        kind, layer = pattern[i % len(pattern)], f"layers.{i}."
        shapes |= {f"{layer}{name}.weight": (dim,) for name in ("norm1", "norm2")}
        shapes |= {f"{layer}mlp.fc1.weight": (2 * hidden, dim), f"{layer}mlp.fc2.weight": (dim, hidden)}
        shapes |= {f"{layer}mixer.{name}.weight": shape for name, shape in linear[kind].items()}
        if kind == "t":
            shapes[f"{layer}mixer.out_proj.weight"] = (dim, dim)
        if kind == "c":
            shapes |= {f"{layer}mixer.in_proj.bias": (4 * dim,), f"{layer}mixer.out_proj.bias": (dim,)}
            shapes[f"{layer}mixer.conv.conv.weight"] = (2 * dim, 1, 3)
    weights = {f"transformer.{k}": 0.3 * torch.randn(shape, dtype=torch.float64) for k, shape in shapes.items()}
    return weights | {"lm_head.weight": weights["transformer.embeddings.word_embeddings.weight"]}


def taylor(x: Tensor, p: dict[str, Tensor], heads: int) -> Tensor:
    """x (T, D): weights 1 + s + s^2 / 2 over their sum."""
    q, k, v = (F.linear(x, p[f"proj_{n}.weight"]).unflatten(-1, (heads, -1)) for n in "qkv")
    s = torch.einsum("thf,shf->hts", q, k) / q.shape[-1] ** 0.5
    weights = (1 + s + s**2 / 2).tril()
    y = torch.einsum("hts,shd->thd", weights / weights.sum(-1, keepdim=True), v)
    return y.flatten(1) @ p["out_proj.weight"].T


def turned(x: Tensor, turning: int) -> Tensor:
    """x (T, H, d): pairs (i, i + P) at the rates 10000^(-2i / turning), as many as cover ``turning`` channels."""
    rates = 10000.0 ** -(torch.arange(0, turning, 2).double() / turning)
    angle, pairs = torch.outer(torch.arange(len(x)), rates)[:, None], len(rates)
    a, b, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], dim=-1)


def sliding(x: Tensor, p: dict[str, Tensor], heads: int, window_size: int, share: float = 1.0) -> Tensor:
    """x (T, D): softmax over the step and the window_size // 2 before it, one query at a time."""
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in F.linear(x, p["Wqkv.weight"]).chunk(3, dim=-1))
    q, k = (turned(t, int(share * t.shape[-1])) for t in (q, k))
    outputs = []
    for t in range(len(x)):
        seen = slice(max(0, t - window_size // 2), t + 1)
        scores = torch.einsum("hf,shf->hs", q[t], k[seen]) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("hs,shd->hd", scores.softmax(-1), v[seen]).flatten())
    return torch.stack(outputs) @ p["out_proj.weight"].T


def gated_conv(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """x (T, D): three taps, the newest last."""
    u, gate = F.linear(x, p["in_proj.weight"], p["in_proj.bias"]).chunk(2, dim=-1)
    padded, taps = F.pad(u, (0, 0, 2, 0)), p["conv.conv.weight"][:, 0]
    convolved = sum(taps[:, j] * padded[j : j + len(x)] for j in range(3))
    return F.linear(F.silu(convolved) * gate, p["out_proj.weight"], p["out_proj.bias"])


def published_model(tokens: Tensor, p: dict[str, Tensor], pattern: str, depth: int, heads: int, window_size: int):
    """tokens (T,) -> logits (T, vocab)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return p[name] * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    x = p["transformer.embeddings.word_embeddings.weight"][tokens]
    for i in range(depth):
        layer = f"transformer.layers.{i}."
        own = {k.removeprefix(layer + "mixer."): v for k, v in p.items() if k.startswith(layer + "mixer.")}
        inner, kind = norm(x, layer + "norm1.weight"), pattern[i % len(pattern)]
        if kind == "t":
            x = x + taylor(inner, own, heads)
        elif kind == "s":
            x = x + sliding(inner, own, heads, window_size)
        elif kind == "a":
            x = x + sliding(inner, own, heads, 2 * len(x), 0.5)
        else:
            x = x + gated_conv(inner, own)
        value, gate = F.linear(norm(x, layer + "norm2.weight"), p[layer + "mlp.fc1.weight"]).chunk(2, dim=-1)
        x = x + (value * F.silu(gate)) @ p[layer + "mlp.fc2.weight"].T
    return norm(x, "transformer.ln_f.weight") @ p["lm_head.weight"].T


@pytest.mark.parametrize(
    ("pattern", "depth", "heads", "window_size", "dtype"),
    [("ctscc", 7, 2, 8, torch.float64), ("st", 3, 4, 2, torch.float64), ("ctscc", 5, 2, 6, torch.float32)],
)
def test_equals_the_published_formulas_under_the_published_names(pattern, depth, heads, window_size, dtype):
    p = published_weights(depth, pattern, vocab=50, dim=32, hidden=40, heads=heads, features=5)
    tokens = torch.randint(0, 50, (2, 70))
    expected = torch.stack([published_model(row, p, pattern, depth, heads, window_size) for row in tokens])
    window = window_size // 2 + 1
    model: Any = small(pattern=pattern, depth=depth, num_heads=heads, window=window).to(dtype)
    found = {f"model.{key}": tensor for key, tensor in p.items()}
    found |= {"model.transformer.decay.decay": torch.ones(2), "metrics.loss": torch.ones(1)}
    assert converter.recognises(found) and not converter.recognises(model.state_dict())
    model.load_state_dict(converter.to_zoo(found))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    close(model(tokens).double(), expected, tolerance)
    state = model.init_state(2)
    steps = [model(tokens[:, :9], state)] + [model(tokens[:, t : t + 1], state) for t in range(9, 70)]
    close(torch.cat(steps, dim=1).double(), expected, tolerance)


@pytest.mark.parametrize(
    ("name", "count", "taylor_at"),
    [("based_360m", 362_620_928, [1, 6, 11, 16, 21]), ("based_1_3b", 1_349_453_056, [1, 6, 11, 16, 21, 27, 33])],
)
def test_sizes_are_the_authors(name, count, taylor_at):
    model: Any = zoo.create_model(name, device="meta")
    assert zoo.model_info(name).num_parameters == count
    kinds = {kind: [i for i, m in enumerate(model.mixers) if isinstance(m, kind)] for kind in map(type, model.mixers)}
    assert kinds[TaylorAttention] == taylor_at and kinds[SlidingWindowAttention] == [i + 1 for i in taylor_at]
    assert len(kinds[GatedConv]) == model.config.depth - 2 * len(taylor_at)


@pytest.mark.parametrize("heads", [2, 3])  # of 16 and of 14 channels: 8 of them turn, or 7
def test_the_authors_attention_baseline_loads(heads, tmp_path):
    dim = 32 if heads == 2 else 42
    p = published_weights(2, "a", vocab=48, dim=dim, hidden=256, heads=heads, features=5)
    torch.save({f"model.{key}": t for key, t in p.items()} | {"val_metrics.count": torch.ones(1)},
               tmp_path / "pytorch_model.bin")  # fmt: skip
    config = {"model_type": "gpt2", "n_embd": dim, "n_layer": 2, "n_head": heads, "n_inner": None, "vocab_size": 45,
              "activation_function": "swiglu", "rotary_emb_fraction": 0.5, "pad_vocab_size_multiple": 16,
              "rms_norm": True, "n_positions": 0}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model: Any = zoo.create_model(f"local-dir:{tmp_path}").double().eval()
    tokens = torch.randint(0, 45, (2, 20))
    expected = torch.stack([published_model(row, p, "a", 2, heads, 0) for row in tokens])
    close(model(tokens), expected, 1e-5)  # the weights were read as float32
    state = model.init_state(2)
    steps = [model(tokens[:, :9], state)] + [model(tokens[:, t : t + 1], state) for t in range(9, 20)]
    close(torch.cat(steps, dim=1), expected, 1e-5)
    for changes, message in (
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False"),
        ({"rotary_emb_fraction": 0.0}, "rotary_emb_fraction must turn some channels of a head, got 0 of"),
    ):
        with pytest.raises(ValueError, match=message):
            converter.config_from_authors(config | changes)


def test_the_authors_baselines_are_the_registered_ones():
    """Of reference/attn-1b.yaml, attn-360m.yaml and mamba-360m.yaml, where fields are left out the classes' values."""
    attention = {"n_inner": None, "activation_function": "swiglu", "rotary_emb_fraction": 0.5, "vocab_size": 50257,
                 "pad_vocab_size_multiple": 16, "rms_norm": True}  # fmt: skip
    published_mamba = {"d_model": 1024, "n_layer": 46, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True,
                       "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16}  # fmt: skip
    for name, config in (
        ("based_attention_360m", attention | {"n_embd": 1024, "n_head": 16, "n_layer": 24}),
        ("based_attention_1_3b", attention | {"n_embd": 1680, "n_head": 24, "n_layer": 36}),
        ("based_mamba_360m", published_mamba),
        ("based_mamba_1_3b", published_mamba | {"d_model": 2048}),
    ):
        family, fields = foreign_config(config)
        registered = zoo.registry.lookup(name)
        assert family == registered.family
        assert {field: getattr(registered.configure(), field) for field in fields} == fields


def test_the_authors_mamba_baseline_loads():
    """The prefix and the metrics that Lightning left in the file are taken off."""
    expected = zoo.create_model("mamba_nano").state_dict()
    names = {key.replace("embeddings", "embedding"): t for key, t in mamba.to_transformers(expected).items()}
    found = to_zoo({f"model.{key}": t for key, t in names.items()} | {"train_metrics.num-tokens.count": torch.ones(1)})
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_state_does_not_grow_with_the_sequence():
    """A window, a matrix a head, two convolution inputs: after 3 tokens as after 300."""
    model, sizes = small(), []
    state = model.init_state(1)
    for length in (3, 300, 64, 1):
        model(torch.randint(0, 50, (1, length)), state)
        sizes.append(state.nbytes)
    conv, memory, cache = 2 * 2 * 32, 2 * (6 * 7 // 2) * 17, 2 * 32 * 4
    assert sizes == [8 * (2 * conv + memory + cache)] * 4
    assert model.state_size(4) == model.state_size(10**6) == 2 * conv + memory + cache


def test_state_grows_with_feature_dim_and_window():
    sizes = [small(feature_dim=f, window=w).state_size(64) for f, w in ((2, 4), (4, 4), (4, 8), (16, 8), (16, 64))]
    assert sizes == sorted(set(sizes))


def test_decodes_past_the_window_after_packed_and_padded_prompts():
    """The cache drops the ids once all of the window is one sequence; ids may come again."""
    model = small()
    tokens = torch.randint(0, 50, (2, 40))
    seq_idx = torch.tensor([[-1] * 4 + [0] * 26 + [1] * 10, [0] * 2 + [4] * 28 + [1] * 10])
    whole = model(tokens, seq_idx=seq_idx)
    state = model.init_state(2)
    parts = [model(tokens[:, :5], state, seq_idx=seq_idx[:, :5])]
    parts += [model(tokens[:, t : t + 1], state) for t in range(5, 30)]
    ids = [block.ids for block in state if hasattr(block, "ids")]
    assert ids == [None]
    parts += [model(tokens[:, 30:32], state, seq_idx=seq_idx[:, 30:32])]
    parts += [model(tokens[:, t : t + 1], state, seq_idx=seq_idx[:, t : t + 1]) for t in range(32, 36)]
    parts += [model(tokens[:, 36:], state)]
    close(torch.cat(parts, dim=1)[seq_idx >= 0], whole[seq_idx >= 0])


def test_only_the_taylor_attention_reaches_beyond_the_window():
    """Blocks of "cs" see 2 * (window - 1 + 2) steps back; "t" sees everything."""
    tokens = torch.randint(0, 50, (1, 30))
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 50
    short, far = small(pattern="cs"), small(pattern="ct")
    assert torch.equal(short(tokens)[:, 11:], short(changed)[:, 11:])
    assert not torch.equal(short(tokens)[:, 10], short(changed)[:, 10])
    assert not torch.equal(far(tokens)[:, -1], far(changed)[:, -1])


def test_initial_values_are_the_authors():
    model: Any = zoo.create_model("based_nano", depth=8, initializer_range=0.1)
    for name, parameter in model.blocks.named_parameters():
        if name.endswith(("in_proj.bias", "out_proj.bias")):
            assert not parameter.any()
        elif name.endswith(("out_proj.weight", "w2.weight")):
            assert parameter.std().item() == pytest.approx(0.1 / 4, rel=0.05)
        elif name.endswith(("_proj.weight", "w1.weight", "w3.weight")):
            assert parameter.std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "ctx"}, "pattern must be letters 't'.*got 'ctx'"),
        ({"pattern": ""}, "such as 'ctscc', got ''"),
        ({"feature_dim": 0}, "feature_dim must be a positive integer, got 0"),
        ({"window": 0}, "window must be a positive integer, got 0"),
        ({"num_heads": 5}, "num_heads must divide dim.*num_heads 5"),
        ({"num_heads": 128, "pattern": "s"}, "even heads"),
        ({"kernel_size": 1}, "kernel_size must be at least 2"),
    ],
)
def test_sizes_that_do_not_fit_say_the_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("based_nano", **changes)
