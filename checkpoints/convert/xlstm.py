"""xLSTM checkpoints, published in transformers' layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.rename import rename

MODEL_TYPES = ("xlstm",)
_NAMES = [  # published, ours
    ("backbone.embeddings.", "embedding."),
    ("backbone.out_norm.", "norm."),
    ("lm_head.", "head."),
    ("backbone.blocks.#.norm_mlstm.", "blocks.#.norm."),
    ("backbone.blocks.#.norm_ffn.", "blocks.#.mlp_norm."),
    ("backbone.blocks.#.mlstm_layer.q.", "blocks.#.mixer.q_proj."),
    ("backbone.blocks.#.mlstm_layer.k.", "blocks.#.mixer.k_proj."),
    ("backbone.blocks.#.mlstm_layer.v.", "blocks.#.mixer.v_proj."),
    ("backbone.blocks.#.mlstm_layer.ogate_preact.", "blocks.#.mixer.g_proj."),
    ("backbone.blocks.#.mlstm_layer.igate_preact.", "blocks.#.mixer.cell.i_proj."),
    ("backbone.blocks.#.mlstm_layer.fgate_preact.", "blocks.#.mixer.cell.f_proj."),
    ("backbone.blocks.#.mlstm_layer.multihead_norm.", "blocks.#.mixer.cell.norm."),
    ("backbone.blocks.#.mlstm_layer.out_proj.", "blocks.#.mixer.out_proj."),
    ("backbone.blocks.#.ffn.proj_up_gate.", "blocks.#.mlp.w1."),
    ("backbone.blocks.#.ffn.proj_up.", "blocks.#.mlp.w3."),
    ("backbone.blocks.#.ffn.proj_down.", "blocks.#.mlp.w2."),
]
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_heads": "num_heads",
    "norm_eps": "norm_eps",
    "eps": "eps",
    "gate_soft_cap": "gate_softcap",
    "output_logit_soft_cap": "logit_softcap",
    "chunk_size": "chunk_size",
    "tie_word_embeddings": "tie_embeddings",
}
_FIXED = {  # transformers' options and the first files', with the one value that this architecture has
    "use_bias": False, "add_out_norm": True, "weight_mode": "single", "add_post_blocks_norm": True,
    "add_post_norm": False, "add_qk_norm": False, "add_embedding_dropout": False,
}  # fmt: skip


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published xLSTM."""
    return "backbone.blocks.0.mlstm_layer.q.weight" in state_dict


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    return rename(state_dict, _NAMES)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of xLSTMForCausalLM; tensors unchanged."""
    return rename(state_dict, _NAMES, backwards=True)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("xlstm", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here, or heads that do not divide a width.
    """
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}, got {config[name]!r}")
    given = dict(config)
    for name, other in (("hidden_size", "embedding_dim"), ("num_hidden_layers", "num_blocks")):
        given[name] = config.get(name) or config[other]
    if config.get("cell_norm_eps", config.get("norm_eps")) != config.get("norm_eps"):
        raise ValueError(f"cell_norm_eps must be norm_eps, got {config['cell_norm_eps']} and {config.get('norm_eps')}")
    fields = {ours: given[theirs] for theirs, ours in _FIELDS.items() if theirs in given}
    dim, heads = fields["dim"], fields.get("num_heads", 8)
    for field, factor, usual in (("key_dim", "qk_dim_factor", 0.5), ("value_dim", "v_dim_factor", 1.0)):
        width = int(dim * config.get(factor, usual))
        if width % heads:
            raise ValueError(f"num_heads must divide {factor} times the width: {heads} heads do not divide {width}")
        fields[field] = width // heads
    multiple = config.get("ffn_round_up_to_multiple_of", 64)
    hidden = dim * config.get("ffn_proj_factor", 2.667)
    return "xlstm", fields | {"mlp_dim": int((hidden + multiple - 1) // multiple) * multiple}


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our xLSTM configuration -> transformers' ``config.json``."""
    dim, keys, values = config["dim"], *(config["num_heads"] * config[name] for name in ("key_dim", "value_dim"))
    return {theirs: config[ours] for theirs, ours in _FIELDS.items()} | {
        "model_type": "xlstm",
        "architectures": ["xLSTMForCausalLM"],
        "qk_dim_factor": _factor(keys, dim),
        "v_dim_factor": _factor(values, dim),
        "ffn_proj_factor": _factor(config["mlp_dim"], dim),
        "ffn_round_up_to_multiple_of": 1,
        "use_cache": keys % 64 == values % 64 == 0,  # transformers' has room for such widths alone
    }


def _factor(width: int, dim: int) -> float:
    """The number by which transformers multiplies dim, and rounds down to the width."""
    factor = width / dim
    return factor if int(dim * factor) == width else math.nextafter(factor, math.inf)
