"""LFM2 checkpoints, published in transformers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.rename import rename
from zoo.checkpoints.convert.rope import read_rope, write_rope

MODEL_TYPES = ("lfm2",)
_NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.embedding_norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.operator_norm.", "blocks.#.norm."),
    ("model.layers.#.ffn_norm.", "blocks.#.mlp_norm."),
    ("model.layers.#.feed_forward.", "blocks.#.mlp."),
    ("model.layers.#.self_attn.q_layernorm.", "blocks.#.mixer.q_norm."),
    ("model.layers.#.self_attn.k_layernorm.", "blocks.#.mixer.k_norm."),
    ("model.layers.#.self_attn.", "blocks.#.mixer."),
    ("model.layers.#.conv.", "blocks.#.mixer."),
]
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "initializer_range",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "conv_L_cache": "kernel_size",
    "conv_bias": "conv_bias",
}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published LFM2 without experts."""
    return {"model.layers.0.operator_norm.weight", "model.layers.0.feed_forward.w1.weight"} <= state_dict.keys()


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    return rename(state_dict, _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of Lfm2ForCausalLM; tensors unchanged."""
    attention = {key.split(".q_proj.")[0] for key in state_dict if ".mixer.q_proj." in key}
    published = {}
    for key, tensor in rename(state_dict, [pair for pair in _NAMES if "mixer" not in pair[1]], backwards=True).items():
        block, mixer, name = key.partition(".mixer.")
        if mixer:
            kind = "self_attn" if f"{block}.mixer" in attention else "conv"
            name = name.replace("_norm.", "_layernorm.")
            key = f"{block.replace('blocks.', 'model.layers.')}.{kind}.{name}"
        published[key] = tensor
    return published


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("lfm2", fields of its configuration).

    Raises:
        ValueError: for rotary positions that are scaled.
    """
    base, scaling = read_rope(config, 1e6)
    if scaling is not None:
        raise ValueError(f"rotary positions must be unscaled, got {scaling}")
    fields = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    if "tie_embedding" in config:
        fields["tie_embeddings"] = config["tie_embedding"]
    depth, layers = config["num_hidden_layers"], config.get("layer_types")
    if layers is not None:
        attention = [index for index, kind in enumerate(layers) if kind == "full_attention"]
    else:
        attention = range(depth) if config.get("full_attn_idxs") is None else config["full_attn_idxs"]
    return "lfm2", fields | {
        "attention_layers": tuple(attention),
        "rope_base": base,
        "mlp_dim": _mlp_dim(config),
    }


def _mlp_dim(config: Mapping[str, Any]) -> int:
    """The hidden width: that of the file, or two thirds of it, times a factor, rounded up to a multiple."""
    width = config.get("block_ff_dim") or config["intermediate_size"]
    if not config.get("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if (factor := config.get("block_ffn_dim_multiplier", 1.0)) is None:
        return width
    multiple = config.get("block_multiple_of", 256)
    return multiple * -(-int(factor * width) // multiple)


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our LFM2 configuration -> transformers' ``config.json``."""
    kinds = ["full_attention" if i in config["attention_layers"] else "conv" for i in range(config["depth"])]
    return {theirs: config[ours] for theirs, ours in _FIELDS.items()} | {
        "model_type": "lfm2",
        "architectures": ["Lfm2ForCausalLM"],
        "layer_types": kinds,
        "intermediate_size": config["mlp_dim"],
        "block_auto_adjust_ff_dim": False,
        "rope_parameters": write_rope(config["rope_base"], None),
    }
