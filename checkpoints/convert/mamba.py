"""Mamba and Mamba-2 checkpoints of the authors (state-spaces) and of transformers.

Both name the tensors of a mixer as the zoo does; around it they differ: the authors write ``backbone.embedding``,
transformers ``backbone.embeddings``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.rename import number, rename

MODEL_TYPES = ("mamba", "mamba2")
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
_MAMBA2_FIELDS = {"head_dim": "head_dim", "n_groups": "num_groups"}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Mamba or Mamba-2 language model."""
    return any(key.startswith("backbone.layers.") for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    return rename(state_dict, _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of transformers' MambaForCausalLM and Mamba2ForCausalLM; tensors unchanged."""
    return rename(state_dict, _NAMES, backwards=True)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("mamba" or "mamba2", fields of that family's configuration).

    Raises:
        ValueError: for another model type, or an option this architecture does not have here.
    """
    family = config.get("model_type")
    if family not in ("mamba", "mamba2"):
        raise ValueError(f"model_type must be 'mamba' or 'mamba2', got {family!r}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {config['hidden_act']!r}")
    names = _SHARED_FIELDS | (_MAMBA2_FIELDS if family == "mamba2" else {})
    fields = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
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
