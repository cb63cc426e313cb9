"""Falcon-H1 checkpoints, published in transformers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import hybrid
from zoo.checkpoints.convert.rename import DECODER, number, rename, written

MODEL_TYPES = ("falcon_h1",)
_NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.final_layernorm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.pre_ff_layernorm.", "blocks.#.mlp_norm."),
    ("model.layers.#.mamba.", "blocks.#.mixer.ssm."),
    ("model.layers.#.self_attn.o_proj.", "blocks.#.mixer.attention.out_proj."),
    ("model.layers.#.self_attn.", "blocks.#.mixer.attention."),
    ("model.layers.#.feed_forward.gate_proj.", "blocks.#.mlp.w1."),
    ("model.layers.#.feed_forward.up_proj.", "blocks.#.mlp.w3."),
    ("model.layers.#.feed_forward.down_proj.", "blocks.#.mlp.w2."),
]
_FIELDS = {
    **DECODER,
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "mlp_dim",
    "mamba_d_ssm": "ssm_dim",
    "mamba_d_head": "ssm_head_dim",
    "mamba_d_state": "d_state",
    "mamba_d_conv": "d_conv",
    "mamba_n_groups": "num_groups",
    "mamba_conv_bias": "conv_bias",
    "mamba_rms_norm": "ssm_norm",
    "embedding_multiplier": "embedding_multiplier",
    "lm_head_multiplier": "head_multiplier",
    "attention_in_multiplier": "attention_in_multiplier",
    "attention_out_multiplier": "attention_out_multiplier",
    "key_multiplier": "key_multiplier",
    "ssm_in_multiplier": "ssm_in_multiplier",
    "ssm_out_multiplier": "ssm_out_multiplier",
    "ssm_multipliers": "ssm_multipliers",
    "mlp_multipliers": "mlp_multipliers",
}
_BIASES = ("attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias")


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Falcon-H1."""
    return bool(hybrid.layers(state_dict, "mamba") & hybrid.layers(state_dict, "self_attn"))


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    return rename(state_dict, _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of FalconH1ForCausalLM; tensors unchanged."""
    return rename(state_dict, _NAMES, backwards=True)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("falcon_h1", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    for name in _BIASES:
        if config.get(name):
            raise ValueError(f"{name} must be false, as in every published Falcon-H1, got {config[name]!r}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {config['hidden_act']!r}")
    if config.get("mamba_rms_norm") and config.get("mamba_norm_before_gate", True):
        raise ValueError("mamba_norm_before_gate must be false where mamba_rms_norm is true, as in the published 34B")
    fields = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    fields["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    fields.setdefault("ssm_dim", config.get("mamba_expand", 2) * config["hidden_size"])
    if fields.get("ssm_head_dim", "auto") == "auto":
        fields["ssm_head_dim"] = fields["ssm_dim"] // config["mamba_n_heads"]
    for name in ("ssm_multipliers", "mlp_multipliers"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if config.get("time_step_limit") is not None:
        low, high = config["time_step_limit"]
        fields["dt_limit"] = (number(low), number(high))
    rope = config.get("rope_parameters") or config
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise ValueError(f"rotary positions must be unscaled, got {config.get('rope_scaling') or rope}")
    fields["rope_base"] = float(rope.get("rope_theta", 1e11))
    return "falcon_h1", fields


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Falcon-H1 configuration -> transformers' ``config.json``."""
    return {theirs: config[ours] for theirs, ours in _FIELDS.items()} | dict.fromkeys(_BIASES, False) | {
        "model_type": "falcon_h1",
        "architectures": ["FalconH1ForCausalLM"],
        "hidden_act": "silu",
        "head_dim": config["head_dim"],
        "mamba_n_heads": config["ssm_dim"] // config["ssm_head_dim"],
        "mamba_chunk_size": config["chunk_size"],
        "mamba_norm_before_gate": False,
        "time_step_limit": [written(bound) for bound in config["dt_limit"]],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_base"]},
    }  # fmt: skip
