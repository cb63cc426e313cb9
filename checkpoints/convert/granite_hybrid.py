"""Granite 4 hybrids, published in transformers' layout (GraniteMoeHybrid).

The shared expert, or the feed-forward layer of a model without experts, is ``shared_mlp``, gate and up one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.convert import hybrid
from zoo.checkpoints.convert.experts import gathered, spread
from zoo.checkpoints.convert.rename import replace

MODEL_TYPES = ("granitemoehybrid",)
_NAMES = (
    hybrid.NAMES
    + hybrid.MAMBA
    + [
        ("model.norm.", "norm."),
        ("model.layers.#.post_attention_layernorm.", "blocks.#.mlp_norm."),
        ("model.layers.#.shared_mlp.", "blocks.#.mlp.shared."),
        ("model.layers.#.block_sparse_moe.router.", "blocks.#.mlp.router."),
        ("model.layers.#.block_sparse_moe.experts.", "blocks.#.mlp."),
    ]
)
_FILES = [  # in files, in memory
    (".block_sparse_moe.input_linear.weight", ".block_sparse_moe.experts.gate_up_proj"),
    (".block_sparse_moe.output_linear.weight", ".block_sparse_moe.experts.down_proj"),
    (".block_sparse_moe.router.layer.weight", ".block_sparse_moe.router.weight"),
]
_FIELDS = hybrid.FIELDS | {
    "shared_intermediate_size": "mlp_dim",
    "router_aux_loss_coef": "balance_weight",
    "embedding_multiplier": "embedding_multiplier",
    "attention_multiplier": "attention_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_scaling",
}
_EXPERTS = {"intermediate_size": "expert_dim", "num_local_experts": "num_experts", "num_experts_per_tok": "top_k"}
_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "num_local_experts": 8, "num_experts_per_tok": 2}
_FIXED = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0, "normalization_function": "rmsnorm"}
_DENSE = re.compile(r"(blocks\.\d+\.mlp\.)(w[123]\.weight)")


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Granite 4 hybrid."""
    return bool(hybrid.layers(state_dict, "shared_mlp.input_linear"))


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; matrices of gate and up taken apart, those of experts transposed."""
    parted = {}
    for key, tensor in replace(state_dict, _FILES).items():
        layer, _, name = key.rpartition(".shared_mlp.")
        if name == "input_linear.weight":
            parted[f"{layer}.shared_mlp.w1.weight"], parted[f"{layer}.shared_mlp.w3.weight"] = tensor.chunk(2)
        else:
            parted[key.replace(".shared_mlp.output_linear.", ".shared_mlp.w2.")] = tensor
    named = hybrid.to_zoo(gathered(parted), _NAMES)
    routed = {key.removesuffix("router.weight") for key in named if key.endswith(".mlp.router.weight")}
    return {
        key if key.partition("shared.")[0] in routed else key.replace(".mlp.shared.", ".mlp."): tensor
        for key, tensor in named.items()
    }


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of GraniteMoeHybridForCausalLM: in memory, or with ``stacked`` False those of its
    files."""
    shared = {_DENSE.sub(r"\1shared.\2", key): tensor for key, tensor in state_dict.items()}
    joined = {}
    for key, tensor in spread(hybrid.to_published(shared, _NAMES), stacked=True).items():
        layer, _, name = key.rpartition(".shared_mlp.")
        if name == "w1.weight":
            up = shared[f"blocks.{layer.rpartition('.')[2]}.mlp.shared.w3.weight"]
            joined[f"{layer}.shared_mlp.input_linear.weight"] = torch.cat([tensor, up])
        elif name != "w3.weight":
            joined[key.replace(".shared_mlp.w2.", ".shared_mlp.output_linear.")] = tensor
    return joined if stacked else replace(joined, [(ours, theirs) for theirs, ours in _FILES])


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("granite_hybrid", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    hybrid.require(config, _FIXED)
    config = _DEFAULTS | {name: value for name, value in config.items() if value is not None}
    depth = config["num_hidden_layers"]
    fields = hybrid.present(config, _FIELDS) | hybrid.mamba2_fields(config)
    fields["mlps"] = hybrid.at((), "", "E" if config["num_local_experts"] else "-", depth)
    fields["mixers"] = hybrid.mixers(config.get("layer_types") or ["mamba"] * depth, depth)
    if config["num_local_experts"]:
        fields |= hybrid.present(config, _EXPERTS)
    fields.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    rotated = config.get("position_embedding_type") == "rope"
    return "granite_hybrid", fields | {"rope_base": hybrid.rope_base(config) if rotated else None}


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Granite configuration, its patterns written out -> transformers' ``config.json``."""
    published = hybrid.published(config, _FIELDS) | hybrid.mamba2_options(config) | {
        "model_type": "granitemoehybrid",
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "hidden_act": "silu",
        "layer_types": hybrid.layer_types(config["mixers"]),
        "position_embedding_type": "nope" if config["rope_base"] is None else "rope",
        "intermediate_size": config["mlp_dim"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
    }  # fmt: skip
    if "E" in config["mlps"]:
        published |= hybrid.published(config, _EXPERTS)
    if config["rope_base"] is not None:
        published["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_base"]}
    return published
