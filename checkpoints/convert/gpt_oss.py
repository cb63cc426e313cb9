"""gpt-oss checkpoints: as published, with experts in MXFP4, and as transformers holds and writes them.

An expert's gate and its other half are one matrix, column by column in turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.convert.dense import PLAIN, windows, written_windows
from zoo.checkpoints.convert.dequantise import from_mxfp4, require_method
from zoo.checkpoints.convert.hybrid import every, present, published, require
from zoo.checkpoints.convert.rename import DECODER, rename
from zoo.checkpoints.convert.rope import read_rope, write_rope

MODEL_TYPES = ("gpt_oss",)
_NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.post_attention_layernorm.", "blocks.#.mlp_norm."),
    ("model.layers.#.self_attn.o_proj.", "blocks.#.mixer.out_proj."),
    ("model.layers.#.self_attn.", "blocks.#.mixer."),
    ("model.layers.#.mlp.experts.", "blocks.#.mlp."),
    ("model.layers.#.mlp.", "blocks.#.mlp."),
]
_PARTS = {  # published tensor of the experts -> ours, whose columns it has in turns
    "gate_up_proj": ("w1", "w3"),
    "gate_up_proj_bias": ("b1", "b3"),
    "down_proj": ("w2",),
    "down_proj_bias": ("b2",),
}
_FIELDS = {
    **DECODER,
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_dim",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "router_aux_loss_coef": "balance_weight",
    "swiglu_alpha": "swiglu_alpha",
    "swiglu_limit": "swiglu_limit",
    "max_position_embeddings": "context_length",
}
_DEFAULTS = {  # of the class
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "initializer_range": 0.02, "num_key_value_heads": 8,
    "head_dim": 64, "num_local_experts": 128, "num_experts_per_tok": 4, "router_aux_loss_coef": 0.001,
    "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "sliding_window": 128, "attention_bias": True,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
_KINDS = {"*": "full_attention", "w": "sliding_attention"}
_FIXED = {"hidden_act": "silu", "attention_dropout": 0}  # with one value here
_EXPERTS = {  # fields that no published one says otherwise
    "attention_sinks": True, "normalize": True, "joint_balance": True, "z_weight": 0.0, "expert_every": 1,
    "capacity_factor": None, "residual_in_fp32": False,
}  # fmt: skip


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published gpt-oss."""
    return {"model.layers.0.self_attn.sinks", "model.layers.0.mlp.router.weight"} <= state_dict.keys()


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; the experts' matrices unpacked, in bfloat16, and apart.

    Raises:
        ValueError: see ``from_mxfp4``.
    """
    apart = {}
    for key, tensor in from_mxfp4(state_dict).items():
        layer, found, name = key.partition(".experts.")
        for place, ours in enumerate(_PARTS[name] if found else ()):
            apart[f"{layer}.experts.{ours}"] = tensor[..., place :: len(_PARTS[name])].contiguous()
        if not found:
            apart[key] = tensor
    return rename(apart, _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of GptOssForCausalLM, in memory and in its files.

    Raises:
        ValueError: for a model with dense feed-forward layers, which it has not.
    """
    if dense := next((key for key in state_dict if ".mlp.w" in key and key.endswith(".weight")), None):
        raise ValueError(f"transformers has experts in every block (expert_every=1), this model the dense {dense}")
    theirs = {ours[0]: (name, ours) for name, ours in _PARTS.items()}
    together = {}
    for key, tensor in state_dict.items():
        layer, _, name = key.rpartition(".")
        if layer.endswith(".mlp") and name in theirs:
            name, parts = theirs[name]
            columns = torch.stack([state_dict[f"{layer}.{part}"] for part in parts], -1).flatten(-2)
            together[f"{layer}.experts.{name}"] = columns
        elif not (layer.endswith(".mlp") and name in ("w3", "b3")):
            together[key] = tensor
    return rename(together, [(theirs, ours) for theirs, ours in _NAMES if "experts" not in theirs], backwards=True)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A published or transformers' ``config.json`` -> ("gpt_oss", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here, or weights in another form than MXFP4.
    """
    require(config, _FIXED)
    require_method(config, quant_method="mxfp4")
    given = _DEFAULTS | {name: value for name, value in config.items() if value is not None}
    given.setdefault("rope_parameters", given.get("rope_scaling", _YARN))
    letters = every(2, 1, "*", "w", given["num_hidden_layers"])
    given.setdefault("layer_types", [_KINDS[letter] for letter in letters])
    base, scaling = read_rope(given, 150000.0)
    fields = PLAIN | _EXPERTS | present(given, _FIELDS) | windows(given | {"use_sliding_window": True})
    biases = dict.fromkeys(("qkv_bias", "out_bias"), given["attention_bias"])
    return "gpt_oss", fields | biases | {"rope_base": base, "rope_scaling": scaling}


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our gpt-oss configuration -> transformers' ``config.json``."""
    layers = written_windows(config)
    fields = {name: value for name, value in published(config, _FIELDS).items() if value is not None}
    return fields | {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "hidden_act": "silu",
        "attention_bias": config["qkv_bias"],
        "sliding_window": layers["sliding_window"] or _DEFAULTS["sliding_window"],  # masks are made all the same
        "layer_types": layers["layer_types"],
        "rope_parameters": write_rope(config["rope_base"], config["rope_scaling"]),
    }
