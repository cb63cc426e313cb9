"""RWKV-7 checkpoints: the authors' .pth files, and flash-linear-attention's folders (``import fla`` registers them).

The authors hold the low-rank maps transposed, and in the first block ones that no model uses. fla's first files hold
the six shares of the token before in one tensor.

Facts: BlinkDL/RWKV-LM's names as fla-org/flash-linear-attention at bc3b101 converts them (utils/convert_from_rwkv7.py),
fla/models/rwkv7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.rename import rename

MODEL_TYPES = ("rwkv7",)
_FLA = [  # published, ours
    ("model.embeddings.", "embedding."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.", "blocks.#.mixer."),
]
_AUTHORS = [
    ("emb.", "embedding."),
    ("ln_out.", "norm."),
    ("blocks.#.ln0.", "blocks.#.mixer.pre_norm."),
    ("blocks.#.ln1.", "blocks.#.mixer.attn_norm."),
    ("blocks.#.ln2.", "blocks.#.mixer.ffn_norm."),
    ("blocks.#.att.receptance.", "blocks.#.mixer.attn.r_proj."),
    ("blocks.#.att.key.", "blocks.#.mixer.attn.k_proj."),
    ("blocks.#.att.value.", "blocks.#.mixer.attn.v_proj."),
    ("blocks.#.att.output.", "blocks.#.mixer.attn.o_proj."),
    ("blocks.#.att.ln_x.", "blocks.#.mixer.attn.g_norm."),
    ("blocks.#.att.", "blocks.#.mixer.attn."),
    ("blocks.#.", "blocks.#.mixer."),
]
_LOW_RANK = re.compile(r"(.*\.attn\.)([wavg])([012])")  # bias, and both maps from the left
_PARTS = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}
_FIELDS: dict[str, tuple[str, Any]] = {  # published -> ours, value where it is left out
    "vocab_size": ("vocab_size", 32000),
    "hidden_size": ("dim", 2048),
    "num_hidden_layers": ("depth", 24),
    "norm_eps": ("norm_eps", 1e-5),
    "tie_word_embeddings": ("tie_embeddings", False),
    "initializer_range": ("initializer_range", 0.02),
    "head_dim": ("head_dim", 64),
    "decay_low_rank_dim": ("decay_rank", 64),
    "a_low_rank_dim": ("rate_rank", 64),
    "v_low_rank_dim": ("value_rank", 16),
    "gate_low_rank_dim": ("gate_rank", 128),
}
_FIXED: dict[str, Any] = {"hidden_act": "sqrelu", "attn": None, "norm_first": True, "norm_bias": True}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published RWKV-7."""
    bare = {key.removeprefix("model.") for key in state_dict}
    return bool({"layers.0.attn.r_k", "blocks.0.att.r_k"} & bare)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's."""
    if "blocks.0.att.r_k" in state_dict:
        return _from_authors(state_dict)
    whole = {key if key.startswith(("model.", "lm_head.")) else f"model.{key}": t for key, t in state_dict.items()}
    converted = {}
    for key, tensor in rename(whole, _FLA).items():
        if key.endswith(".attn.x_x"):
            shares = zip("rwkvag", tensor.unbind(0), strict=True)
            converted |= {f"{key[:-1]}{name}": share.reshape(1, 1, -1) for name, share in shares}
        else:
            converted[key] = tensor
    return converted


def _from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted = {}
    for key, tensor in rename(state_dict, _AUTHORS).items():
        if key.startswith("blocks.0.mixer.attn.v") and key[-1] in _PARTS:
            continue
        if found := _LOW_RANK.fullmatch(key):
            start, kind, part = found.groups()
            converted[f"{start}{kind}_lora.lora.{_PARTS[part]}"] = tensor.flatten() if part == "0" else tensor.mT
        elif ".attn.x_" in key or ".attn.r_k" in key or tensor.dim() < 3:
            converted[key] = tensor
        else:
            converted[key] = tensor.flatten()
    return converted


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> fla's; tensors unchanged."""
    return rename(state_dict, _FLA, backwards=True)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """fla's ``config.json`` -> ("rwkv7", fields of its configuration).

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}, got {config[name]!r}")
    fields = {ours: config.get(theirs, default) for theirs, (ours, default) in _FIELDS.items()}
    dim, heads = fields["dim"], config.get("num_heads")
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"hidden_size must be a positive integer, got {dim!r}")
    if fields["head_dim"] is None and heads is not None:
        fields["head_dim"] = dim // heads
    widths = config.get("value_dim")
    if any(width != dim for width in (widths if isinstance(widths, list) else [widths]) if width is not None):
        raise ValueError(f"value_dim must be hidden_size, {dim}, in every layer, got {widths!r}")
    width = int(dim * float(config.get("hidden_ratio") or 4))
    fields["mlp_dim"] = config.get("intermediate_size") or -(-width // 32) * 32
    return "rwkv7", fields


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration -> fla's ``config.json``."""
    return _FIXED | {theirs: config[ours] for theirs, (ours, _) in _FIELDS.items()} | {
        "model_type": "rwkv7",
        "architectures": ["RWKV7ForCausalLM"],
        "num_heads": config["dim"] // config["head_dim"],
        "intermediate_size": config["mlp_dim"],
        "value_dim": [config["dim"]] * config["depth"],
    }  # fmt: skip
