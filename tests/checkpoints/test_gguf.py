"""GGUF files: llama.cpp reads them and computes what transformers does; forms, vocabularies and bad input."""

from __future__ import annotations

import importlib.util
import json
import pydoc_data.topics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import zoo
from cases.llama_cpp import NOT_HERE, log_probabilities
from cases.peers import shaken

VOCABULARY = 300
TEXT = "The with statement, naïve: [1234]\n"
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
TURNS = {"rope_type": "default", "rope_theta": 5000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
NO_BIAS = {"tie_word_embeddings": False}
FALCON_H1 = {
    "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2,
    "mamba_chunk_size": 4, "embedding_multiplier": 1.5, "lm_head_multiplier": 0.7, "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 1.2, "key_multiplier": 0.8, "ssm_in_multiplier": 1.1, "ssm_out_multiplier": 0.6,
    "ssm_multipliers": [0.5, 1.2, 0.9, 1.1, 0.8], "mlp_multipliers": [1.3, 0.7],
}  # fmt: skip
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, **HEADS, rope_parameters=TURNS, attention_bias=True),
    "llama3": lambda: transformers.LlamaConfig(**SIZES, **HEADS, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "linear": lambda: transformers.LlamaConfig(
        **SIZES, **HEADS, rope_parameters={**TURNS, "rope_type": "linear", "factor": 4.0}
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, **HEADS, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, **HEADS),
    "mixtral": lambda: transformers.MixtralConfig(
        **SIZES, **HEADS, rope_parameters=TURNS, num_local_experts=5, num_experts_per_tok=2
    ),
    "olmoe": lambda: transformers.OlmoeConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=4, num_experts=6, num_experts_per_tok=3
    ),
    "tied olmoe": lambda: transformers.OlmoeConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=4, num_experts=6, num_experts_per_tok=3,
        tie_word_embeddings=True,
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, **HEADS, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True
    ),
    "mamba": lambda: transformers.MambaConfig(**SIZES | {"intermediate_size": 128}, state_size=8, time_step_rank=5),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(**SIZES | {"intermediate_size": 128}, state_size=8),
    "falcon_mamba with an eps": lambda: transformers.FalconMambaConfig(
        **SIZES | {"intermediate_size": 128}, state_size=8, mixer_rms_eps=0.3
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
        num_heads=8, head_dim=16, state_size=16, n_groups=2, chunk_size=4, tie_word_embeddings=False,
    ),
    "falcon_h1": lambda: transformers.FalconH1Config(
        **SIZES, **HEADS, **FALCON_H1, mamba_rms_norm=False, tie_word_embeddings=True
    ),
    "falcon_h1 with a norm": lambda: transformers.FalconH1Config(
        **SIZES, **HEADS, **FALCON_H1, mamba_rms_norm=True, mamba_norm_before_gate=False
    ),
}  # fmt: skip
llama_cpp = pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason=NOT_HERE)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Merges of bytes, learnt from some text."""
    merged = tokenizers.ByteLevelBPETokenizer()
    merged.train_from_iterator(list(pydoc_data.topics.topics.values())[:5], VOCABULARY - 2, show_progress=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=merged._tokenizer)
    fast.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    begun = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", fast.bos_token_id)])
    fast.backend_tokenizer.post_processor = begun
    return fast


@llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_transformers_does(name, tokenizer, tmp_path):
    """Of a text, so with its tokenizer too."""
    model = shaken(MODELS[name]())
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "theirs")
    file = zoo.convert(tmp_path / "theirs", tmp_path / "model.gguf", to="gguf")
    ids = tokenizer(TEXT)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and len(ids) < len(TEXT.encode())
    expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(log_probabilities(file, TEXT, VOCABULARY), expected.float(), atol=1e-4, rtol=1e-4)


@llama_cpp
@pytest.mark.parametrize("name", ["transformer_nano", "mamba_nano", "mamba2_nano", "falcon_h1_nano", "moe_nano"])
def test_bundled_models_read_text_there(name, tmp_path):
    model: Any = zoo.create_model(name, pretrained=True).eval()
    zoo.save_model(model, tmp_path / "saved")
    tokens = torch.tensor([[0, *TEXT.encode()]])
    found = log_probabilities(zoo.convert(tmp_path / "saved", tmp_path, to="gguf"), TEXT, 256)
    torch.testing.assert_close(found, model(tokens)[0, -1].log_softmax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("form", "bits"), [("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q4_0", 4.5)])
def test_forms_take_their_bytes_and_no_more(form, bits, tmp_path):
    import gguf

    model: Any = zoo.create_model("mamba2_nano")
    zoo.save_model(model, tmp_path / "saved")
    file = zoo.convert(tmp_path / "saved", tmp_path / "model.gguf", to="gguf", form=form)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    weight = model.blocks[1].mixer.in_proj.weight.detach().numpy()
    stored = tensors["blk.1.ssm_in.weight"]
    assert stored.n_bytes == weight.size * bits / 8
    error = gguf.quants.dequantize(stored.data, stored.tensor_type) - weight
    assert 0 < np.abs(error).max() < np.abs(weight).max() / 2 ** min(bits - 2, 7)
    assert {tensors[f"blk.1.ssm_{name}"].tensor_type for name in ("a", "d", "conv1d.weight", "norm.weight")} == {0}


def test_what_llama_cpp_has_no_words_for_is_refused(tmp_path):
    def saved(config: Any) -> Path:
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs"

    with pytest.raises(ValueError, match=r"llama\.cpp's llama has sliding_window None, got 8"):
        zoo.convert(saved(transformers.MistralConfig(**SIZES, **HEADS, sliding_window=8)), tmp_path, to="gguf")
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(ValueError, match="rope_type must be default, linear or llama3 in a GGUF file, got 'yarn'"):
        zoo.convert(saved(transformers.LlamaConfig(**SIZES, **HEADS, rope_parameters=yarn)), tmp_path, to="gguf")
    for kind in (transformers.Qwen2Config, transformers.Qwen3Config):
        config = kind(**SIZES, num_attention_heads=4, num_key_value_heads=2, rope_parameters=LLAMA3)
        with pytest.raises(ValueError, match=r"llama\.cpp's qwen[23] has no rope_type 'llama3': convert to 'transf"):
            zoo.convert(saved(config), tmp_path, to="gguf")
    falcon = transformers.FalconMambaConfig(**SIZES | {"intermediate_size": 128}, state_size=8, mixer_rms_eps=0.0)
    with pytest.raises(ValueError, match=r"mixer_rms_eps must be layer_norm_epsilon 1e-05, got 0\.0"):
        zoo.convert(saved(falcon), tmp_path, to="gguf")
    folder = saved(transformers.LlamaConfig(**SIZES, **HEADS))
    for options, message in (
        ({"to": "gguf", "form": "q3_k"}, "a GGUF file has matrices in f32, f16, .*, got 'q3_k'"),
        ({"to": "zoo", "form": "q8_0"}, "form is of matrices in a GGUF file"),
        ({"to": "gguf", "max_shard_size": 10**9}, "a GGUF file is one"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.convert(folder, tmp_path, **options)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}))
    with pytest.raises(ValueError, match="no tokenizer that merges bytes"):
        zoo.convert(folder, tmp_path, to="gguf")
    zoo.save_model(zoo.create_model("retnet_nano"), tmp_path / "saved")
    with pytest.raises(ValueError, match=r"GGUF files are written of llama, .*, got 'retnet'"):
        zoo.convert(tmp_path / "saved", tmp_path, to="gguf")
    zoo.save_model(zoo.factorize(zoo.create_model("transformer_nano"), 4), tmp_path / "factors")
    with pytest.raises(ValueError, match=r"factors holds factors .*, which no other layout has: convert it to 'zoo'"):
        zoo.convert(tmp_path / "factors", tmp_path, to="gguf")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("number", "form", "message"),
    [
        (1e6, "f16", "holds 1e[+]06, more than f16 can: take another form, such as f32"),
        (1e6, "q4_0", "holds 1e[+]06, more than q4_0 can"),
        (-1e6, "q4_1", "holds 1e[+]06, more than q4_1 can"),
        (1e8, "q8_0", "holds 1e[+]08, more than q8_0 can"),
        (3.4e38, "bf16", "holds 3.4e[+]38, more than bf16 can"),
        (float("nan"), None, "holds nan as f32; mend the checkpoint"),
        (float("-inf"), "q8_0", "holds inf as q8_0; mend the checkpoint"),
        (1e6, "f32", ""),
        (65504.0, "f16", ""),
        (1e6, "q8_0", ""),
    ],
)
def test_a_number_that_a_form_cannot_hold_is_named(number, form, message, tmp_path):
    model: Any = zoo.create_model("mamba2_nano")
    with torch.no_grad():
        model.blocks[1].mixer.in_proj.weight[3, 5] = number
    zoo.save_model(model, tmp_path / "saved")
    with pytest.raises(ValueError, match="1.mixer.in_proj.weight " + message) if message else nullcontext():
        zoo.convert(tmp_path / "saved", tmp_path / "model.gguf", to="gguf", form=form)
    assert (tmp_path / "model.gguf").exists() != bool(message)
