"""Dense decoders against transformers, through the folders it writes and back; their published sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
from cases.peers import assert_same_gradients, close, shaken
from zoo.checkpoints.convert import dense
from zoo.layers import CausalAttention, SlidingWindowAttention

SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}
SLIDING, FULL = "sliding_attention", "full_attention"
CASES = {
    "llama": (transformers.LlamaConfig, {"rope_parameters": LLAMA3, "head_dim": 10, "attention_bias": True}),
    "llama-tied": (
        transformers.LlamaConfig,
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}},
    ),
    "llama-yarn": (
        transformers.LlamaConfig,
        {"rope_parameters": YARN, "num_key_value_heads": 6, "max_position_embeddings": 32},
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": 5, "head_dim": 14, "num_key_value_heads": 3}),
    "mistral-full": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen2-yarn": (transformers.Qwen2Config, {"rope_parameters": YARN, "max_position_embeddings": 32}),
    "qwen3": (
        transformers.Qwen3Config,
        {"head_dim": 14, "use_sliding_window": True, "sliding_window": 3, "layer_types": [SLIDING, FULL, SLIDING]},
    ),
    "qwen3-tied": (transformers.Qwen3Config, {"head_dim": 6, "attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": (
        transformers.SmolLM3Config,
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5, "attention_bias": True}
        | {"pad_token_id": 0},
    ),
    "smollm3-untied": (
        transformers.SmolLM3Config,
        {"no_rope_layer_interval": 2, "tie_word_embeddings": False, "pad_token_id": 0},
    ),
    "gemma2": (
        transformers.Gemma2Config,
        {"head_dim": 10, "sliding_window": 5, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0},
    ),
    "gemma2-uncapped": (
        transformers.Gemma2Config,
        {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": [FULL] * 3}
        | {"tie_word_embeddings": False, "attention_bias": True},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {"head_dim": 10, "sliding_window": 5, "layer_types": [SLIDING, FULL, SLIDING], "query_pre_attn_scalar": 9}
        | {
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 30.0},
                FULL: {"rope_type": "linear", "factor": 3.0, "rope_theta": 200.0},
            }
        },
    ),
    "olmo2": (transformers.Olmo2Config, {"attention_bias": True}),
    "olmo2-tied": (transformers.Olmo2Config, {"tie_word_embeddings": True, "num_key_value_heads": 6}),
}


def peer(case: str) -> torch.nn.Module:
    config_class, options = CASES[case]
    return shaken(config_class(**SIZES | options), attn_implementation="eager")


@pytest.mark.parametrize("case", CASES)
def test_prefill_and_every_step_agree_and_the_way_back(case, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
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
        back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
        assert torch.equal(back.eval()(tokens).logits, whole)


def test_layers_are_what_the_configuration_says(tmp_path):
    peer("qwen3").save_pretrained(tmp_path)
    model: Any = zoo.create_model(f"local-dir:{tmp_path}")
    assert [type(mixer) for mixer in model.mixers] == [SlidingWindowAttention, CausalAttention, SlidingWindowAttention]
    assert model.init_state(1).nbytes == 4 * model.state_size(16)
    peer("smollm3").save_pretrained(tmp_path)
    model: Any = zoo.create_model(f"local-dir:{tmp_path}")
    assert [mixer.rotary is None for mixer in model.mixers] == [False, True, False]


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("windowed", [True, False])
def test_windows_by_the_place_of_a_layer(model_type, windowed):
    """Of a file without layer_types, and without what its class has a default for."""
    options = SIZES | {"num_hidden_layers": 13, "use_sliding_window": windowed, "sliding_window": 4}
    expected = transformers.AutoConfig.for_model(model_type, **options | {"max_window_layers": 5}).layer_types
    content = {"model_type": model_type, "max_window_layers": 5} | options
    _, fields = dense.config_from_transformers(content)
    full = [fields["window"] is None or index in fields["full_layers"] for index in range(13)]
    assert [FULL if one else SLIDING for one in full] == expected


@pytest.mark.parametrize("case", ["olmo2", "gemma2"])
def test_loss_and_gradients_agree(case, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path)
    ours = zoo.create_model(f"local-dir:{tmp_path}")
    tokens = torch.randint(2, 96, (2, 30))
    loss, expected = ours(tokens, labels=tokens), theirs(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    assert_same_gradients(ours, theirs, dense)


def test_files_of_old_versions_load(tmp_path):
    """Frequencies among the tensors, a head beside the embedding that it is tied to, rope_scaling of version 4."""
    theirs = peer("llama-tied")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 3.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = torch.randint(96, (1, 20))
    with torch.no_grad():
        close(zoo.create_model(f"local-dir:{tmp_path}").eval()(tokens), theirs(tokens).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"attention_dropout": 0.1}, "attention_dropout must be 0, got 0.1"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be None"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "default, linear, llama3, yarn, got 'dynamic'"),
        ({"rope_parameters": YARN | {"long_factor": [1.0]}}, "type 'yarn' have no long_factor here"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor of the rotary positions must be 1, got 0.5"),
        ({"model_type": "qwen3", "layer_types": ["chunked_attention"] * 3}, "layer_types must be .*chunked_attention"),
    ],
)
def test_options_without_a_counterpart_are_refused_by_name(change, message):
    config = {"model_type": "llama"} | SIZES
    with pytest.raises(ValueError, match=message):
        dense.config_from_transformers(config | change)


def test_a_mixture_that_no_published_family_has_is_refused_by_name(tmp_path):
    zoo.save_model(zoo.create_model("transformer_nano", qk_norm="joint", window=4), tmp_path / "a")
    with pytest.raises(ValueError, match=r"no words for .*qk_norm='joint'"):
        zoo.convert(tmp_path / "a", tmp_path / "b", to="transformers")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_layers": (0,)}, "full_layers are those without the window"),
        ({"nope_layers": (3,)}, r"nope_layers must be indices of the 3 blocks, got \(3,\)"),
        ({"qk_norm": "layer"}, "qk_norm must be one of .*, got 'layer'"),
        ({"norm_order": "both ways"}, "norm_order must be one of"),
        ({"rope_scaling": {"kind": "ntk"}}, "one of linear, llama3, yarn, got 'ntk'"),
        ({"logit_softcap": 0.0}, "logit_softcap must be above 0, got 0.0"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"window": 0}, "window must be a positive integer, got 0"),
    ],
)
def test_configurations_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("transformer_nano", **changes)
