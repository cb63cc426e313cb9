"""SmallThinker checkpoints in the layout of its authors, whose folders bring the code that transformers runs.

Facts: PowerInfer/SmallThinker-4BA0.6B-Instruct and -21BA3B-Instruct (configuration_smallthinker.py and
modeling_smallthinker.py for transformers 4.53).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.experts import gathered, spread
from zoo.checkpoints.convert.rename import rename
from zoo.checkpoints.convert.rope import read_rope

MODEL_TYPES = ("smallthinker",)
_NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.post_attention_layernorm.", "blocks.#.mlp_norm."),
    ("model.layers.#.self_attn.o_proj.", "blocks.#.mixer.out_proj."),
    ("model.layers.#.self_attn.", "blocks.#.mixer."),
    ("model.layers.#.block_sparse_moe.primary_router.", "blocks.#.mlp.router."),
    ("model.layers.#.block_sparse_moe.experts.", "blocks.#.mlp."),
]
_MATRICES = {"gate": "w1", "up": "w3", "down": "w2"}  # of an expert
_FIELDS: dict[str, tuple[str, Any]] = {  # published -> ours, value where it is left out
    "vocab_size": ("vocab_size", 151936),
    "hidden_size": ("dim", 1536),
    "num_hidden_layers": ("depth", 32),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", True),
    "initializer_range": ("initializer_range", 0.02),
    "num_attention_heads": ("num_heads", 12),
    "num_key_value_heads": ("num_kv_heads", 2),
    "head_dim": ("head_dim", 128),
    "moe_ffn_hidden_size": ("mlp_dim", 768),
    "moe_num_primary_experts": ("num_experts", 32),
    "moe_num_active_primary_experts": ("top_k", 4),
    "max_position_embeddings": ("context_length", None),
}
_FIXED: dict[str, Any] = {  # options with one value here, those of the authors' earlier class among them
    "norm_topk_prob": True, "attention_dropout": 0, "use_qk_norm": False, "moe_shared_primary_experts": 0,
    "moe_enable_early_router": True, "moe_enable_secondary_experts": False, "quantization_config": None,
}  # fmt: skip


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published SmallThinker."""
    return "model.layers.0.block_sparse_moe.primary_router.weight" in state_dict


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; the experts' tensors transposed and stacked.

    Raises:
        ValueError: where one of a layer's experts is missing.
    """
    return rename(gathered(state_dict, _MATRICES), _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of the authors' files."""
    return spread(rename(state_dict, _NAMES, backwards=True), False, _MATRICES)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The authors' ``config.json`` -> ("smallthinker", fields of its configuration).

    Raises:
        ValueError: for an option that has no counterpart here, or a layout of another number of layers.
    """
    for name, value in _FIXED.items():
        if config.get(name) is not None and config[name] != value:
            raise ValueError(f"{name} must be {value!r}, got {config[name]!r}")
    base, scaling = read_rope(config, 1e6)
    if scaling is not None:
        raise ValueError(f"rotary positions must be unscaled, got {scaling}")
    given = {name: value for name, value in config.items() if value is not None}
    fields = {ours: given.get(theirs, default) for theirs, (ours, default) in _FIELDS.items()}
    turned = _layout(given, "rope_layout", fields["depth"], 1)
    windowed = _layout(given, "sliding_window_layout", fields["depth"], 0)
    if 0 in _layout(given, "moe_layer_layout", fields["depth"], 1):
        raise ValueError(f"moe_layer_layout must have experts in every layer, got {config['moe_layer_layout']}")
    return "smallthinker", fields | {
        "rope_base": base,
        "nope_layers": _where(turned, 0),
        "window": given.get("sliding_window_size", 4096) if any(windowed) else None,
        "full_layers": _where(windowed, 0) if any(windowed) else (),
        "score": "softmax" if given.get("moe_primary_router_apply_softmax") else "sigmoid",
        "residual_in_fp32": False,
    }  # fmt: skip


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration -> the authors' ``config.json``."""
    layers, window = range(config["depth"]), config["window"]
    return {theirs: config[ours] for theirs, (ours, _) in _FIELDS.items() if config[ours] is not None} | {
        "model_type": "smallthinker",
        "architectures": ["SmallThinkerForCausalLM"],
        "rope_theta": config["rope_base"],
        "rope_layout": [int(index not in config["nope_layers"]) for index in layers],
        "sliding_window_layout": [int(window is not None and index not in config["full_layers"]) for index in layers],
        "sliding_window_size": 4096 if window is None else window,
        "moe_primary_router_apply_softmax": config["score"] == "softmax",
        "norm_topk_prob": True,
    }


def _layout(config: Mapping[str, Any], name: str, depth: int, default: int) -> list[int]:
    layout = list(config.get(name, [default] * depth))
    if len(layout) != depth or not set(layout) <= {0, 1}:
        raise ValueError(f"{name} must be 0 or 1 for each of the {depth} layers, got {layout}")
    return layout


def _where(layout: list[int], value: int) -> tuple[int, ...]:
    return tuple(index for index, one in enumerate(layout) if one == value)
