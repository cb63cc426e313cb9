"""Nemotron-H checkpoints: ``backbone`` in files, ``model`` in the memory of transformers; a layer has one mixer.

A feed-forward layer belongs to the block of the mixer before it. transformers bounds the step size from below by
``time_step_min`` where it runs a whole sequence, and not where it decodes; here ``time_step_limit`` bounds it, as in
the authors' code, and what is written has that bound as ``time_step_min``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import hybrid
from zoo.checkpoints.convert.rename import rename, written

MODEL_TYPES = ("nemotron_h",)
_LAYER = re.compile(r"(?:backbone|model)\.layers\.(\d+)\.(norm|mixer)\.(.+)")
_BLOCK = re.compile(r"blocks\.(\d+)\.(norm|mixer|mlp_norm|mlp)\.(.+)")
_AROUND = [  # in files, ours
    ("backbone.embeddings.", "embedding."),
    ("model.embeddings.", "embedding."),
    ("backbone.norm_f.", "norm."),
    ("model.norm_f.", "norm."),
    ("lm_head.", "head."),
]
_PARTS = {"o_proj.weight": "out_proj.weight", "up_proj.weight": "w1.weight", "down_proj.weight": "w2.weight"}
_TYPES = {
    "mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "mlp": "-",
}  # fmt: skip
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "layer_norm_epsilon": "norm_eps",
    "initializer_range": "initializer_range",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "attention_head_dim": "head_dim",  # in older files
    "head_dim": "head_dim",
    "intermediate_size": "mlp_dim",
    "mamba_head_dim": "ssm_head_dim",
    "ssm_state_size": "d_state",
    "conv_kernel": "d_conv",
    "n_groups": "num_groups",
    "use_conv_bias": "conv_bias",
    "use_bias": "ssm_bias",
}
_DEFAULTS = {"head_dim": 128, "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8}
_FIXED = {
    "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0, "sliding_window": False, "tie_word_embeddings": False, "num_nextn_predict_layers": 0,
}  # fmt: skip


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Nemotron-H: mixers of which some are attention or feed-forward."""
    ends = (".mixer.q_proj.weight", ".mixer.up_proj.weight")
    return any(_LAYER.fullmatch(key) and key.endswith(ends) for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged.

    Raises:
        ValueError: for a layer of experts, or a feed-forward layer that follows no mixer.
    """
    layers = {int(found[1]) for key in state_dict if (found := _LAYER.fullmatch(key))}
    mlps = {int(found[1]) for key in state_dict if (found := _LAYER.fullmatch(key)) and found[3] == "up_proj.weight"}
    if lonely := sorted(index for index in mlps if index - 1 not in layers - mlps):
        raise ValueError(f"a feed-forward layer must follow a mixer, which layers {lonely} do not")
    blocks = {index: block for block, index in enumerate(sorted(layers - mlps))}
    result = {}
    for key, tensor in rename(state_dict, _AROUND).items():
        if found := _LAYER.fullmatch(key):
            index, kind, name = int(found[1]), found[2], _PARTS.get(found[3], found[3])
            if name.startswith(("gate.", "experts.", "shared_experts.")):
                raise ValueError(f"layers of experts have no counterpart here, got {key}")
            if index in mlps:
                key = f"blocks.{blocks[index - 1]}.{'mlp' if kind == 'mixer' else 'mlp_norm'}.{name}"
            else:
                key = f"blocks.{blocks[index]}.{kind}.{name}"
        result[key] = tensor
    return result


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of NemotronHForCausalLM in memory, or with ``stacked`` False those of its files."""
    mlps = {int(found[1]) for key in state_dict if (found := _BLOCK.fullmatch(key)) and found[2] == "mlp_norm"}
    attention = {
        int(found[1]) for key in state_dict if (found := _BLOCK.fullmatch(key)) and found[3] == "q_proj.weight"
    }
    theirs = {ours: name for name, ours in _PARTS.items()}
    result = {}
    for key, tensor in state_dict.items():
        if found := _BLOCK.fullmatch(key):
            block, kind, name = int(found[1]), found[2], found[3]
            if kind == "mlp" or (kind == "mixer" and block in attention):
                name = theirs.get(name, name)
            index = block + sum(other < block for other in mlps) + kind.startswith("mlp")
            key = f"backbone.layers.{index}.{'norm' if kind.endswith('norm') else 'mixer'}.{name}"
        result[key] = tensor
    published = rename(result, _AROUND, backwards=True)
    return {key.replace("backbone.", "model."): t for key, t in published.items()} if stacked else published


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A published or transformers' ``config.json`` -> ("nemotron_h", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    hybrid.require(config, _FIXED)
    config = _DEFAULTS | {name: value for name, value in config.items() if value is not None}
    fields = hybrid.present(config, _FIELDS) | hybrid.step_limits(config)
    parts = _parts(config)
    return "nemotron_h", fields | {
        "ssm_dim": config["mamba_num_heads"] * config["mamba_head_dim"],
        "depth": len(parts),
        "mixers": "".join(part[0] for part in parts),
        "mlps": "".join(part[1:] or "." for part in parts),
    }


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Nemotron-H configuration, its patterns written out -> transformers' ``config.json``."""
    names = {"M": ["linear_attention"], "*": ["full_attention"], "-": ["mlp"], ".": []}
    letters = "".join(a + b for a, b in zip(config["mixers"], config["mlps"], strict=True))
    return hybrid.published(config, _FIELDS) | {
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "mlp_hidden_act": "relu2",
        "tie_word_embeddings": config["tie_embeddings"],
        "layers_block_type": [name for letter in letters for name in names[letter]],
        "mamba_num_heads": config["ssm_dim"] // config["ssm_head_dim"],
        "chunk_size": config["chunk_size"],
        "time_step_limit": [written(bound) for bound in config["dt_limit"]],
        "time_step_min": config["dt_limit"][0] or 1e-30,
    }


def _parts(config: Mapping[str, Any]) -> list[str]:
    """Each mixer's letter with that of the feed-forward layer behind it."""
    types = config.get("layers_block_type") or config.get("layer_types") or config.get("hybrid_override_pattern")
    if not types:
        raise ValueError("layers_block_type or hybrid_override_pattern must say what the layers are")
    pattern = types if isinstance(types, str) else "".join(_TYPES.get(kind, "?") for kind in types)
    if not re.fullmatch(r"(?:[M*]-?)+", pattern):
        raise ValueError(
            f"each layer must be mamba (M), attention (*), or an mlp (-) that follows one of them, got {types!r}"
        )
    return re.findall(r"[M*]-?", pattern)
