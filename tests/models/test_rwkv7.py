"""RWKV-7 under the names of flash-linear-attention's folders and of the authors' files, against its equations."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.checkpoints.convert import foreign_config, to_zoo

Weights = dict[str, Tensor]
DIM, DEPTH, VOCAB, WIDTH, HEAD = 24, 3, 50, 40, 6
CONFIG = {
    "model_type": "rwkv7", "hidden_size": DIM, "num_hidden_layers": DEPTH, "vocab_size": VOCAB, "head_dim": HEAD,
    "num_heads": DIM // HEAD, "intermediate_size": WIDTH, "norm_eps": 1e-5, "hidden_act": "sqrelu", "norm_first": True,
    "norm_bias": True, "decay_low_rank_dim": 3, "a_low_rank_dim": 4, "v_low_rank_dim": 5, "gate_low_rank_dim": 7,
    "tie_word_embeddings": False, "attn": None, "value_dim": [DIM] * DEPTH, "attn_mode": "chunk", "fuse_norm": True,
}  # fmt: skip


def published() -> Weights:
    """Random weights with the names and shapes of fla's files."""
    shapes: dict[str, tuple[int, ...]] = {"model.embeddings.weight": (VOCAB, DIM), "lm_head.weight": (VOCAB, DIM)}
    norms = ["model.norm", "model.layers.0.pre_norm"]
    for i in range(DEPTH):
        layer = f"model.layers.{i}."
        norms += [layer + name for name in ("attn_norm", "ffn_norm", "attn.g_norm")]
        shapes |= {f"{layer}attn.x_{name}": (1, 1, DIM) for name in "rwkvag"}
        shapes |= {f"{layer}attn.{name}_proj.weight": (DIM, DIM) for name in "rkvo"}
        shapes |= {f"{layer}attn.k_k": (DIM,), f"{layer}attn.k_a": (DIM,), f"{layer}attn.r_k": (DIM // HEAD, HEAD)}
        for name, rank in (("w", 3), ("a", 4), ("v", 5), ("g", 7)):
            if name != "v" or i:
                shapes |= {f"{layer}attn.{name}_lora.lora.0.weight": (rank, DIM)}
                shapes |= {f"{layer}attn.{name}_lora.lora.2.weight": (DIM, rank)}
                shapes |= {f"{layer}attn.{name}_lora.lora.2.bias": (DIM,)} if name != "g" else {}
        shapes |= {f"{layer}ffn.x_k": (DIM,), f"{layer}ffn.key.weight": (WIDTH, DIM)}
        shapes[f"{layer}ffn.value.weight"] = (DIM, WIDTH)
    shapes |= {f"{norm}.{part}": (DIM,) for norm in norms for part in ("weight", "bias")}
    return {name: 0.4 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def normed(x: Tensor, p: Weights, name: str, eps: float = 1e-5) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * scale * p[name + ".weight"].view(x.shape[1:]) + p[name + ".bias"].view(x.shape[1:])


def low_rank(x: Tensor, p: Weights, name: str, act: Any = lambda x: x) -> Tensor:
    y = act(x @ p[f"{name}_lora.lora.0.weight"].T) @ p[f"{name}_lora.lora.2.weight"].T
    return y + p.get(f"{name}_lora.lora.2.bias", torch.zeros(()))


def time_mix(x: Tensor, p: Weights, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """x (T, D), values of the first block: state (V, K) as in the paper, one step after another."""
    before = F.pad(x, (0, 0, 1, 0))[:-1]
    r, w, k, v, a, g = (x + (before - x) * p[f"x_{name}"][0, 0] for name in "rwkvag")
    decay = torch.exp(-(torch.e**-0.5) * torch.sigmoid(low_rank(w, p, "w", torch.tanh)))
    rate = torch.sigmoid(low_rank(a, p, "a"))
    mix = None if first is None else torch.sigmoid(low_rank(v, p, "v"))
    r, k, v = (y @ p[f"{name}_proj.weight"].T for name, y in (("r", r), ("k", k), ("v", v)))
    if first is not None and mix is not None:
        v = v + (first - v) * mix
    values, removal = v, k * p["k_k"]
    k = k * (1 + (rate - 1) * p["k_a"])
    r, k, v, removal, rate, decay = (y.unflatten(-1, (-1, HEAD)) for y in (r, k, v, removal, rate, decay))
    removal = removal / removal.norm(dim=-1, keepdim=True)
    S, outputs = torch.zeros(DIM // HEAD, HEAD, HEAD, dtype=x.dtype), []
    for t in range(len(x)):
        transition = torch.diag_embed(decay[t]) - removal[t][:, :, None] * (rate[t] * removal[t])[:, None, :]
        S = S @ transition + v[t][:, :, None] * k[t][:, None, :]
        outputs.append((S @ r[t][..., None])[..., 0])
    o = normed(torch.stack(outputs), p, "g_norm", eps=HEAD * 1e-5)
    o = o + (r * k * p["r_k"]).sum(-1, keepdim=True) * v
    return (o.flatten(1) * low_rank(g, p, "g", torch.sigmoid)) @ p[
        "o_proj.weight"
    ].T, values if first is None else first


def published_model(tokens: Tensor, p: Weights) -> Tensor:
    """tokens (T,) -> logits (T, vocab)."""
    x, first = normed(p["model.embeddings.weight"][tokens], p, "model.layers.0.pre_norm"), None
    for i in range(DEPTH):
        layer = f"model.layers.{i}."
        own = {key.removeprefix(layer + "attn."): t for key, t in p.items() if key.startswith(layer + "attn.")}
        y, first = time_mix(normed(x, p, layer + "attn_norm"), own, first)
        x = x + y
        inner = normed(x, p, layer + "ffn_norm")
        mixed = inner + (F.pad(inner, (0, 0, 1, 0))[:-1] - inner) * p[layer + "ffn.x_k"]
        x = x + (mixed @ p[layer + "ffn.key.weight"].T).relu().square() @ p[layer + "ffn.value.weight"].T
    return normed(x, p, "model.norm") @ p["lm_head.weight"].T


def test_folders_load_and_equal_the_equations_and_are_written_again(tmp_path):
    p = published()
    torch.save(p, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    ours: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    tokens = torch.randint(0, VOCAB, (2, 37))
    expected = torch.stack([published_model(row, p) for row in tokens]).float()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=1e-4)
        state = ours.init_state(2)
        steps = [ours(tokens[:, :20], state)] + [ours(tokens[:, t : t + 1], state) for t in range(20, 37)]
        torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-4, rtol=1e-4)
    folder = zoo.convert(zoo.convert(tmp_path, tmp_path / "zoo"), tmp_path / "again", to="transformers")
    again = zoo.checkpoints.read_state_dict(folder)
    assert again.keys() == p.keys() and all(torch.equal(again[key], p[key]) for key in p)
    written = json.loads((folder / "config.json").read_text())
    assert {key: value for key, value in written.items() if key in CONFIG} == {key: CONFIG[key] for key in CONFIG
                                                                              if key in written}  # fmt: skip


def authors(p: Weights) -> Weights:
    """The names and shapes of the .pth files, the unused maps of the first block among them."""
    names = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    found = {"emb.weight": p["model.embeddings.weight"], "head.weight": p["lm_head.weight"]}
    found |= {f"ln_out.{part}": p[f"model.norm.{part}"] for part in ("weight", "bias")}
    found |= {f"blocks.0.ln0.{part}": p[f"model.layers.0.pre_norm.{part}"] for part in ("weight", "bias")}
    for i in range(DEPTH):
        layer, block = f"model.layers.{i}.", f"blocks.{i}."
        for ours, theirs in (("attn_norm", "ln1"), ("ffn_norm", "ln2")):
            found |= {f"{block}{theirs}.{part}": p[f"{layer}{ours}.{part}"] for part in ("weight", "bias")}
        for theirs, ours in names.items():
            parts = {
                key.removeprefix(layer + f"attn.{ours}."): t for key, t in p.items() if f"{layer}attn.{ours}." in key
            }
            found |= {f"{block}att.{theirs}.{part}": t for part, t in parts.items()}
        found |= {f"{block}att.x_{name}": p[f"{layer}attn.x_{name}"] for name in "rwkvag"}
        found |= {f"{block}att.{name}": p[f"{layer}attn.{name}"].view(1, 1, DIM) for name in ("k_k", "k_a")}
        found[f"{block}att.r_k"] = p[f"{layer}attn.r_k"]
        for name in "wavg":
            start = f"{layer if i or name != 'v' else 'model.layers.1.'}attn.{name}_lora.lora."
            found |= {f"{block}att.{name}1": p[start + "0.weight"].T, f"{block}att.{name}2": p[start + "2.weight"].T}
            if name != "g":
                found[f"{block}att.{name}0"] = p[start + "2.bias"].view(1, 1, DIM)
        found[f"{block}ffn.x_k"] = p[f"{layer}ffn.x_k"].view(1, 1, DIM)
        found |= {f"{block}ffn.{name}.weight": p[f"{layer}ffn.{name}.weight"] for name in ("key", "value")}
    return found


def test_files_of_the_authors_and_of_flas_first_version_load():
    p = published()
    expected, older = to_zoo(p), dict(p)
    for i in range(DEPTH):
        shares = [older.pop(f"model.layers.{i}.attn.x_{name}")[0, 0] for name in "rwkvag"]
        older[f"model.layers.{i}.attn.x_x"] = torch.stack(shares)
    for found in (to_zoo(authors(p)), to_zoo(older)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_options_that_are_not_here_are_named():
    for changes, message in (
        ({"norm_first": False}, "norm_first must be True, got False"),
        ({"hidden_act": "relu"}, "hidden_act must be 'sqrelu', got 'relu'"),
        ({"value_dim": 2 * DIM}, "value_dim must be hidden_size, 24, in every layer, got 48"),
    ):
        with pytest.raises(ValueError, match=message):
            foreign_config(CONFIG | changes)
    with pytest.raises(ValueError, match="head_dim must divide dim, got dim 128, head_dim 48"):
        zoo.create_model("rwkv7_nano", head_dim=48)
