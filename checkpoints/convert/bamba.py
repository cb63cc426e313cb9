"""Bamba checkpoints, published in transformers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import hybrid

MODEL_TYPES = ("bamba",)
_NAMES = hybrid.NAMES + hybrid.FEED_FORWARD + hybrid.MAMBA
_FIELDS = hybrid.FIELDS | {"intermediate_size": "mlp_dim"}
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Bamba: Mamba-2 or attention in front of each feed-forward layer."""
    mamba, attention = (hybrid.layers(state_dict, part) for part in ("mamba.norm", "self_attn"))
    return bool(mamba) and not mamba & attention and bool(hybrid.layers(state_dict, "feed_forward.gate_proj"))


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    return hybrid.to_zoo(state_dict, _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of BambaForCausalLM; tensors unchanged."""
    return hybrid.to_published(state_dict, _NAMES)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("bamba", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    hybrid.require(config, _FIXED)
    depth, attention = config["num_hidden_layers"], config.get("attn_layer_indices") or []
    fields = hybrid.present(config, _FIELDS) | hybrid.mamba2_fields(config)
    fields["mixers"], fields["mlps"] = hybrid.at(attention, "*", "M", depth), "-" * depth
    fields.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return "bamba", fields | {"rope_base": hybrid.rope_base(config, rotated=0.5)}


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Bamba configuration, its patterns written out -> transformers' ``config.json``."""
    return hybrid.published(config, _FIELDS) | hybrid.mamba2_options(config) | {
        "model_type": "bamba",
        "architectures": ["BambaForCausalLM"],
        "hidden_act": "silu",
        "attn_layer_indices": [index for index, letter in enumerate(config["mixers"]) if letter == "*"],
        "rope_parameters": {
            "rope_type": "default", "rope_theta": config["rope_base"], "partial_rotary_factor": 0.5,
        },
    }  # fmt: skip
