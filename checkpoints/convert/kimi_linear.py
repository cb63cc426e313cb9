"""Kimi Linear checkpoints, as published (one tensor an expert and a convolution) and as transformers holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.convert import hybrid
from zoo.checkpoints.convert.deepseek import NAMES
from zoo.checkpoints.convert.experts import gathered, spread
from zoo.checkpoints.convert.rename import rename, replace

MODEL_TYPES = ("kimi_linear",)
_EXPERTS = {"w1": "w1", "w3": "w3", "w2": "w2"}  # of a file, ours
_GATE = ("f_a_proj.weight", "f_b_proj.weight", "dt_bias", "A_log")  # within forget_gate in memory
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "rms_norm_eps": "norm_eps",
    "initializer_range": "initializer_range",
    "num_attention_heads": "num_heads",
    "kv_lora_rank": "kv_lora_rank",
    "q_lora_rank": "q_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "intermediate_size": "mlp_dim",
    "moe_intermediate_size": "expert_dim",
    "num_experts": "num_experts",
    "num_experts_per_token": "top_k",
    "num_shared_experts": "num_shared",
    "moe_renormalize": "normalize",
    "routed_scaling_factor": "routed_scale",
    "num_expert_group": "num_groups",
    "topk_group": "top_groups",
}
_LINEAR = {"num_heads": "delta_heads", "head_dim": "delta_head_dim", "short_conv_kernel_size": "d_conv"}
_LINEAR_FIELDS = {  # as transformers writes them
    "linear_num_heads": "delta_heads",
    "linear_head_dim": "delta_head_dim",
    "linear_conv_kernel_dim": "d_conv",
}
_FIXED = {
    "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0, "mla_use_nope": True, "moe_layer_freq": 1,
    "moe_router_activation_func": "sigmoid", "num_nextn_predict_layers": 0, "tie_word_embeddings": False,
}  # fmt: skip


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Kimi Linear."""
    return any(key.startswith("model.layers.") and key.endswith(".f_a_proj.weight") for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; the experts of a layer stacked and transposed, each convolution by itself."""
    parted = {}
    for key, tensor in replace(state_dict, [(".block_sparse_moe.", ".mlp."), (".forget_gate.", ".")]).items():
        if key.endswith(".self_attn.conv1d.weight"):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            parted |= {key.replace("conv1d", f"{one}_conv1d"): part.contiguous() for one, part in parts}
        else:
            parted[key] = tensor.flatten() if key.endswith(".A_log") else tensor
    return rename(gathered(parted, _EXPERTS), NAMES)


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of KimiLinearForCausalLM: in memory, or with ``stacked`` False those of its files."""
    named = spread(rename(state_dict, NAMES, backwards=True), stacked, _EXPERTS)
    named = {key: t.view(1, 1, -1, 1) if key.endswith(".A_log") else t for key, t in named.items()}
    return _in_memory(named) if stacked else _in_files(named)


def _in_memory(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The three convolutions of a layer one, the forget gate a module."""
    result = {}
    for key, tensor in named.items():
        layer, _, name = key.partition(".self_attn.")
        if name in _GATE:
            key = f"{layer}.self_attn.forget_gate.{name}"
        if name == "q_conv1d.weight":
            key = f"{layer}.self_attn.conv1d.weight"
            tensor = torch.cat([named[f"{layer}.self_attn.{one}_conv1d.weight"] for one in "qkv"])
        if name not in ("k_conv1d.weight", "v_conv1d.weight"):
            result[key] = tensor
    return result


def _in_files(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What belongs to a layer of experts in ``block_sparse_moe``."""
    routed = {key.removesuffix("gate.weight") for key in named if key.endswith(".mlp.gate.weight")}
    result = {}
    for key, tensor in named.items():
        layer, _, name = key.partition(".mlp.")
        result[f"{layer}.block_sparse_moe.{name}" if f"{layer}.mlp." in routed else key] = tensor
    return result


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A published or transformers' ``config.json`` -> ("kimi_linear", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    hybrid.require(config, _FIXED | {"num_key_value_heads": config["num_attention_heads"]})
    depth, linear = config["num_hidden_layers"], config.get("linear_attn_config") or {}
    fields = hybrid.present(config, _FIELDS) | hybrid.present(config, _LINEAR_FIELDS) | hybrid.present(linear, _LINEAR)
    return "kimi_linear", fields | {"mixers": _mixers(config, linear, depth), "mlps": _mlps(config, depth)}


def _mixers(config: Mapping[str, Any], linear: Mapping[str, Any], depth: int) -> str:
    """The pattern of the layers' lists, which count from 1, or of transformers' types."""
    if "full_attn_layers" not in linear:
        return hybrid.mixers(config["layer_types"], depth)
    full = [layer - 1 for layer in linear["full_attn_layers"]]
    pattern = hybrid.at(full, "*", "M", depth)
    if sorted([*full, *(layer - 1 for layer in linear["kda_layers"])]) != list(range(depth)):
        raise ValueError(
            f"each of the {depth} layers must be in one of full_attn_layers and kda_layers, got "
            f"{linear['full_attn_layers']} and {linear['kda_layers']}"
        )
    return pattern


def _mlps(config: Mapping[str, Any], depth: int) -> str:
    """The pattern of the layers with experts."""
    types = config.get("mlp_layer_types")
    if types is None:
        dense = range(min(config.get("first_k_dense_replace", 1), depth))
        return hybrid.at(dense, "-", "E", depth)
    if len(types) != depth or set(types) - {"dense", "sparse"}:
        raise ValueError(f"mlp_layer_types must be 'dense' or 'sparse' for each of {depth} layers, got {types}")
    return "".join({"dense": "-", "sparse": "E"}[kind] for kind in types)


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Kimi Linear configuration, its patterns written out -> ``config.json`` in the published words.

    Raises:
        ValueError: for a head that shares the embedding's weight, which theirs never does.
    """
    if config["tie_embeddings"]:
        raise ValueError("tie_embeddings must be False: KimiLinearForCausalLM has a head of its own")
    places = {letter: [i for i, found in enumerate(config["mixers"], 1) if found == letter] for letter in "M*"}
    dense = len(config["mlps"]) - len(config["mlps"].lstrip("-"))
    return hybrid.published(config, _FIELDS) | {
        "model_type": "kimi_linear",
        "architectures": ["KimiLinearForCausalLM"],
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "mla_use_nope": True,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # not known here; the class has defaults
        "num_key_value_heads": config["num_heads"],
        "linear_attn_config": hybrid.published(config, _LINEAR)
        | {"full_attn_layers": places["*"], "kda_layers": places["M"]},
        "first_k_dense_replace": dense,
        "mlp_layer_types": [{"-": "dense", "E": "sparse"}[letter] for letter in config["mlps"]],
        "moe_router_activation_func": "sigmoid",
    }
