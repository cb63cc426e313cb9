"""RecurrentGemma, LFM2, Qwen3-Next and Qwen3.5 against transformers, through the folders it writes and back."""

from __future__ import annotations

import pytest
import torch
import transformers

import zoo
from cases.peers import assert_same_gradients, close, shaken
from zoo.checkpoints.convert import lfm2, qwen3_next, recurrent_gemma

LINEAR, FULL = "linear_attention", "full_attention"
SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2,
}  # fmt: skip
GRIFFIN = SIZES | {"attention_window_size": 7}
LFM2 = SIZES | {"block_multiple_of": 8}
QWEN = SIZES | {
    "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 10,
    "linear_value_head_dim": 6, "layer_types": [LINEAR, FULL, LINEAR],
}  # fmt: skip
EXPERTS = {
    "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28,
}  # fmt: skip
CASES = {
    "recurrent_gemma": (transformers.RecurrentGemmaConfig, GRIFFIN | {"num_hidden_layers": 4, "lru_width": 48}),
    "recurrent_gemma-wide": (
        transformers.RecurrentGemmaConfig,
        GRIFFIN
        | {"lru_width": 60, "conv1d_width": 3, "attention_bias": True, "logits_soft_cap": 2.0, "num_key_value_heads": 3}
        | {"block_types": ["attention", "recurrent"], "tie_word_embeddings": False},
    ),
    "lfm2": (transformers.Lfm2Config, LFM2 | {"layer_types": ["conv", FULL, "conv"]}),
    "lfm2-biases": (
        transformers.Lfm2Config,
        LFM2
        | {"full_attn_idxs": [0], "conv_bias": True, "conv_L_cache": 4, "block_auto_adjust_ff_dim": False}
        | {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    ),
    "qwen3_next": (transformers.Qwen3NextConfig, QWEN | EXPERTS),
    "qwen3_next-dense": (
        transformers.Qwen3NextConfig,
        QWEN
        | EXPERTS
        | {"mlp_only_layers": [1], "attention_bias": True, "norm_topk_prob": False, "linear_conv_kernel_dim": 3}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    ),
    "qwen3_5": (transformers.Qwen3_5TextConfig, QWEN | {"tie_word_embeddings": True}),
    "qwen3_5_moe": (transformers.Qwen3_5MoeTextConfig, QWEN | EXPERTS),
}


def peer(case: str) -> torch.nn.Module:
    config_class, options = CASES[case]
    return shaken(config_class(**options))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_prefill_and_every_step_agree_and_the_way_back(case, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = zoo.create_model(f"local-dir:{tmp_path / 'theirs'}").eval()
    tokens = torch.randint(1, 96, (2, 40))
    whole = theirs(tokens).logits
    close(ours(tokens), whole)
    shortest = 2 if case == "recurrent_gemma-wide" else 1  # its state before the first token has the model's width
    for length in (shortest, 20):
        state, cache = ours.init_state(2), transformers.DynamicCache(config=theirs.config)
        if case.startswith("recurrent_gemma"):  # its layers keep their states from call to call
            theirs._setup_cache(theirs.config, 2, "cpu", torch.float32)
        for start, stop in [(0, length), *((t, t + 1) for t in range(length, length + 9))]:
            expected = theirs(tokens[:, start:stop], past_key_values=cache, use_cache=True).logits
            close(ours(tokens[:, start:stop], state), expected)
    zoo.convert(tmp_path / "theirs", tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert type(back) is type(theirs)
    assert torch.equal(back(tokens).logits, whole)


@pytest.mark.parametrize(
    ("case", "converter"),
    [("recurrent_gemma-wide", recurrent_gemma), ("lfm2", lfm2), ("qwen3_next", qwen3_next), ("qwen3_5", qwen3_next)],
)
def test_loss_and_gradients_agree(case, converter, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path)
    ours = zoo.create_model(f"local-dir:{tmp_path}")
    tokens = torch.randint(1, 96, (2, 30))  # the embedding of transformers' padding token, 0, has no gradient
    loss, expected = ours(tokens, labels=tokens), theirs(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    assert_same_gradients(ours, theirs, converter)


@torch.no_grad()
def test_the_text_model_of_one_that_sees_images_loads(tmp_path):
    config_class, text = CASES["qwen3_5"]
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 48}
    config = transformers.Qwen3_5Config(text_config=config_class(**text), vision_config=vision)
    theirs = transformers.AutoModelForImageTextToText.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(96, (2, 20))
    close(zoo.create_model(f"local-dir:{tmp_path}").eval()(tokens), theirs(tokens).logits)


@pytest.mark.parametrize(
    ("converter", "options", "message"),
    [
        (recurrent_gemma, {"hidden_activation": "gelu"}, "hidden_activation must be 'gelu_pytorch_tanh', got 'gelu'"),
        (recurrent_gemma, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions must be unscaled"),
        (lfm2, {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rotary positions must be unscaled"),
        (qwen3_next, {"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        (qwen3_next, {"decoder_sparse_step": 2}, "decoder_sparse_step must be 1"),
        (qwen3_next, {"layer_types": [FULL, LINEAR, FULL]}, "layer_types must have attention in every so manieth"),
    ],
)
def test_options_without_a_counterpart_are_refused_by_name(converter, options, message):
    config = {"model_type": converter.MODEL_TYPES[0]} | SIZES
    with pytest.raises(ValueError, match=message):
        converter.config_from_transformers(config | options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("recurrent_gemma_nano", {"pattern": ("recurrent", "window")}, "pattern must name mixers out of"),
        ("recurrent_gemma_nano", {"num_heads": 3}, "num_blocks must divide dim, got dim 128, num_blocks 3"),
        ("lfm2_nano", {"attention_layers": (4,)}, r"attention_layers must be blocks in \[0, depth = 4\)"),
        ("qwen3_next_nano", {"delta_key_heads": 3}, "num_key_heads must divide num_heads, got 3 and 4"),
        ("qwen3_next_nano", {"dense_layers": (3,)}, r"dense_layers must be blocks in \[0, depth = 3\)"),
    ],
)
def test_configurations_that_cannot_work_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model(name, **options)
