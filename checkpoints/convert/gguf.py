"""transformers' tensors and configurations as llama.cpp takes them in a GGUF file.

The source of the metadata's names, of the order in which a Llama's rotary pairs lie and of what Falcon-H1's multipliers
are multiplied into: llama.cpp's own converter (github.com/ggml-org/llama.cpp, conversion/).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Given = Mapping[str, Any]
Tensors = dict[str, Tensor]
_FOREVER = 2**20  # tokens, of models without a longest text


class Converted(NamedTuple):
    """What a GGUF file says of a model.

    Attributes:
        architecture: llama.cpp's name.
        metadata: without the architecture's prefix.
        tensors: under transformers' names, from which ``gguf`` knows its own; in the layout of the file.
    """

    architecture: str
    metadata: dict[str, Any]
    tensors: Tensors


class _Kind(NamedTuple):
    """A model_type. wanted: options that llama.cpp has one value for."""

    architecture: str
    metadata: Callable[[Given], dict[str, Any]]
    tensors: Callable[[Given, Tensors], Tensors]
    wanted: Given = {}  # noqa: RUF012  (read alone)


def to_gguf(config: Given, tensors: Mapping[str, Tensor]) -> Converted:
    """A model as transformers has it -> as llama.cpp has it.

    Args:
        config: content of transformers' ``config.json``.
        tensors: under transformers' names.

    Raises:
        ValueError: for a model_type that is not converted here, or an option that llama.cpp has no word for.
    """
    name = config["model_type"]
    if name not in _KINDS:
        raise ValueError(f"GGUF files are written of {', '.join(_KINDS)}, got {name!r}")
    kind = _KINDS[name]
    for option, value in kind.wanted.items():
        if config.get(option, value) != value:
            raise ValueError(f"llama.cpp's {kind.architecture} has {option} {value!r}, got {config[option]!r}")
    if kind.architecture != "llama" and (config.get("rope_parameters") or {}).get("rope_type") == "llama3":
        raise ValueError(
            f"llama.cpp's {kind.architecture} has no rope_type 'llama3': convert to 'transformers' instead"
        )
    metadata = {
        "vocab_size": config["vocab_size"],
        "context_length": config.get("max_position_embeddings") or _FOREVER,
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
    } | kind.metadata(config)
    return Converted(kind.architecture, metadata, kind.tensors(config, dict(tensors)))


def _attention(config: Given) -> dict[str, Any]:
    return {
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    } | _rope(config)


def _experts(config: Given) -> dict[str, Any]:
    """The width of an expert where its type has a word for it, which then is that of all feed-forward layers."""
    count = config["num_local_experts" if "num_local_experts" in config else "num_experts"]
    dim = {"head_dim": config["hidden_size"] // config["num_attention_heads"], **config}
    found = {"expert_count": count, "expert_used_count": config["num_experts_per_tok"]}
    if "moe_intermediate_size" in config:
        found["expert_feed_forward_length"] = config["moe_intermediate_size"]
        dim["intermediate_size"] = dim.get("intermediate_size") or config["moe_intermediate_size"]
    return _attention(dim) | found


def _olmoe(config: Given) -> dict[str, Any]:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if kv_heads != heads:
        raise ValueError(
            f"llama.cpp's olmoe has num_key_value_heads equal to num_attention_heads {heads}, got {kv_heads}"
        )
    return _experts(config)


def _rope(config: Given) -> dict[str, Any]:
    rope = config["rope_parameters"]
    found = {"rope.freq_base": rope["rope_theta"], "rope.dimension_count": config["head_dim"]}
    if rope["rope_type"] == "linear":
        return found | {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] not in ("default", "llama3"):
        raise ValueError(f"rope_type must be default, linear or llama3 in a GGUF file, got {rope['rope_type']!r}")
    return found


def _recurrence(config: Given) -> dict[str, Any]:
    return {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "ssm.conv_kernel": config["conv_kernel"],
        "ssm.inner_size": config["expand"] * config["hidden_size"],
        "ssm.state_size": config["state_size"],
    }


def _mamba(config: Given) -> dict[str, Any]:
    rank = config["time_step_rank"]
    return _recurrence(config) | {
        "ssm.time_step_rank": math.ceil(config["hidden_size"] / 16) if rank == "auto" else rank,
        "ssm.dt_b_c_rms": config["model_type"] == "falcon_mamba",
    }


def _mamba2(config: Given) -> dict[str, Any]:
    return _recurrence(config) | {
        "ssm.time_step_rank": config["num_heads"],
        "ssm.group_count": config["n_groups"],
    }


def _falcon_h1(config: Given) -> dict[str, Any]:
    return _attention(config) | {
        "ssm.conv_kernel": config["mamba_d_conv"],
        "ssm.inner_size": config["mamba_d_ssm"],
        "ssm.state_size": config["mamba_d_state"],
        "ssm.time_step_rank": config["mamba_n_heads"],
        "ssm.group_count": config["mamba_n_groups"],
    }


def _llama_tensors(config: Given, tensors: Tensors) -> Tensors:
    """Rotary pairs that lie half a head apart come to lie side by side."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name in tensors:
        if count := heads.get(name.split(".")[-2]):
            pairs = tensors[name].unflatten(0, (count, 2, -1))  # (H, 2, D / 2, ...)
            tensors[name] = pairs.transpose(1, 2).flatten(0, 2)
    if config["rope_parameters"]["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = _slower(config)
    return tensors


def _mixtral_tensors(config: Given, tensors: Tensors) -> Tensors:
    return _llama_tensors(config, _stacked(config, tensors))


def _stacked(config: Given, tensors: Tensors) -> Tensors:
    """The matrices of a layer's experts as one tensor."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        match name.split("."):
            case [*place, "experts", "0", kind, "weight"]:
                every = (".".join([*place, "experts", str(index), kind, "weight"]) for index in itertools.count())
                stack = [tensors[one] for one in itertools.takewhile(tensors.__contains__, every)]
                found[".".join([*place, "experts", kind, "weight"])] = torch.stack(stack)
            case [*_, "experts", _, _, "weight"]:
                pass
            case _:
                found[name] = tensor
    return found


def _slower(config: Given) -> Tensor:
    """By what Llama 3 divides each of its frequencies."""
    rope = config["rope_parameters"]
    powers = torch.arange(0, config["head_dim"], 2, dtype=torch.float64) / config["head_dim"]
    turns = rope["original_max_position_embeddings"] * rope["rope_theta"] ** -powers / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)  # of a frequency that stays
    return (1 / ((1 - share) / rope["factor"] + share)).float()


def _olmoe_tensors(config: Given, tensors: Tensors) -> Tensors:
    """A tied head becomes one of its own, which llama.cpp's olmoe must have."""
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return _stacked(config, tensors)


def _as_they_are(config: Given, tensors: Tensors) -> Tensors:
    return tensors


def _mamba_tensors(config: Given, tensors: Tensors) -> Tensors:
    return dict(_ssm(tensors))


def _falcon_mamba_tensors(config: Given, tensors: Tensors) -> Tensors:
    r"""The norms of dt, B and C come to have the eps of the others, the one that llama.cpp reads.

    .. math:: \frac{c x}{\sqrt{\overline{(c x)^2} + \epsilon}} = \frac{x}{\sqrt{\overline{x^2} + \epsilon / c^2}}

    so what they norm is multiplied by c, the root of that eps over their own.
    """
    eps, own = config["layer_norm_epsilon"], config["mixer_rms_eps"]
    if eps != own and not (eps > 0 and own > 0):
        raise ValueError(f"llama.cpp's mamba has one eps: mixer_rms_eps must be layer_norm_epsilon {eps}, got {own}")
    for name in tensors:
        if name.endswith(".x_proj.weight") and eps != own:
            tensors[name] = tensors[name].float() * math.sqrt(eps / own)
    return _mamba_tensors(config, tensors)


def _mamba2_tensors(config: Given, tensors: Tensors) -> Tensors:
    return {name: _grouped(name, tensor, config["n_groups"]) for name, tensor in _ssm(tensors)}


def _falcon_h1_tensors(config: Given, tensors: Tensors) -> Tensors:
    """Each multiplier goes into the matrix beside it; a tied head becomes one of its own, for the two differ."""
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    inner, state = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    parts = torch.tensor([inner, inner, state, state, config["mamba_n_heads"]])  # z, x, B, C, dt
    attention_in, (gate, down) = config["attention_in_multiplier"], config["mlp_multipliers"]
    inward = torch.tensor(config["ssm_multipliers"]).repeat_interleave(parts)[:, None]
    factors: dict[str, Any] = {
        "embed_tokens": config["embedding_multiplier"],
        "lm_head": config["lm_head_multiplier"],
        "q_proj": attention_in,
        "k_proj": attention_in * config["key_multiplier"],
        "v_proj": attention_in,
        "o_proj": config["attention_out_multiplier"],
        "gate_proj": gate,
        "down_proj": down,
        "out_proj": config["ssm_out_multiplier"],
        "in_proj": config["ssm_in_multiplier"] * inward,
    }  # fmt: skip
    scaled = {name: tensor.float() * factors.get(name.split(".")[-2], 1.0) for name, tensor in tensors.items()}
    return {name: _grouped(name, tensor, config["mamba_n_groups"]) for name, tensor in _ssm(scaled)}


def _ssm(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """A in place of its logarithm, convolutions as matrices, and the bias of dt as one of a projection."""
    for name, tensor in tensors.items():
        match name.split("."):
            case [*_, "A_log"]:
                yield name, -tensor.float().exp()
            case [*_, "conv1d", "weight"]:
                yield name, tensor.squeeze(1)
            case [*place, "dt_bias"]:
                yield ".".join((*place, "dt_proj", "bias")), tensor
            case _:
                yield name, tensor


def _grouped(name: str, tensor: Tensor, groups: int) -> Tensor:
    """Of a head one number a row, of the gated norm one group a row."""
    if name.endswith((".A_log", ".D")):
        return tensor[:, None]
    return tensor.unflatten(0, (groups, -1)) if name.endswith(("mixer.norm.weight", "mamba.norm.weight")) else tensor


_MAMBA = {"expand": 2, "use_conv_bias": True, "use_bias": False}
_NO_LIMIT = {"time_step_limit": [0.0, {"__float__": "Infinity"}]}
_OLMOE = {"clip_qkv": None, "attention_bias": False}
_KINDS = {
    "llama": _Kind("llama", _attention, _llama_tensors),
    "mistral": _Kind("llama", _attention, _llama_tensors, {"sliding_window": None}),
    "qwen2": _Kind("qwen2", _attention, _as_they_are, {"use_sliding_window": False}),
    "qwen3": _Kind("qwen3", _attention, _as_they_are, {"use_sliding_window": False, "attention_bias": False}),
    "mixtral": _Kind("llama", _experts, _mixtral_tensors, {"sliding_window": None}),
    "olmoe": _Kind("olmoe", _olmoe, _olmoe_tensors, {"norm_topk_prob": False} | _OLMOE),
    "qwen3_moe": _Kind(
        "qwen3moe",
        _experts,
        _stacked,
        {
            "norm_topk_prob": True,
            "use_sliding_window": False,
            "attention_bias": False,
            "mlp_only_layers": [],
            "decoder_sparse_step": 1,
        },
    ),
    "mamba": _Kind("mamba", _mamba, _mamba_tensors, _MAMBA),
    "falcon_mamba": _Kind("mamba", _mamba, _falcon_mamba_tensors, _MAMBA),
    "mamba2": _Kind("mamba2", _mamba2, _mamba2_tensors, _MAMBA | _NO_LIMIT),
    "falcon_h1": _Kind("falcon-h1", _falcon_h1, _falcon_h1_tensors, {"mamba_conv_bias": True} | _NO_LIMIT),
}
