"""Mixtral checkpoints, in both layouts of the experts that transformers has.

Files have each expert's matrices, ``block_sparse_moe.experts.E.{w1,w2,w3}.weight``; a model of transformers 5 in memory
has them stacked, ``mlp.experts.gate_up_proj`` (E, 2 F, D), the gate's half first, and ``mlp.experts.down_proj``
(E, D, F). The zoo's are stacked and transposed: ``w1`` and ``w3`` (E, D, F), ``w2`` (E, F, D).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
_EXPERT = re.compile(r"(blocks\.\d+\.mlp)\.(\d+)\.(w[123])\.weight")
_STACKED = re.compile(r"(blocks\.\d+\.mlp)\.(gate_up_proj|down_proj)")
_OURS = re.compile(r"(blocks\.\d+\.mlp)\.(w[123])")


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
    renamed = rename({key.replace(".block_sparse_moe.", ".mlp."): t for key, t in state_dict.items()}, _NAMES)
    converted, separate = {}, {}
    for key, tensor in renamed.items():
        if found := _EXPERT.fullmatch(key):
            layer, index, name = found.groups()
            separate.setdefault(f"{layer}.{name}", {})[int(index)] = tensor
        elif found := _STACKED.fullmatch(key):
            layer, name = found.groups()
            names, parts = (["w2"], [tensor]) if name == "down_proj" else (["w1", "w3"], tensor.chunk(2, dim=1))
            converted |= {f"{layer}.{name}": part.mT.contiguous() for name, part in zip(names, parts, strict=True)}
        else:
            converted[key] = tensor
    for key, experts in separate.items():
        if missing := set(range(max(experts) + 1)) - set(experts):
            raise ValueError(f"{key}: experts {sorted(missing)} are missing from the checkpoint")
        converted[key] = torch.stack([experts[index].mT for index in range(len(experts))])
    return converted


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of MixtralForCausalLM: in memory, or with ``stacked`` False those of its files.

    Raises:
        ValueError: for a model with dense feed-forward layers, which Mixtral has not.
    """
    converted, experts = {}, {}
    for key, tensor in state_dict.items():
        if ".mlp.w" in key and key.endswith(".weight"):
            raise ValueError(f"Mixtral has experts in every block (expert_every=1), this model has the dense {key}")
        if found := _OURS.fullmatch(key):
            experts.setdefault(found[1], {})[found[2]] = tensor.mT
        else:
            converted[key] = tensor
    for layer, w in experts.items():
        if stacked:
            converted[f"{layer}.gate_up_proj"] = torch.cat([w["w1"], w["w3"]], dim=1)
            converted[f"{layer}.down_proj"] = w["w2"].contiguous()
        else:
            converted |= {
                f"{layer}.{index}.{name}.weight": matrix.contiguous()
                for name, matrices in w.items()
                for index, matrix in enumerate(matrices)
            }
    published = rename(converted, _NAMES, backwards=True)
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
