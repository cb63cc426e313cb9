"""Zamba2 checkpoints, published in transformers' layout.

A shared block lies in the first layer that has it, with the adapters of all its places, numbered over the places of all
shared blocks; here a place's adapters are its own. The bound of the step size is as in ``nemotron_h``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import hybrid
from zoo.checkpoints.convert.rename import rename, written

MODEL_TYPES = ("zamba2",)
_NAMES = [  # published, ours; a hybrid layer's Mamba-2 is in front, so that both kinds of layers read alike
    ("model.embed_tokens.", "embedding."),
    ("model.final_layernorm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.mamba_decoder.mamba.", "blocks.#.hybrid."),
    ("model.layers.#.mamba_decoder.input_layernorm.", "blocks.#.hybrid_norm."),
    ("model.layers.#.mamba.", "blocks.#.mixer."),
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.linear.", "blocks.#.linear."),
    ("model.layers.#.shared_transformer.input_layernorm.", "blocks.#.shared.norm."),
    ("model.layers.#.shared_transformer.pre_ff_layernorm.", "blocks.#.shared.mlp_norm."),
    ("model.layers.#.shared_transformer.self_attn.o_proj.", "blocks.#.shared.attention.out_proj."),
    ("model.layers.#.shared_transformer.self_attn.linear_q_adapter_list.", "blocks.#.adapters.q."),
    ("model.layers.#.shared_transformer.self_attn.linear_k_adapter_list.", "blocks.#.adapters.k."),
    ("model.layers.#.shared_transformer.self_attn.linear_v_adapter_list.", "blocks.#.adapters.v."),
    ("model.layers.#.shared_transformer.self_attn.", "blocks.#.shared.attention."),
    ("model.layers.#.shared_transformer.feed_forward.gate_up_proj_adapter_list.", "blocks.#.adapters.mlp."),
    ("model.layers.#.shared_transformer.feed_forward.gate_up_proj.", "blocks.#.shared.w1."),
    ("model.layers.#.shared_transformer.feed_forward.down_proj.", "blocks.#.shared.w2."),
]
_ADAPTER = re.compile(r"blocks\.(\d+)\.adapters\.([qkv]|mlp)\.(?:(\d+)\.)?([01]\.weight)")
_FIELDS = hybrid.FIELDS | {
    "intermediate_size": "mlp_dim",
    "mamba_d_state": "d_state",
    "mamba_d_conv": "d_conv",
    "mamba_ngroups": "num_groups",
    "num_mem_blocks": "num_shared_blocks",
    "adapter_rank": "adapter_rank",
    "use_shared_attention_adapter": "attention_adapters",
}
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 2560, "num_hidden_layers": 54, "num_attention_heads": 32, "n_mamba_heads": 8, "mamba_expand": 2,
}  # fmt: skip
_FIXED = {
    "hidden_act": "gelu", "add_bias_linear": False, "use_long_context": False, "attention_dropout": 0,
    "tie_word_embeddings": True,  # without which transformers shares no block either
    "rms_norm_eps": 1e-5,  # as that of the norms within Mamba-2, which is fixed
}  # fmt: skip


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Zamba2."""
    return bool(hybrid.layers(state_dict, "shared_transformer"))


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    renamed = rename(state_dict, _NAMES)
    places, result = _places(renamed, "linear"), {}
    for key, tensor in renamed.items():
        if found := _ADAPTER.fullmatch(key):
            key = f"blocks.{places[int(found[3])]}.adapters.{found[2]}.{found[4]}"
        result[key.replace(".hybrid.", ".mixer.").replace(".hybrid_norm.", ".norm.")] = tensor
    return result


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of Zamba2ForCausalLM; tensors unchanged."""
    places, first, result = _places(state_dict, "linear"), _places(state_dict, "shared.norm"), {}
    for key, tensor in state_dict.items():
        block = int(key.split(".")[1]) if key.startswith("blocks.") else -1
        if found := _ADAPTER.fullmatch(key):
            use = places.index(block)
            key = f"blocks.{first[use % len(first)]}.adapters.{found[2]}.{use}.{found[4]}"
        elif block in places:
            key = key.replace(".mixer.", ".hybrid.").replace(f"blocks.{block}.norm.", f"blocks.{block}.hybrid_norm.")
        result[key] = tensor
    return rename(result, _NAMES, backwards=True)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("zamba2", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    hybrid.require(config, _FIXED)
    config = _DEFAULTS | {name: value for name, value in config.items() if value is not None}
    dim, depth = config["hidden_size"], config["num_hidden_layers"]
    fields = hybrid.present(config, _FIELDS) | hybrid.step_limits(config)
    width = config["mamba_expand"] * dim
    types = ["attention" if kind == "hybrid" else kind for kind in config["layers_block_type"]]
    fields |= {
        "ssm_dim": width,
        "ssm_head_dim": width // config["n_mamba_heads"],
        "mixers": hybrid.mixers(types, depth),
        "mlps": "." * depth,
        "head_dim": None,
        "rope_base": hybrid.rope_base(config) if config.get("use_mem_rope") else None,
    }
    fields.setdefault("mlp_dim", 4 * dim)
    fields.setdefault("num_kv_heads", config["num_attention_heads"])
    return "zamba2", fields


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration with the patterns written out."""
    return hybrid.settled(config) | {"head_dim": None}


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Zamba2 configuration, its patterns written out -> transformers' ``config.json``."""
    fields = {theirs: ours for theirs, ours in _FIELDS.items() if ours != "head_dim"}
    published = hybrid.published(config, fields) | {
        "model_type": "zamba2",
        "architectures": ["Zamba2ForCausalLM"],
        "hidden_act": "gelu",
        "layers_block_type": [{"M": "linear_attention", "*": "hybrid"}[letter] for letter in config["mixers"]],
        "mamba_expand": config["ssm_dim"] // config["dim"],
        "n_mamba_heads": config["ssm_dim"] // config["ssm_head_dim"],
        "chunk_size": config["chunk_size"],
        "time_step_limit": [written(bound) for bound in config["dt_limit"]],
        "time_step_min": config["dt_limit"][0] or 1e-30,
        "use_mem_rope": config["rope_base"] is not None,
    }
    if config["rope_base"] is not None:
        published["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_base"]}
    return published


def _places(state_dict: Mapping[str, Tensor], part: str) -> list[int]:
    """The blocks that have a part, in order."""
    return sorted(int(key.split(".")[1]) for key in state_dict if key.endswith(f".{part}.weight"))
