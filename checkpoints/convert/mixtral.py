"""Mixtral checkpoints, in both layouts of the experts that transformers has.

Files have ``block_sparse_moe`` with w1, w2 and w3 of each expert, a model of transformers 5 in memory ``mlp``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.experts import gathered, spread
from zoo.checkpoints.convert.rename import rename

MODEL_TYPES = ("mixtral",)
_NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.post_attention_layernorm.", "blocks.#.mlp_norm."),
    ("model.layers.#.self_attn.o_proj.", "blocks.#.mixer.out_proj."),
    ("model.layers.#.self_attn.", "blocks.#.mixer."),
    ("model.layers.#.mlp.gate.", "blocks.#.mlp.router."),
    ("model.layers.#.mlp.experts.", "blocks.#.mlp."),
]
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "initializer_range",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "mlp_dim",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "router_aux_loss_coef": "balance_weight",
}
_DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
    "router_aux_loss_coef": 0.001,
}
_LAYER = re.compile(
    r"(input_layernorm|post_attention_layernorm|self_attn\.[qkvo]_proj)\.weight|(mlp|block_sparse_moe)\.(gate\.weight|"
    r"experts\.(gate_up_proj|down_proj|\d+\.w[123]\.weight))"
)
_WEIGHTS = {name: name for name in ("w1", "w3", "w2")}  # of an expert in the files


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the first layer has the keys of a Mixtral, and no others, in either layout."""
    start = "model.layers.0."
    layer = [key.removeprefix(start) for key in state_dict if key.startswith(start)]
    return any(".experts." in key for key in layer) and all(_LAYER.fullmatch(key) for key in layer)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; the experts' tensors transposed and stacked.

    Raises:
        ValueError: where one of a layer's experts is missing.
    """
    published = {key.replace(".block_sparse_moe.", ".mlp."): tensor for key, tensor in state_dict.items()}
    return rename(gathered(published, _WEIGHTS), _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of MixtralForCausalLM: in memory, or with ``stacked`` False those of its files.

    Raises:
        ValueError: for a model with dense feed-forward layers, which Mixtral has not.
    """
    if dense := next((key for key in state_dict if ".mlp.w" in key and key.endswith(".weight")), None):
        raise ValueError(f"Mixtral has experts in every block (expert_every=1), this model has the dense {dense}")
    published = spread(rename(state_dict, _NAMES, backwards=True), stacked, _WEIGHTS)
    return published if stacked else {key.replace(".mlp.", ".block_sparse_moe."): t for key, t in published.items()}


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("moe", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {config['hidden_act']!r}")
    for name in ("sliding_window", "attention_dropout", "router_jitter_noise"):
        if config.get(name):
            raise ValueError(f"{name} must be absent or 0, as in Mixtral 8x7B, got {config[name]!r}")
    rope = config.get("rope_parameters") or config
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise ValueError(f"rotary positions must be unscaled, got {config.get('rope_scaling') or rope}")
    given = _DEFAULTS | {name: value for name, value in config.items() if value is not None}
    fields = {ours: given[theirs] for theirs, ours in _FIELDS.items() if theirs in given}
    return "moe", fields | {
        "rope_base": float(rope.get("rope_theta", 1e6)),
        "head_dim": config.get("head_dim"),
        "normalize": True,
        "z_weight": 0.0,
        "joint_balance": True,
        "residual_in_fp32": False,
        "expert_every": 1,
        "capacity_factor": None,
    }


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration with the values that None stands for."""
    defaults = {
        "head_dim": config["dim"] // config["num_heads"],
        "num_kv_heads": config["num_heads"],
        "normalize": config["top_k"] > 1,
    }
    return {**config, **{name: value for name, value in defaults.items() if config[name] is None}}


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our mixture-of-experts transformer -> transformers' ``config.json`` of a Mixtral."""
    return {theirs: config[ours] for theirs, ours in _FIELDS.items()} | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_base"]},
        "head_dim": config["head_dim"],
        "sliding_window": None,
    }
