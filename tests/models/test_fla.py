"""Linear attentions under the names of flash-linear-attention's files, against their recurrences written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.checkpoints.convert import foreign_config

Weights = dict[str, Tensor]
DIM, DEPTH, VOCAB, WIDTH = 24, 2, 50, 40
SHARED = {
    "hidden_size": DIM, "num_hidden_layers": DEPTH, "vocab_size": VOCAB, "intermediate_size": WIDTH, "norm_eps": 1e-6,
    "hidden_act": "swish", "tie_word_embeddings": False, "attn": None, "attn_mode": "chunk", "fuse_norm": True,
    "max_position_embeddings": 2048, "use_cache": True, "bos_token_id": 1,
}  # fmt: skip


def heads(x: Tensor, number: int) -> Tensor:
    return x.unflatten(-1, (number, -1))


def convolved(x: Tensor, p: Weights, name: str) -> Tensor:
    """x (T, D) -> (T, channels): projection, taps with the newest last, silu."""
    u, taps = x @ p[f"{name}_proj.weight"].T, p[f"{name}_conv1d.weight"][:, 0]
    padded = F.pad(u, (0, 0, taps.shape[1] - 1, 0))
    return F.silu(sum(taps[:, j] * padded[j : j + len(x)] for j in range(taps.shape[1])))


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def delta_rule(x: Tensor, p: Weights, config: dict[str, Any]) -> Tensor:
    """x (T, D) -> (T, D), one step after another; with a decay and a gate where there are weights for them."""
    q, k, v = (heads(convolved(x, p, name), config["num_heads"]) for name in "qkv")
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    beta = (2 if config["allow_neg_eigval"] else 1) * torch.sigmoid(x @ p["b_proj.weight"].T)
    decay = torch.ones_like(beta)
    if "A_log" in p:
        decay = torch.exp(-p["A_log"].exp() * F.softplus(x @ p["a_proj.weight"].T + p["dt_bias"]))
    outputs, memory = [], torch.zeros(*k.shape[1:], v.shape[-1], dtype=x.dtype)
    for t in range(len(x)):
        memory = decay[t, :, None, None] * memory
        found = torch.einsum("hk,hkv->hv", k[t], memory)
        memory = memory + torch.einsum("hk,hv->hkv", k[t], beta[t, :, None] * (v[t] - found))
        outputs.append(torch.einsum("hk,hkv->hv", q[t], memory) / k.shape[-1] ** 0.5)
    o = normed(torch.stack(outputs), p["o_norm.weight"])
    if "g_proj.weight" in p:
        o = o * F.silu(heads(x @ p["g_proj.weight"].T, config["num_heads"]))
    return o.flatten(1) @ p["o_proj.weight"].T


def decaying(x: Tensor, p: Weights, config: dict[str, Any]) -> Tensor:
    """x (T, D) -> (T, D): weights q_t k_s times all decays after s, for every pair of steps."""
    number = config["num_heads"]
    q, k, v, gate = (heads(x @ p[f"{name}_proj.weight"].T, number) for name in "qkvg")
    if "gk_proj.0.weight" in p:
        logits = x @ p["gk_proj.0.weight"].T @ p["gk_proj.1.weight"].T + p["gk_proj.1.bias"]
        log_decay = heads(F.logsigmoid(logits) / 16, number)
    else:
        half = q.shape[-1] // 2
        turns = torch.exp(1j * torch.outer(torch.arange(len(x)), 10000.0 ** -(torch.arange(half).double() / half)))
        q, k = (torch.view_as_real(torch.complex(t[..., :half], t[..., half:]) * turns[:, None]) for t in (q, k))
        q, k = q.flatten(-2), k.flatten(-2)
        gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(number)], dtype=x.dtype)
        log_decay = gamma.log()[:, None].expand_as(q)
    outputs = []
    for t in range(len(x)):
        kept = torch.stack([log_decay[s + 1 : t + 1].sum(0) for s in range(t + 1)]).exp()
        weights = torch.einsum("hk,shk,shk->sh", q[t], k[: t + 1], kept) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("sh,shv->hv", weights, v[: t + 1]))
    norm = next(weight for name, weight in p.items() if name.startswith("g_norm"))
    return (normed(torch.stack(outputs), norm) * F.silu(gate)).flatten(1) @ p["o_proj.weight"].T


def decaying_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    keys, values = int(DIM * config["expand_k"]), int(DIM * config["expand_v"])
    shapes = {f"{n}_proj.weight": (width, DIM) for n, width in (("q", keys), ("k", keys), ("v", values), ("g", values))}
    if config["model_type"] == "gla":
        shapes |= {"gk_proj.0.weight": (16, DIM), "gk_proj.1.weight": (keys, 16), "gk_proj.1.bias": (keys,)}
    norm = "g_norm_swish_gate" if config.get("fuse_norm", True) else "g_norm"
    return shapes | {f"{norm}.weight": (values // config["num_heads"],), "o_proj.weight": (DIM, values)}


def delta_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    gated, number = config["model_type"] == "gated_deltanet", config["num_heads"]
    keys = number * config["head_dim"] if gated else int(DIM * config["expand_k"])
    values = int((keys if gated else DIM) * config["expand_v"])
    widths = {"q": keys, "k": keys, "v": values}
    shapes = {f"{n}_proj.weight": (width, DIM) for n, width in widths.items()}
    shapes |= {f"{n}_conv1d.weight": (width, 1, config["conv_size"]) for n, width in widths.items()}
    shapes |= {"b_proj.weight": (number, DIM), "o_norm.weight": (values // number,), "o_proj.weight": (DIM, values)}
    if gated:
        shapes |= {"a_proj.weight": (number, DIM), "A_log": (number,), "dt_bias": (number,)}
        shapes["g_proj.weight"] = (values, DIM)
    return shapes


CASES: dict[str, tuple[Callable, Callable, dict[str, Any]]] = {  # mixer, its shapes, options
    "delta_net": (delta_rule, delta_shapes, {
        "model_type": "delta_net", "num_heads": 3, "expand_k": 1, "expand_v": 1, "conv_size": 4, "use_beta": True,
        "use_gate": False, "use_short_conv": True, "use_output_norm": True, "qk_norm": "l2", "qk_activation": "silu",
        "allow_neg_eigval": False,
    }),
    "delta_net-wide": (delta_rule, delta_shapes, {
        "model_type": "delta_net", "num_heads": 2, "expand_k": 0.5, "expand_v": 1.25, "conv_size": 3,
        "allow_neg_eigval": True,
    }),
    "gated_deltanet": (delta_rule, delta_shapes, {
        "model_type": "gated_deltanet", "num_heads": 3, "head_dim": 6, "expand_v": 2, "conv_size": 4, "use_gate": True,
        "use_short_conv": True, "allow_neg_eigval": False, "num_v_heads": None,
    }),
    "gla": (decaying, decaying_shapes, {
        "model_type": "gla", "num_heads": 3, "expand_k": 0.5, "expand_v": 1, "clamp_min": None, "num_kv_heads": None,
        "feature_map": None, "use_short_conv": False, "use_output_gate": True, "use_gk": True, "use_gv": False,
        "elementwise_affine": True,
    }),
    "retnet": (decaying, decaying_shapes, {"model_type": "retnet", "num_heads": 2, "expand_k": 0.5, "expand_v": 2}),
}  # fmt: skip


def published(case: str) -> tuple[dict[str, Any], Weights]:
    """A ``config.json`` and random weights with the names and shapes of fla's files."""
    _, shapes_of, options = CASES[case]
    config = SHARED | options
    shapes = {"model.embeddings.weight": (VOCAB, DIM), "model.norm.weight": (DIM,), "lm_head.weight": (VOCAB, DIM)}
    for i in range(DEPTH):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}attn_norm.weight": (DIM,), f"{layer}mlp_norm.weight": (DIM,)}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (WIDTH, DIM) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (DIM, WIDTH)
        shapes |= {f"{layer}attn.{name}": shape for name, shape in shapes_of(config).items()}
    return config, {name: 0.4 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def published_model(tokens: Tensor, p: Weights, config: dict[str, Any], mixer: Callable) -> Tensor:
    """tokens (T,) -> logits (T, vocab)."""
    x = p["model.embeddings.weight"][tokens]
    for i in range(DEPTH):
        layer = f"model.layers.{i}."
        own = {key.removeprefix(layer + "attn."): t for key, t in p.items() if key.startswith(layer + "attn.")}
        x = x + mixer(normed(x, p[layer + "attn_norm.weight"]), own, config)
        inner = normed(x, p[layer + "mlp_norm.weight"])
        gate, up = (inner @ p[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ p[layer + "mlp.down_proj.weight"].T
    return normed(x, p["model.norm.weight"]) @ p["lm_head.weight"].T


@pytest.mark.parametrize("case", CASES)
def test_folders_load_and_equal_the_recurrence_and_are_written_again(case, tmp_path):
    config, p = published(case)
    torch.save(p, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    tokens = torch.randint(0, VOCAB, (2, 37))
    expected = torch.stack([published_model(row, p, config, CASES[case][0]) for row in tokens]).float()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=1e-4)
        state = ours.init_state(2)
        steps = [ours(tokens[:, :20], state)] + [ours(tokens[:, t : t + 1], state) for t in range(20, 37)]
        torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-4, rtol=1e-4)
    folder = zoo.convert(zoo.convert(tmp_path, tmp_path / "zoo"), tmp_path / "again", to="transformers")
    again = zoo.checkpoints.read_state_dict(folder)
    assert again.keys() == p.keys() and all(torch.equal(again[key], p[key]) for key in p)
    written = json.loads((folder / "config.json").read_text())
    assert {key: value for key, value in written.items() if key in CASES[case][2]}.items() <= config.items()


def test_the_name_of_a_norm_that_is_not_fused_is_read():
    state = zoo.create_model("gla_nano").state_dict()
    names = zoo.checkpoints.convert.fla.GLA.to_transformers(state)
    apart = {key.replace("g_norm_swish_gate", "g_norm"): tensor for key, tensor in names.items()}
    assert apart.keys() != names.keys() and zoo.checkpoints.convert.to_zoo(apart).keys() == state.keys()


def test_files_with_both_halves_of_swiglu_in_one_tensor_load(tmp_path):
    _, p = published("delta_net")
    fused = {key: tensor for key, tensor in p.items() if ".up_proj." not in key}
    for key in [key for key in fused if ".gate_proj." in key]:
        fused[key] = torch.cat([fused[key], p[key.replace("gate_proj", "up_proj")]])
    whole, split = zoo.checkpoints.convert.to_zoo(p), zoo.checkpoints.convert.to_zoo(fused)
    assert whole.keys() == split.keys() and all(torch.equal(whole[key], split[key]) for key in whole)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("deltanet_340m", {"model_type": "delta_net", "expand_k": 1, "expand_v": 1, "hidden_size": 1024,
                           "num_heads": 8, "intermediate_size": None, "hidden_ratio": 4}),
        ("deltanet_1_3b", {"model_type": "delta_net"}),
        ("gated_deltanet_1_3b", {"model_type": "gated_deltanet", "num_v_heads": 6}),
        ("gla_340m", {"model_type": "gla", "expand_k": 0.5, "expand_v": 1, "hidden_size": 1024}),
        ("gla_1_3b", {"model_type": "gla", "use_gk": True, "use_gv": False}),
        ("gla_7b", {"model_type": "gla", "hidden_size": 4096, "intermediate_size": 11008, "num_heads": 16,
                    "num_hidden_layers": 32}),
        ("retnet_1_3b", {"model_type": "retnet"}),
        ("retnet_2_7b", {"model_type": "retnet", "hidden_size": 2560, "num_hidden_layers": 32, "num_heads": 10}),
        ("retnet_6_7b", {"model_type": "retnet", "hidden_size": 4096, "num_hidden_layers": 32, "num_heads": 16}),
    ],
)  # fmt: skip
def test_published_configurations_are_the_registered_ones(name, config):
    """Of flame's delta_net_340M.json; where fields are left out, the values of fla's classes."""
    assert zoo.recognition.recognise(config)[1] == zoo.registry.lookup(name).configure()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "delta_net", "use_gate": True}, "use_gate must be False, got True"),
        ({"model_type": "delta_net", "qk_norm": "sum"}, "qk_norm must be 'l2', got 'sum'"),
        ({"model_type": "gated_deltanet", "num_v_heads": 12}, "num_v_heads must be num_heads, 6, got 12"),
        ({"model_type": "gla", "num_kv_heads": 2}, "num_kv_heads must be num_heads, 4, got 2"),
        ({"model_type": "retnet", "feature_map": "relu"}, "feature_map must be None, got 'relu'"),
        ({"model_type": "gated_deltanet", "attn": {"layers": [1], "num_heads": 2}}, "attn must be None, got"),
    ],
)
def test_options_that_are_not_here_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        foreign_config(config)
