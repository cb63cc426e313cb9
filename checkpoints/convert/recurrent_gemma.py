"""RecurrentGemma checkpoints, published in transformers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.rename import rename
from zoo.checkpoints.convert.rope import read_partial_rope, write_partial_rope

MODEL_TYPES = ("recurrent_gemma",)
_NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.final_norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.temporal_pre_norm.", "blocks.#.norm."),
    ("model.layers.#.channel_pre_norm.", "blocks.#.mlp_norm."),
    ("model.layers.#.temporal_block.linear_x.", "blocks.#.mixer.x_proj."),
    ("model.layers.#.temporal_block.linear_y.", "blocks.#.mixer.gate_proj."),
    ("model.layers.#.temporal_block.linear_out.", "blocks.#.mixer.out_proj."),
    ("model.layers.#.temporal_block.conv_1d.", "blocks.#.mixer.conv1d."),
    ("model.layers.#.temporal_block.rg_lru.recurrent_param", "blocks.#.mixer.rg_lru.Lambda"),
    ("model.layers.#.temporal_block.rg_lru.recurrent_gate_", "blocks.#.mixer.rg_lru.r_gate."),
    ("model.layers.#.temporal_block.rg_lru.input_gate_", "blocks.#.mixer.rg_lru.i_gate."),
    ("model.layers.#.temporal_block.o_proj.", "blocks.#.mixer.out_proj."),
    ("model.layers.#.temporal_block.", "blocks.#.mixer."),
    ("model.layers.#.mlp_block.gate_proj.", "blocks.#.mlp.w1."),
    ("model.layers.#.mlp_block.up_proj.", "blocks.#.mlp.w3."),
    ("model.layers.#.mlp_block.down_proj.", "blocks.#.mlp.w2."),
]
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "num_attention_heads": "num_heads",
    "attention_window_size": "window",
    "conv1d_width": "d_conv",
    "attention_bias": "attention_bias",
    "logits_soft_cap": "logit_softcap",
}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published RecurrentGemma."""
    return any(key.startswith("model.layers.0.temporal_block.") for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    return rename(state_dict, _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of RecurrentGemmaForCausalLM; tensors unchanged."""
    attention = {key.rpartition("q_proj.")[0] for key in state_dict if key.endswith(".mixer.q_proj.weight")}
    named = {}
    for key, tensor in state_dict.items():
        mixer, output, end = key.partition("out_proj.")
        named[f"{mixer}o_proj.{end}" if output and mixer in attention else key] = tensor
    return rename(named, _NAMES, backwards=True)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("recurrent_gemma", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    if config.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise ValueError(f"hidden_activation must be 'gelu_pytorch_tanh', got {config['hidden_activation']!r}")
    if config.get("attention_dropout"):
        raise ValueError(f"attention_dropout must be 0, got {config['attention_dropout']}")
    base, fraction = read_partial_rope(config, 0.5)
    fields = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    return "recurrent_gemma", fields | {
        "num_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "recurrence_dim": config.get("lru_width") or config["hidden_size"],
        "mlp_dim": config["intermediate_size"] // 2,
        "pattern": tuple(config.get("block_types") or ("recurrent", "recurrent", "attention")),
        "rope_base": base,
        "rotary_fraction": fraction,
    }  # fmt: skip


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our RecurrentGemma configuration -> transformers' ``config.json``."""
    return {theirs: config[ours] for theirs, ours in _FIELDS.items()} | {
        "model_type": "recurrent_gemma",
        "architectures": ["RecurrentGemmaForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": config["num_kv_heads"],
        "lru_width": config["recurrence_dim"],
        "intermediate_size": 2 * config["mlp_dim"],
        "block_types": list(config["pattern"]),
        "rope_parameters": write_partial_rope(config["rope_base"], config["rotary_fraction"]),
    }  # fmt: skip
