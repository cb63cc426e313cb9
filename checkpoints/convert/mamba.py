"""Mamba and Mamba-2 checkpoints of the authors (state-spaces) and of transformers, which has FalconMamba too.

Both name the tensors of a mixer as the zoo does; around it they differ: the authors write ``backbone.embedding``,
transformers ``backbone.embeddings``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import nemotron_h
from zoo.checkpoints.convert.rename import number, rename, written

MODEL_TYPES = ("mamba", "mamba2", "falcon_mamba")
_NAMES = [  # published, ours
    ("backbone.embeddings.", "embedding."),  # transformers
    ("backbone.embedding.", "embedding."),  # the authors
    ("backbone.layers.", "blocks."),
    ("backbone.norm_f.", "norm."),
    ("lm_head.", "head."),
]
_SHARED_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "layer_norm_epsilon": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "residual_in_fp32": "residual_in_fp32",
    "initializer_range": "initializer_range",
    "state_size": "d_state",
    "conv_kernel": "d_conv",
    "expand": "expand",
    "use_conv_bias": "conv_bias",
    "use_bias": "bias",
}
_SSM = {  # layer -> family, options with a counterpart
    "Mamba1": ("mamba", {
        "d_state": "d_state", "d_conv": "d_conv", "expand": "expand", "dt_rank": "dt_rank", "conv_bias": "conv_bias",
        "bias": "bias",
    }),
    "Mamba2": ("mamba2", {
        "d_state": "d_state", "d_conv": "d_conv", "expand": "expand", "headdim": "head_dim", "ngroups": "num_groups",
        "dt_limit": "dt_limit", "conv_bias": "conv_bias", "bias": "bias",
    }),
}  # fmt: skip
_ATTENTION = {
    "num_heads": "attention_heads", "head_dim": "attention_head_dim", "rotary_emb_dim": "attention_rotary_dim",
}  # fmt: skip
_SSM_DEFAULTS = {"mamba": {"d_state": 16}, "mamba2": {"d_state": 128, "head_dim": 64}}  # where a nano model differs
_INITIAL = {  # initial values and speed, which change no output of trained weights
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "conv_init", "A_init_range", "use_fast_path",
    "chunk_size", "use_mem_eff_path",
}  # fmt: skip
_TRANSFORMERS = {  # model type -> family, further fields
    "mamba": ("mamba", {}),
    "falcon_mamba": ("mamba", {"mixer_rms_eps": "mixer_norm_eps"}),
    "mamba2": ("mamba2", {"head_dim": "head_dim", "n_groups": "num_groups"}),
}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Mamba or Mamba-2 language model."""
    return any(key.startswith("backbone.layers.") for key in state_dict) and not nemotron_h.recognises(state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    return rename(state_dict, _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of transformers' (Falcon)MambaForCausalLM and Mamba2ForCausalLM; tensors unchanged."""
    return rename(state_dict, _NAMES, backwards=True)


def config_from_mamba_ssm(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The authors' ``config.json`` (mamba_ssm's MambaConfig) -> ("mamba" or "mamba2", fields of its configuration).

    The vocabulary is the padded one, as in the files; ``ssm_cfg`` names the layer and holds its options.

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    for name, wanted in (("d_intermediate", 0), ("rms_norm", True)):
        if config.get(name, wanted) != wanted:
            raise ValueError(f"{name} must be {wanted!r}, as in the released Mamba and Mamba-2, got {config[name]!r}")
    options = dict(config.get("ssm_cfg", {}))
    layer = options.pop("layer", "Mamba1")
    if layer not in _SSM:
        raise ValueError(f"ssm_cfg's layer must be one of {sorted(_SSM)}, got {layer!r}")
    family, names = _SSM[layer]
    if unknown := sorted(set(options) - set(names) - _INITIAL):
        raise ValueError(f"ssm_cfg's {', '.join(unknown)} cannot be set here; known are {', '.join(names)}")
    fields = _SSM_DEFAULTS[family] | {ours: options[theirs] for theirs, ours in names.items() if theirs in options}
    if fields.get("dt_rank") == "auto":
        del fields["dt_rank"]
    multiple = config.get("pad_vocab_size_multiple", 8)
    return family, fields | _attention(config, family, fields.get("d_conv", 4)) | {
        "dim": config["d_model"],
        "depth": config["n_layer"],
        "vocab_size": -(-config["vocab_size"] // multiple) * multiple,
        "tie_embeddings": config.get("tie_embeddings", True),
        "residual_in_fp32": config.get("residual_in_fp32", True),
    }


def _attention(config: Mapping[str, Any], family: str, d_conv: int) -> dict[str, Any]:
    """Fields of the attention layers of a hybrid; none where there are no such layers."""
    if not config.get("attn_layer_idx"):
        return {}
    if family != "mamba2":
        raise ValueError(f"attn_layer_idx must be [] in a Mamba, got {config['attn_layer_idx']!r}")
    given = dict(config.get("attn_cfg", {}))
    fields = {ours: given.pop(theirs) for theirs, ours in _ATTENTION.items() if theirs in given}
    wanted = {
        "causal": True,
        "d_conv": d_conv,
        "qkv_proj_bias": False,
        "out_proj_bias": False,
        "rotary_emb_base": 10000.0,
    }
    if missing := sorted(set(_ATTENTION.values()) - set(fields)):
        raise ValueError(f"attn_cfg must say what {', '.join(missing)} are, got {config.get('attn_cfg')}")
    for name, value in given.items():
        if value != wanted.get(name, value) or name not in wanted:
            raise ValueError(f"attn_cfg's {name} must be {wanted.get(name, 'left out')!r}, got {value!r}")
    return fields | {"attention_layers": tuple(config["attn_layer_idx"])}


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("mamba" or "mamba2", fields of that family's configuration).

    Raises:
        ValueError: for another model type, or an option this architecture does not have here.
    """
    if config.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}, got {config.get('model_type')!r}")
    family, names = _TRANSFORMERS[config["model_type"]]
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {config['hidden_act']!r}")
    names = _SHARED_FIELDS | names
    fields = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    if config["model_type"] == "falcon_mamba":
        fields.setdefault("mixer_norm_eps", 1e-6)
    if family == "mamba" and config.get("time_step_rank", "auto") != "auto":
        fields["dt_rank"] = config["time_step_rank"]
    if family == "mamba2":
        heads, inner = config.get("num_heads"), config["hidden_size"] * config.get("expand", 2)
        if heads is not None and heads * config.get("head_dim", 64) != inner:
            raise ValueError(f"num_heads * head_dim must be expand * hidden_size = {inner}, got {heads} heads")
        if "time_step_limit" in config:
            low, high = (number(bound) for bound in config["time_step_limit"])
            fields["dt_limit"] = (low, high)
    return family, fields


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Mamba or Mamba-2 configuration -> transformers' ``config.json``."""
    published = {theirs: config[ours] for theirs, ours in _SHARED_FIELDS.items()} | {"hidden_act": "silu"}
    if "head_dim" not in config:
        falcon = config["mixer_norm_eps"] is not None
        return published | ({"mixer_rms_eps": config["mixer_norm_eps"]} if falcon else {}) | {
            "model_type": "falcon_mamba" if falcon else "mamba",
            "architectures": ["FalconMambaForCausalLM" if falcon else "MambaForCausalLM"],
            "time_step_rank": config["dt_rank"] or "auto",
            "intermediate_size": config["expand"] * config["dim"],
        }  # fmt: skip
    return published | {theirs: config[ours] for theirs, ours in _TRANSFORMERS["mamba2"][1].items()} | {
        "model_type": "mamba2",
        "architectures": ["Mamba2ForCausalLM"],
        "num_heads": config["expand"] * config["dim"] // config["head_dim"],
        "time_step_limit": [written(bound) for bound in config["dt_limit"]],
        "chunk_size": config["chunk_size"],
        "rms_norm": True,
    }  # fmt: skip
