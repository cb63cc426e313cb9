"""What the converters of hybrids share: names, patterns of layers, and options that have one value here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.rename import DECODER, number, rename, written

NAMES = [  # published, ours, where a mixer says what it is
    ("model.embed_tokens.", "embedding."),
    ("lm_head.", "head."),
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.self_attn.o_proj.", "blocks.#.attention.out_proj."),
    ("model.layers.#.self_attn.", "blocks.#.attention."),
]
MAMBA = [("model.layers.#.mamba.", "blocks.#.ssm.")]
FEED_FORWARD = [
    ("model.final_layernorm.", "norm."),
    ("model.layers.#.pre_ff_layernorm.", "blocks.#.mlp_norm."),
    ("model.layers.#.feed_forward.gate_proj.", "blocks.#.mlp.w1."),
    ("model.layers.#.feed_forward.up_proj.", "blocks.#.mlp.w3."),
    ("model.layers.#.feed_forward.down_proj.", "blocks.#.mlp.w2."),
]
FIELDS = {
    **DECODER,
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
}
MAMBA2_FIELDS = {
    "mamba_d_head": "ssm_head_dim",
    "mamba_d_state": "d_state",
    "mamba_d_conv": "d_conv",
    "mamba_n_groups": "num_groups",
    "mamba_conv_bias": "conv_bias",
    "mamba_proj_bias": "ssm_bias",
}
_MIXER = re.compile(r"^(blocks\.\d+\.)(?:attention|ssm)\.")
MOST = 4096  # layers, of which a pattern is written out
_LETTERS = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*"}  # of published layer types


def to_zoo(state_dict: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    return {_MIXER.sub(r"\1mixer.", key): tensor for key, tensor in rename(state_dict, names).items()}


def to_published(state_dict: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The inverse of ``to_zoo``: a mixer with queries is attention."""
    attention = {key.removesuffix("mixer.q_proj.weight") for key in state_dict if key.endswith(".mixer.q_proj.weight")}
    told = {}
    for key, tensor in state_dict.items():
        block, mixer, rest = key.partition("mixer.")
        told[f"{block}{'attention' if block in attention else 'ssm'}.{rest}" if mixer else key] = tensor
    return rename(told, names, backwards=True)


def repeated(pattern: str, depth: int) -> str:
    """One letter a block."""
    return (pattern * depth)[:depth]


def written_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration with patterns, those written out."""
    return {**config, **{name: repeated(config[name], config["depth"]) for name in ("mixers", "mlps")}}


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a hybrid's configuration, its patterns written out and with the values that None stands for."""
    return written_out(config) | {"head_dim": config["head_dim"] or config["dim"] // config["num_heads"]}


def mixers(types: Sequence[str], depth: int) -> str:
    """Published layer types -> a pattern.

    Raises:
        ValueError: for a type that is none of a hybrid, or another number of them than layers.
    """
    if len(types) != depth:
        raise ValueError(f"there must be a type for each of the {depth} layers, got {len(types)}")
    if unknown := sorted({str(kind) for kind in types} - set(_LETTERS)):
        raise ValueError(f"the types of layers must be among {', '.join(_LETTERS)}, got {', '.join(unknown)}")
    return "".join(_LETTERS[kind] for kind in types)


def layer_types(pattern: str) -> list[str]:
    """A pattern of mixers -> transformers' layer types."""
    return [{"M": "linear_attention", "*": "full_attention"}[letter] for letter in pattern]


def at(places: Collection[int], letter: str, other: str, depth: int) -> str:
    """A pattern of one letter at some places and another everywhere else.

    Raises:
        ValueError: for more blocks than any model has, or places beyond them.
    """
    if depth > MOST or not set(places) <= set(range(depth)):
        raise ValueError(f"places must be in [0, num_hidden_layers <= {MOST}), got {places} and {depth}")
    return "".join(letter if index in places else other for index in range(depth))


def every(period: int, offset: int, letter: str, other: str, depth: int) -> str:
    """A pattern of one letter at ``offset`` of each group of ``period`` blocks and another everywhere else."""
    places = range(offset, min(depth, MOST + 1), period) if offset < period else ()
    return at(places, letter, other, depth)


def period(pattern: str, letter: str) -> tuple[int, int]:
    """The period and offset with which ``every`` writes a pattern, if it can."""
    places = [index for index, found in enumerate(pattern) if found == letter] or [len(pattern)]
    return (places[1] - places[0] if len(places) > 1 else len(pattern) + 1), places[0]


def require(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a ValueError for an option that is given and is not what this architecture has here."""
    for name, value in wanted.items():
        if config.get(name) is not None and config[name] != value:
            raise ValueError(f"{name} must be {value!r}, got {config[name]!r}")


def rope_base(config: Mapping[str, Any], rotated: float = 1.0) -> float:
    """The wavelength base of rotary positions, which must turn so much of a head, unscaled."""
    rope = config.get("rope_parameters") or config
    require(rope, {"rope_type": "default", "partial_rotary_factor": rotated})
    require(config, {"rope_scaling": {}})
    return float(rope.get("rope_theta", 10000.0))


def present(config: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields that a published configuration gives, under our names."""
    return {ours: config[theirs] for theirs, ours in fields.items() if config.get(theirs) is not None}


def published(config: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Fields of our configuration under their published names."""
    return {theirs: config[ours] for theirs, ours in fields.items()}


def mamba2_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the Mamba-2 layers of Bamba and Granite 4."""
    width = config.get("mamba_expand", 2) * config["hidden_size"]
    fields = {"d_state": 256} | present(config, MAMBA2_FIELDS) | {"ssm_dim": width}
    if fields.get("ssm_head_dim", "auto") == "auto":
        fields["ssm_head_dim"] = width // config.get("mamba_n_heads", 128)
    return fields | step_limits(config)


def step_limits(config: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of the step size, where they are given."""
    if config.get("time_step_limit") is None:
        return {}
    low, high = config["time_step_limit"]
    return {"dt_limit": (number(low), number(high))}


def mamba2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``mamba2_fields``."""
    return published(config, MAMBA2_FIELDS) | {
        "mamba_expand": config["ssm_dim"] // config["dim"],
        "mamba_n_heads": config["ssm_dim"] // config["ssm_head_dim"],
        "mamba_chunk_size": config["chunk_size"],
        "time_step_limit": [written(bound) for bound in config["dt_limit"]],
    }


def layers(state_dict: Mapping[str, Tensor], part: str) -> set[str]:
    """Numbers of the published layers that have a part of this name."""
    within = re.compile(rf"model\.layers\.(\d+)\.{re.escape(part)}\.")
    return {found[1] for key in state_dict if (found := within.match(key))}
