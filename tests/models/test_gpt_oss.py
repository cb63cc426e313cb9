"""gpt-oss against transformers, through the folders it writes and back; experts as published, in MXFP4."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import zoo
from cases.peers import assert_same_gradients, close, shaken
from zoo.checkpoints.convert import gpt_oss
from zoo.layers import CausalAttention, SlidingWindowAttention

SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 5,
    "router_aux_loss_coef": 0.03,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "truncate": False}
SLIDING, FULL = "sliding_attention", "full_attention"
CASES = {
    "alternating": SIZES | {"rope_parameters": YARN | {"rope_theta": 100.0}},
    "odd": SIZES
    | {"layer_types": [FULL, FULL, SLIDING], "attention_bias": False, "num_key_value_heads": 6, "swiglu_limit": 0.3}
    | {"num_experts_per_tok": 1, "swiglu_alpha": 1.1, "rope_parameters": YARN | {"rope_theta": 50.0, "truncate": True}},
    "full": SIZES
    | {"layer_types": [FULL] * 3, "tie_word_embeddings": True, "rms_norm_eps": 1e-3, "num_hidden_layers": 3}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
}
MX = SIZES | {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_local_experts": 3}
PUBLISHED = {  # of openai/gpt-oss-20b; the larger one differs in two
    "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 24, "num_local_experts": 32,
    "num_experts_per_tok": 4, "experts_per_token": 4, "sliding_window": 128, "swiglu_limit": 7.0, "rope_theta": 150000,
    "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                     "rope_type": "yarn", "truncate": False},
    "rms_norm_eps": 1e-5, "router_aux_loss_coef": 0.9, "attention_bias": True, "tie_word_embeddings": False,
    "max_position_embeddings": 131072, "initial_context_length": 4096, "hidden_act": "silu", "attention_dropout": 0.0,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}  # fmt: skip


def peer(options: dict[str, Any]) -> Any:
    return shaken(transformers.GptOssConfig(**options), 0.2)


@pytest.mark.parametrize("case", CASES)
def test_prefill_and_every_step_agree_and_the_way_back(case, tmp_path):
    theirs = peer(CASES[case])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = zoo.create_model(f"local-dir:{tmp_path / 'theirs'}").eval()
    tokens = torch.randint(1, 96, (2, 40))
    with torch.no_grad():
        whole = theirs(tokens).logits
        close(ours(tokens), whole)
        for length in (1, 20):
            state, expected = ours.init_state(2), theirs(tokens[:, :length], use_cache=True)
            close(ours(tokens[:, :length], state), expected.logits)
            for t in range(length, length + 9):
                expected = theirs(tokens[:, t : t + 1], past_key_values=expected.past_key_values, use_cache=True)
                close(ours(tokens[:, t : t + 1], state), expected.logits)
        zoo.convert(tmp_path / "theirs", tmp_path / "ours")
        zoo.convert(tmp_path / "ours", tmp_path / "back", to="transformers")
        back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
        assert torch.equal(back.eval()(tokens).logits, whole)


@pytest.mark.parametrize("case", ["alternating", "odd"])
def test_loss_balance_and_gradients_agree(case, tmp_path):
    theirs = peer(CASES[case])
    theirs.save_pretrained(tmp_path)
    ours = zoo.create_model(f"local-dir:{tmp_path}")
    tokens, mask = torch.randint(1, 96, (2, 30)), torch.ones(2, 30, dtype=torch.int64)
    mask[0, :6] = 0
    labels = tokens.masked_fill(mask.cumsum(1) < 2, -100)
    expected = theirs(tokens, labels=labels, attention_mask=mask, output_router_logits=True)
    loss = ours(tokens, labels=labels, seq_idx=mask - 1) + sum(zoo.auxiliary_losses(ours).values())
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.loss.backward()
    assert_same_gradients(ours, theirs, gpt_oss)


def packed(folder: Any) -> dict[str, Tensor]:
    """The folder's experts in MXFP4, of any bytes, as published; returns the plain weights, by transformers."""
    tensors, plain = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj") and ".experts." in name]:
        experts, columns, rows = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 126, (experts, rows, columns // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = PUBLISHED["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return plain


def test_published_experts_are_read_as_transformers_reads_them(tmp_path):
    theirs = peer(MX)
    theirs.save_pretrained(tmp_path)
    plain = packed(tmp_path)
    theirs.load_state_dict(plain, strict=False)
    ours: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(ours.blocks[1].mlp.w3, plain[name][..., 1::2].float())
    tokens = torch.randint(1, 96, (2, 20))
    with torch.no_grad():
        close(ours(tokens), theirs(tokens).logits)
    zoo.convert(tmp_path, tmp_path / "plain", to="transformers")
    written = load_file(tmp_path / "plain" / "model.safetensors")
    assert written[name].dtype == torch.bfloat16 and torch.equal(written[name], plain[name])
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_all_scales_and_codes_are_those_of_transformers():
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 255, 16, 16).contiguous()
    scales = torch.arange(255, dtype=torch.uint8)[None, :, None].expand(1, 255, 16).contiguous()
    (ours,) = gpt_oss.from_mxfp4({"x_blocks": blocks, "x_scales": scales}).values()
    assert torch.equal(ours, convert_moe_packed_tensors(blocks, scales))


BLOCKS, SCALES = torch.zeros(2, 4, 3, 16, dtype=torch.uint8), torch.zeros(2, 4, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x_blocks": BLOCKS}, "x_blocks is in the checkpoint and x_scales is missing"),
        ({"x_scales": SCALES}, "x_scales is in the checkpoint and x_blocks is missing"),
        ({"x_blocks": BLOCKS, "x_scales": SCALES[:, :3]}, r"x in MXFP4 must be blocks .* got \(2, 4, 3, 16\)"),
        ({"x_blocks": BLOCKS, "x_scales": SCALES.float()}, "both uint8, got .* torch.float32"),
        ({"x_blocks": BLOCKS, "x_scales": SCALES + 255}, "x_scales holds 255, which stands for no number"),
    ],
)
def test_damaged_experts_are_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        gpt_oss.to_zoo(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "must be absent or have quant_method 'mxfp4', got 'awq'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout must be 0"),
        ({"layer_types": ["chunked_attention"] * 24}, "layer_types must be .*chunked_attention"),
    ],
)
def test_options_without_a_counterpart_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        gpt_oss.config_from_transformers(PUBLISHED | change)


def test_a_model_that_the_layout_has_no_words_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="experts in every block"):
        gpt_oss.to_transformers(zoo.create_model("gpt_oss_nano", expert_every=2).state_dict())
    zoo.save_model(zoo.create_model("gpt_oss_nano", attention_sinks=False), tmp_path / "a")
    with pytest.raises(ValueError, match="no words for attention_sinks=False"):
        zoo.convert(tmp_path / "a", tmp_path / "b", to="transformers")


@pytest.mark.parametrize(("name", "sizes"), [("gpt_oss_20b", (24, 32)), ("gpt_oss_120b", (36, 128))])
def test_published_sizes(name, sizes):
    content = PUBLISHED | dict(zip(("num_hidden_layers", "num_local_experts"), sizes, strict=True))
    model: Any = zoo.create_model(name, device="meta")
    _, fields = gpt_oss.config_from_transformers(content)
    assert model.config == zoo.config.from_json(model.config, name, fields)
    assert [type(mixer) for mixer in model.mixers[:2]] == [SlidingWindowAttention, CausalAttention]
