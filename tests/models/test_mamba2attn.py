"""The hybrid of Mamba-2 and attention: its attention written out, its published configuration and names."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import zoo
from zoo.checkpoints.convert import foreign_config
from zoo.layers.attention import ConvolvedAttention

PUBLISHED = {  # state-spaces/mamba2attn-2.7b
    "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [9, 18, 27, 36, 45, 56],
    "attn_cfg": {
        "causal": True, "d_conv": 4, "head_dim": 128, "num_heads": 30, "out_proj_bias": False, "qkv_proj_bias": False,
        "rotary_emb_dim": 64,
    },
    "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}  # fmt: skip


def test_attention_is_the_formula_channel_by_channel():
    heads, d, rotary, taps, length = 2, 6, 4, 3, 5
    layer = ConvolvedAttention(8, heads, head_dim=d, rotary_dim=rotary, kernel_size=taps).double()
    x = torch.randn(1, length, 8, dtype=torch.float64)
    mixed = (x[0] @ layer.in_proj.weight.T).detach()
    qkv = torch.zeros(length, 3 * heads * d, dtype=torch.float64)
    weight, bias = layer.conv1d.weight.detach(), layer.conv1d.bias.detach()
    for t in range(length):
        for tap in range(min(taps, t + 1)):
            qkv[t] += weight[:, 0, taps - 1 - tap] * mixed[t - tap]
        qkv[t] += bias
    q, k, v = qkv.view(length, 3, heads, d).unbind(1)
    for t in range(length):
        for i in range(rotary // 2):
            angle = torch.tensor(t * 10000.0 ** (-2 * i / rotary), dtype=torch.float64)
            for part in (q, k):
                a, b = part[t, :, i].clone(), part[t, :, i + rotary // 2].clone()
                part[t, :, i] = a * angle.cos() - b * angle.sin()
                part[t, :, i + rotary // 2] = b * angle.cos() + a * angle.sin()
    y = torch.zeros(length, heads, d, dtype=torch.float64)
    for t in range(length):
        for h in range(heads):
            y[t, h] = ((k[: t + 1, h] @ q[t, h]) / d**0.5).softmax(0) @ v[: t + 1, h]
    torch.testing.assert_close(layer(x)[0], y.flatten(1) @ layer.out_proj.weight.T, rtol=1e-10, atol=1e-12)


def test_published_configuration_and_names_are_the_registered_ones():
    model: Any = zoo.create_model("mamba2attn_2_7b", device="meta")
    family, fields = foreign_config(PUBLISHED)
    assert family == "mamba2" and all(getattr(model.config, name) == value for name, value in fields.items())
    shapes = {
        key.removeprefix("blocks.9.mixer."): tuple(t.shape) for key, t in model.state_dict().items() if ".9." in key
    }
    assert shapes == {
        "in_proj.weight": (11520, 2560), "conv1d.weight": (11520, 1, 4), "conv1d.bias": (11520,),
        "out_proj.weight": (2560, 3840), "blocks.9.norm.weight": (2560,),
    }  # fmt: skip
    plain = zoo.model_info("mamba2_2_7b").num_parameters
    mamba = sum(p.numel() for p in model.blocks[0].mixer.parameters())
    attention = 2560 * 11520 + 5 * 11520 + 3840 * 2560
    assert zoo.model_info("mamba2attn_2_7b").num_parameters == plain + 6 * (attention - mamba)


def test_the_authors_folder_loads_and_decodes(tmp_path):
    options = {"attention_layers": (1, 3), "attention_heads": 3, "attention_head_dim": 16, "attention_rotary_dim": 8}
    model: Any = zoo.create_model("mamba2_nano", **options).eval()
    published = {f"backbone.{key}".replace("blocks.", "layers.").replace("backbone.norm.", "backbone.norm_f."): tensor
                 for key, tensor in model.state_dict().items() if not key.startswith("head.")}  # fmt: skip
    torch.save(published | {"lm_head.weight": model.head.weight.detach()}, tmp_path / "pytorch_model.bin")
    attention = {"causal": True, "d_conv": 4, "num_heads": 3, "head_dim": 16, "rotary_emb_dim": 8}
    config = PUBLISHED | {
        "d_model": 128, "n_layer": 4, "vocab_size": 256, "attn_layer_idx": [1, 3], "attn_cfg": attention,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 32, "headdim": 32},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    tokens, state = torch.randint(0, 256, (2, 12)), loaded.init_state(2)
    whole = loaded(tokens)
    torch.testing.assert_close(whole, model(tokens))
    steps = torch.cat([loaded(part, state) for part in tokens.split([7, 1, 1, 3], dim=1)], dim=1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no words for attention_layers"):
        zoo.convert(tmp_path, tmp_path / "there", to="transformers")


def test_options_that_are_not_here_are_named():
    for changes, message in (
        ({"ssm_cfg": {}}, "attn_layer_idx must be \\[\\] in a Mamba"),
        ({"attn_cfg": {"num_heads": 3}}, "attn_cfg must say what attention_head_dim"),
        ({"attn_cfg": PUBLISHED["attn_cfg"] | {"num_heads_kv": 5}}, "num_heads_kv must be 'left out', got 5"),
        ({"attn_cfg": PUBLISHED["attn_cfg"] | {"qkv_proj_bias": True}}, "qkv_proj_bias must be False, got True"),
    ):
        with pytest.raises(ValueError, match=message):
            foreign_config(PUBLISHED | changes)
    with pytest.raises(ValueError, match="attention_layers must be blocks in"):
        zoo.create_model("mamba2_nano", attention_layers=(4,))
    with pytest.raises(ValueError, match="rotary_dim must be even and at most head_dim 8, got 10"):
        ConvolvedAttention(24, 3, head_dim=8, rotary_dim=10)
