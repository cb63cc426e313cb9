"""Mixtral, OLMoE and Qwen3-MoE checkpoints, in both layouts of the experts that transformers has.

Files of Mixtral have ``block_sparse_moe`` with w1, w2 and w3 of each expert, a model of transformers 5 in memory and
the files of the others ``mlp``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from zoo.checkpoints.convert.experts import PROJECTIONS, gathered, spread
from zoo.checkpoints.convert.rename import DECODER, rename

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
    **DECODER,
    "num_key_value_heads": "num_kv_heads",
    "num_experts_per_tok": "top_k",
    "router_aux_loss_coef": "balance_weight",
}


class _Type(NamedTuple):
    """A model_type.

    Attributes:
        architecture: the class of transformers.
        qk_norm: its norms of queries and keys, by which a configuration of ours has its type.
        defaults: what a config.json may leave out.
        width, experts: its words for mlp_dim and num_experts.
        absent: options that must be absent, or 0, or the value here.
    """

    architecture: str
    qk_norm: str | None
    defaults: Mapping[str, Any]
    width: str
    experts: str
    absent: Mapping[str, Any]


_TYPES = {
    "mixtral": _Type(
        "MixtralForCausalLM", None,
        {"rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 8,
         "router_aux_loss_coef": 0.001, "rope_theta": 1e6, "norm_topk_prob": True},
        "intermediate_size", "num_local_experts", {"sliding_window": None, "router_jitter_noise": 0.0},
    ),
    "olmoe": _Type(
        "OlmoeForCausalLM", "joint",
        {"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8, "router_aux_loss_coef": 0.01},
        "intermediate_size", "num_experts", {"clip_qkv": None, "attention_bias": False},
    ),
    "qwen3_moe": _Type(
        "Qwen3MoeForCausalLM", "head",
        {"rms_norm_eps": 1e-6, "num_experts": 128, "num_experts_per_tok": 8, "num_key_value_heads": 4,
         "moe_intermediate_size": 768, "router_aux_loss_coef": 0.001},
        "moe_intermediate_size", "num_experts",
        {"attention_bias": False, "use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
}  # fmt: skip
MODEL_TYPES = tuple(_TYPES)
_SHARED = r"(input_layernorm|post_attention_layernorm|self_attn\.[qkvo]_proj)\.weight|mlp\.experts\.(gate_up|down)_proj"
_LAYERS = (
    re.compile(_SHARED + r"|(mlp|block_sparse_moe)\.(gate\.weight|experts\.\d+\.w[123]\.weight)"),
    re.compile(_SHARED + r"|self_attn\.[qk]_norm\.weight|mlp\.(gate|experts\.\d+\.(gate|up|down)_proj)\.weight"),
)
_WEIGHTS = {name: name for name in ("w1", "w3", "w2")}  # of an expert in the files


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the first layer has the keys of one of these types, and no others, in either layout."""
    start = "model.layers.0."
    layer = [key.removeprefix(start) for key in state_dict if key.startswith(start)]
    return any(".experts." in key for key in layer) and any(all(map(pattern.fullmatch, layer)) for pattern in _LAYERS)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; the experts' tensors transposed and stacked.

    Raises:
        ValueError: where one of a layer's experts is missing.
    """
    published = {key.replace(".block_sparse_moe.", ".mlp."): tensor for key, tensor in state_dict.items()}
    return rename(gathered(published, _WEIGHTS | PROJECTIONS), _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of transformers' model: in memory, or with ``stacked`` False those of its files.

    Raises:
        ValueError: for a model with dense feed-forward layers, which these types have not.
    """
    if dense := next((key for key in state_dict if ".mlp.w" in key and key.endswith(".weight")), None):
        raise ValueError(f"transformers has experts in every block (expert_every=1), this model the dense {dense}")
    normed = any(key.endswith(".q_norm.weight") for key in state_dict)
    published = spread(rename(state_dict, _NAMES, backwards=True), stacked, PROJECTIONS if normed else _WEIGHTS)
    if stacked or normed:
        return published
    return {key.replace(".mlp.", ".block_sparse_moe."): tensor for key, tensor in published.items()}


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("moe", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    kind = _TYPES[config["model_type"]]
    given = dict(kind.defaults) | {name: value for name, value in config.items() if value is not None}
    if given.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {config['hidden_act']!r}")
    for name, value in {**kind.absent, "attention_dropout": 0}.items():
        if given.get(name) and given[name] != value:
            raise ValueError(f"{name} must be absent or {value}, got {given[name]!r}")
    rope = config.get("rope_parameters") or given
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise ValueError(f"rotary positions must be unscaled, got {config.get('rope_scaling') or rope}")
    words = _FIELDS | {kind.width: "mlp_dim", kind.experts: "num_experts", "num_local_experts": "num_experts"}
    fields = {ours: given[theirs] for theirs, ours in words.items() if theirs in given}
    whole = given["hidden_size"] // given["num_attention_heads"] if config["model_type"] == "olmoe" else None
    return "moe", {"tie_embeddings": False} | fields | {
        "rope_base": float(rope.get("rope_theta", given.get("rope_theta", 1e4))),
        "head_dim": given.get("head_dim", whole),
        "qk_norm": kind.qk_norm,
        "normalize": bool(given.get("norm_topk_prob", False)),
        "z_weight": 0.0,
        "joint_balance": True,
        "residual_in_fp32": False,
        "expert_every": 1,
        "capacity_factor": None,
    }  # fmt: skip


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration with the values that None stands for."""
    defaults = {
        "head_dim": config["dim"] // config["num_heads"],
        "num_kv_heads": config["num_heads"],
        "normalize": config["top_k"] > 1,
    }
    return {**config, **{name: value for name, value in defaults.items() if config[name] is None}}


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our mixture-of-experts transformer -> transformers' ``config.json`` of the type with its norms."""
    name, kind = next((name, kind) for name, kind in _TYPES.items() if kind.qk_norm == config["qk_norm"])
    written = {theirs: config[ours] for theirs, ours in _FIELDS.items()} | {
        "model_type": name,
        "architectures": [kind.architecture],
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_base"]},
        kind.width: config["mlp_dim"],
        kind.experts: config["num_experts"],
        **kind.absent,
    }
    if name != "mixtral":  # which always renormalises
        written["norm_topk_prob"] = config["normalize"]
    return written if name == "olmoe" else written | {"head_dim": config["head_dim"]}
