"""BASED checkpoints of the authors (HazyResearch), which transformers does not have, and those of their baselines.

Around the renaming, three fused tensors are taken apart: ``Wqkv`` holds queries, keys and values, and ``fc1`` of the
feed-forward layer the value half before the gate half. Whatever else a file holds (metrics, the unused decay of the
1.3B model) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import mamba
from zoo.checkpoints.convert.rename import rename

_LAYER, _BLOCK = "transformer.layers.#.", "blocks.#."
_NAMES = [  # published, ours
    ("transformer.embeddings.word_embeddings.", "embedding."),
    ("transformer.ln_f.", "norm."),
    ("lm_head.", "head."),
    (_LAYER + "norm1.", _BLOCK + "norm."),
    (_LAYER + "norm2.", _BLOCK + "mlp_norm."),
    (_LAYER + "mixer.proj_q.", _BLOCK + "mixer.q_proj."),
    (_LAYER + "mixer.proj_k.", _BLOCK + "mixer.k_proj."),
    (_LAYER + "mixer.proj_v.", _BLOCK + "mixer.v_proj."),
    (_LAYER + "mixer.conv.conv.", _BLOCK + "mixer.conv."),
    (_LAYER + "mlp.fc2.", _BLOCK + "mlp.w2."),
    (_LAYER, _BLOCK),
]
_MIXERS = (".mixer.proj_q.weight", ".mixer.Wqkv.weight", ".mixer.x_proj.weight")
_EMBEDDINGS = ("transformer.embeddings.word_embeddings.weight", "backbone.embedding.weight")
_LEFT_OUT = re.compile(r"^transformer\.decay\.|\.rotary_emb\.inv_freq$")
_WANTED = {  # of the attention baseline: options with one value here
    "rms_norm": True, "qkv_proj_bias": False, "out_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
    "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None, "attn_dwconv": False, "mlp_type": "base", "n_head_kv": None, "mixer": None,
}  # fmt: skip
_DEEPEST = 10000  # layers, far above any model of this kind
_FUSED = {  # end of our key -> the parts, in order
    "mixer.Wqkv.weight": ("mixer.q_proj.weight", "mixer.k_proj.weight", "mixer.v_proj.weight"),
    "mlp.fc1.weight": ("mlp.w3.weight", "mlp.w1.weight"),
}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published BASED language model."""
    return any(key.endswith(_MIXERS) for key in state_dict) and any(key.endswith(_EMBEDDINGS) for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names, with or without the prefix "model.", -> the zoo's."""
    bare = {key.removeprefix("model."): tensor for key, tensor in state_dict.items()}
    known = {
        key: tensor
        for key, tensor in bare.items()
        if key.startswith(("transformer.", "lm_head.", "backbone.")) and not _LEFT_OUT.search(key)
    }
    if mamba.recognises(known):
        return mamba.to_zoo(known)
    converted = {}
    for key, tensor in rename(known, _NAMES).items():
        fused = next((end for end in _FUSED if key.endswith(end)), None)
        if fused is None:
            converted[key] = tensor
        else:
            start, parts = key.removesuffix(fused), _FUSED[fused]
            converted |= {start + part: t for part, t in zip(parts, tensor.chunk(len(parts)), strict=True)}
    return converted


def config_from_authors(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The authors' ``config.json`` (GPT-2's fields and their mixers) -> ("based", fields of its configuration).

    Their window of w positions covers w // 2 keys before the query and the query itself.

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    if config.get("activation_function", "swiglu") != "swiglu":
        raise ValueError(f"activation_function must be 'swiglu', got {config['activation_function']!r}")
    depth = config["n_layer"]
    if not isinstance(depth, int) or depth > _DEEPEST:
        raise ValueError(f"n_layer must be an integer up to {_DEEPEST}, got {depth!r}")
    multiple = config.get("pad_vocab_size_multiple", 8)
    fields = {
        "vocab_size": -(-config.get("vocab_size", 50257) // multiple) * multiple,
        "dim": config["n_embd"],
        "depth": depth,
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "residual_in_fp32": config.get("residual_in_fp32", True),
        "initializer_range": config.get("initializer_range", 0.02),
    }
    if not config.get("alt_mixer_layers"):
        return "based", fields | _attention(config)
    taylor, sliding = config["alt_mixer"], config["alt_mixer_2"]
    letters = ["c"] * depth
    for letter, layers in (("t", config["alt_mixer_layers"]), ("s", config["alt_mixer_2_layers"])):
        for index in layers:
            letters[index] = letter
    if taylor["num_heads"] != sliding["num_heads"]:
        raise ValueError(f"both attentions must have the same heads, got {taylor['num_heads']}, {sliding['num_heads']}")
    return "based", fields | {
        "pattern": "".join(letters),
        "num_heads": taylor["num_heads"],
        "feature_dim": taylor["feature_dim"],
        "window": sliding["window_size"] // 2 + 1,
        "mlp_dim": config["n_inner"],
    }


def _attention(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the attention baseline; of an odd number of turning channels, the base of one more."""
    for name, value in _WANTED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}, got {config[name]!r}")
    dim, heads = int(config["n_embd"]), int(config["n_head"])
    turning = int(float(config.get("rotary_emb_fraction", 0.0)) * (dim // heads))
    if turning < 1:
        raise ValueError(f"rotary_emb_fraction must turn some channels of a head, got {turning} of {dim // heads}")
    width = -(-turning // 2) * 2
    return {
        "pattern": "a",
        "num_heads": heads,
        "mlp_dim": config.get("n_inner") or -(-(8 * dim // 3) // 256) * 256,
        "rotary_dim": width,
        "rope_base": float(config.get("rotary_emb_base", 10000.0)) ** (width / turning),
    }
