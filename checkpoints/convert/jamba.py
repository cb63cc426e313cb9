"""Jamba checkpoints, published in transformers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import hybrid
from zoo.checkpoints.convert.experts import gathered, spread

MODEL_TYPES = ("jamba",)
_NAMES = (
    hybrid.NAMES
    + hybrid.FEED_FORWARD
    + [
        ("model.layers.#.mamba.dt_layernorm.", "blocks.#.ssm.dt_norm."),
        ("model.layers.#.mamba.b_layernorm.", "blocks.#.ssm.b_norm."),
        ("model.layers.#.mamba.c_layernorm.", "blocks.#.ssm.c_norm."),
        *hybrid.MAMBA,
        ("model.layers.#.feed_forward.router.", "blocks.#.mlp.router."),
        ("model.layers.#.feed_forward.experts.", "blocks.#.mlp."),
    ]
)
_FIELDS = hybrid.FIELDS | {
    "intermediate_size": "mlp_dim",
    "mamba_d_state": "d_state",
    "mamba_d_conv": "d_conv",
    "mamba_expand": "expand",
    "mamba_conv_bias": "conv_bias",
    "mamba_proj_bias": "bias",
    "router_aux_loss_coef": "balance_weight",
}
_FIXED = {"hidden_act": "silu", "mamba_inner_layernorms": True, "attention_dropout": 0}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Jamba."""
    return bool(hybrid.layers(state_dict, "mamba.dt_layernorm"))


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; the experts' tensors transposed and stacked.

    Raises:
        ValueError: where one of a layer's experts is missing.
    """
    return hybrid.to_zoo(gathered(state_dict), _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of JambaForCausalLM: in memory, or with ``stacked`` False those of its files."""
    return spread(hybrid.to_published(state_dict, _NAMES), stacked)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("jamba", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    hybrid.require(config, _FIXED)
    fields = hybrid.present(config, _FIELDS)
    if config.get("mamba_dt_rank", "auto") != "auto":
        fields["dt_rank"] = config["mamba_dt_rank"]
    depth, experts = config["num_hidden_layers"], config.get("num_experts", 16)
    attention = config.get("attn_layer_period", 8), config.get("attn_layer_offset", 4)
    fields["mixers"] = hybrid.every(*attention, "*", "M", depth)
    fields["mlps"] = "-" * depth
    if experts > 1:
        routed = config.get("expert_layer_period", 2), config.get("expert_layer_offset", 1)
        fields["mlps"] = hybrid.every(*routed, "E", "-", depth)
        fields |= {"num_experts": experts, "top_k": config.get("num_experts_per_tok", 2)}
    fields.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return "jamba", fields


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Jamba configuration, its patterns written out -> transformers' ``config.json``."""
    attention, routed = hybrid.period(config["mixers"], "*"), hybrid.period(config["mlps"], "E")
    experts = "E" in config["mlps"]
    return hybrid.published(config, _FIELDS) | {
        "model_type": "jamba",
        "architectures": ["JambaForCausalLM"],
        "hidden_act": "silu",
        "mamba_dt_rank": config["dt_rank"] or "auto",
        "attn_layer_period": attention[0],
        "attn_layer_offset": attention[1],
        "expert_layer_period": routed[0],
        "expert_layer_offset": routed[1],
        "num_experts": config["num_experts"] if experts else 1,
        "num_experts_per_tok": config["top_k"] if experts else 1,
    }
