"""MiniMax-Text-01 and M1 checkpoints: as published, and as transformers holds and writes them.

The tensors are Mixtral's, and those of lightning attention, whose decays transformers keeps among them and the zoo does
not: they follow from the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import mixtral
from zoo.checkpoints.convert.hybrid import every, layers, present, published, require
from zoo.checkpoints.convert.rename import DECODER
from zoo.checkpoints.convert.rope import read_partial_rope, write_rope

_AUTHORS = "minimax_text_01", "minimax_m1"
MODEL_TYPES = ("minimax", *_AUTHORS)
_DECAYS = re.compile(r".+\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)")
_GATE = re.compile(r"model\.layers\.\d+\.self_attn\.output_gate\.weight")
_FIELDS = {
    **DECODER,
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_dim",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "router_aux_loss_coef": "balance_weight",
}
_MULTIPLIERS = {  # ours: what transformers, and what the authors call them before the last word
    "attention_multipliers": ("full_attn_{}_factor", "layernorm_full_attention_{}"),
    "lightning_multipliers": ("linear_attn_{}_factor", "layernorm_linear_attention_{}"),
    "mlp_multipliers": ("mlp_{}_factor", "layernorm_mlp_{}"),
}
_DEFAULTS = {  # of the classes
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "num_key_value_heads": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001,
}  # fmt: skip
_FIXED = {  # with one value here
    "hidden_act": "silu", "attention_dropout": 0, "sliding_window": 0, "router_jitter_noise": 0,
    "shared_intermediate_size": 0, "quantization_config": {},
}  # fmt: skip
_KINDS = {"*": "full_attention", "M": "linear_attention"}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published MiniMax with lightning attention."""
    return any(_GATE.fullmatch(key) for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; the experts' tensors transposed and stacked, the decays left out.

    Raises:
        ValueError: where one of a layer's experts is missing.
    """
    return mixtral.to_zoo({key: tensor for key, tensor in state_dict.items() if not _DECAYS.fullmatch(key)})


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of MiniMaxForCausalLM: in memory, or with ``stacked`` False those of its files.

    The decays are not among them: transformers computes what a file has not.
    """
    named = mixtral.to_transformers(state_dict, stacked)
    lightning = {f"model.layers.{layer}.self_attn.o_proj.weight" for layer in layers(named, "self_attn.qkv_proj")}
    return {key.replace(".o_proj.", ".out_proj.") if key in lightning else key: t for key, t in named.items()}


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers' or the authors' ``config.json`` -> ("minimax", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    require(config, _FIXED)
    authors = config["model_type"] in _AUTHORS
    if authors and not config.get("postnorm"):
        raise ValueError(f"postnorm must be true, the norms in the residual stream, got {config.get('postnorm')!r}")
    given = _DEFAULTS | {name: value for name, value in config.items() if value is not None}
    width = given.setdefault("head_dim", given["hidden_size"] // given["num_attention_heads"])
    base, fraction = read_partial_rope(given, given.get("rotary_dim", width) / width, 1e6)
    multipliers = {
        ours: tuple(float(given.get(names[authors].format(word), 1)) for word in ("alpha", "beta"))
        for ours, names in _MULTIPLIERS.items()
    }
    return "minimax", present(given, _FIELDS) | multipliers | {
        "rope_base": base,
        "rotary_fraction": fraction,
        "attention_layers": _attention(given),
        "residual_in_fp32": False,
    }


def _attention(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The blocks with softmax attention."""
    depth = config["num_hidden_layers"]
    if "attn_type_list" in config:
        kinds = [_KINDS["*" if kind == 1 else "M"] for kind in config["attn_type_list"]]
    else:
        kinds = config.get("layer_types") or [_KINDS[letter] for letter in every(2, 0, "*", "M", depth)]
    if len(kinds) != depth or not set(kinds) <= set(_KINDS.values()):
        raise ValueError(f"layer_types must name {' or '.join(_KINDS.values())} for each layer, got {kinds}")
    return tuple(index for index, kind in enumerate(kinds) if kind == _KINDS["*"])


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our MiniMax configuration -> transformers' ``config.json``, which has no words for positions that turn
    a part of the channels."""
    kinds = [_KINDS["*" if index in config["attention_layers"] else "M"] for index in range(config["depth"])]
    multipliers = {
        names[0].format(word): value
        for ours, names in _MULTIPLIERS.items()
        for word, value in zip(("alpha", "beta"), config[ours], strict=True)
    }
    return (
        published(config, _FIELDS)
        | multipliers
        | {
            "model_type": "minimax",
            "architectures": ["MiniMaxForCausalLM"],
            "hidden_act": "silu",
            "layer_types": kinds,
            "rope_parameters": write_rope(config["rope_base"], None),
        }
    )
