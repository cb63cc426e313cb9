"""Dense decoders in transformers' layout: the options of one family here.

The tensors have the same names but for the norms: they stand before attention and feed-forward layer, behind them
(OLMo-2), or both (Gemma).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from zoo.checkpoints.convert.rename import DECODER, rename
from zoo.checkpoints.convert.rope import read_rope, write_rope

Fields = dict[str, Any]
Given = Mapping[str, Any]
_NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.self_attn.o_proj.", "blocks.#.mixer.out_proj."),
    ("model.layers.#.self_attn.", "blocks.#.mixer."),
    ("model.layers.#.mlp.gate_proj.", "blocks.#.mlp.w1."),
    ("model.layers.#.mlp.up_proj.", "blocks.#.mlp.w3."),
    ("model.layers.#.mlp.down_proj.", "blocks.#.mlp.w2."),
]
_BEFORE = [
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.post_attention_layernorm.", "blocks.#.mlp_norm."),
]
_AFTER = [
    ("model.layers.#.post_attention_layernorm.", "blocks.#.post_norm."),
    ("model.layers.#.post_feedforward_layernorm.", "blocks.#.mlp_post_norm."),
]
_BOTH = [
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.pre_feedforward_layernorm.", "blocks.#.mlp_norm."),
    *_AFTER,
]
_KEY = re.compile(
    r"(model\.(embed_tokens|norm)|lm_head)\.weight|model\.layers\.\d+\.(rotary_emb\.inv_freq|self_attn\.("
    r"rotary_emb\.inv_freq|[qkvo]_proj\.(weight|bias)|[qk]_norm\.weight)|mlp\.(gate|up|down)_proj\.weight|"
    r"(input|post_attention|pre_feedforward|post_feedforward)_layernorm\.weight)"
)
_FIELDS = {
    **DECODER,
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "mlp_dim",
    "max_position_embeddings": "context_length",
    "head_dim": "head_dim",
}
_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}  # of all their classes
_FIXED = {  # options with one value here
    "mlp_bias": False,
    "attention_dropout": 0,
    "quantization_config": None,
}
_SILU = {"hidden_act": "silu"}
_NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")  # null says more than nothing
PLAIN = {  # fields by which the types differ, where one says nothing of them
    "window": None, "full_layers": (), "nope_layers": (), "qk_norm": None, "norm_order": "before", "qkv_bias": False,
    "out_bias": False, "norm_offset": False, "activation": "silu", "local_rope_base": None, "attention_scale": None,
    "attention_softcap": None, "logit_softcap": None, "embedding_scale": 1.0, "context_length": None,
}  # fmt: skip


def _rope(given: Given, base: float = 10000.0) -> Fields:
    return dict(zip(("rope_base", "rope_scaling"), read_rope(given, base), strict=True))


class _Type(NamedTuple):
    """A model_type.

    Attributes:
        architecture: the class of transformers.
        defaults: options that a config.json may leave out, besides _DEFAULTS.
        read: options -> fields of ours, besides _FIELDS.
        write: the inverse.
        rope: options -> fields of the rotary positions.
        fixed: options with one value here, besides _FIXED.
    """

    architecture: str
    defaults: Given
    read: Callable[[Given], Fields]
    write: Callable[[Given], Fields]
    rope: Callable[[Given], Fields] = _rope
    fixed: Given = _SILU


def _biases(given: Given) -> Fields:
    return dict.fromkeys(("qkv_bias", "out_bias"), bool(given.get("attention_bias")))


def windows(given: Given) -> Fields:
    """Of the types with layer_types: those with a window are named in it, or by their place."""
    window = given["sliding_window"] if given.get("use_sliding_window") else None
    kinds = given.get("layer_types")
    depth = given["num_hidden_layers"]
    if kinds is None:
        first = given.get("max_window_layers", 0)
        kinds = [("sliding" if window and index >= first else "full") + "_attention" for index in range(depth)]
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer_types must be full_attention or sliding_attention, got {sorted(unknown)}")
    full = tuple(index for index, kind in enumerate(kinds) if kind == "full_attention")
    if window is None or len(full) == depth:
        return {"window": None, "full_layers": ()}
    return {"window": window, "full_layers": full}


def written_windows(config: Given) -> Fields:
    """The inverse of ``windows``."""
    depth, window = config["depth"], config["window"]
    full = [window is None or index in config["full_layers"] for index in range(depth)]
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": full.index(False) if False in full else depth,
        "layer_types": ["full_attention" if one else "sliding_attention" for one in full],
    }


def _smollm3(given: Given) -> Fields:
    """Where positions count; where they do not are the windows, unless layer_types say more."""
    turning = given.get("no_rope_layers")  # 1 where they count
    if turning is None:
        every = given["no_rope_layer_interval"]
        turning = [(index + 1) % every for index in range(given["num_hidden_layers"])]
    kinds = [("full" if turns else "sliding") + "_attention" for turns in turning]
    nope = tuple(index for index, turns in enumerate(turning) if not turns)
    return _biases(given) | windows({"layer_types": kinds, **given}) | {"nope_layers": nope}


def _gemma(given: Given) -> Fields:
    pattern = given["sliding_window_pattern"]
    kinds = [("sliding" if (i + 1) % pattern else "full") + "_attention" for i in range(given["num_hidden_layers"])]
    always = {"use_sliding_window": True, "layer_types": given.get("layer_types") or kinds}
    return _biases(given) | windows({**given, **always}) | {
        "norm_order": "both",
        "norm_offset": True,
        "activation": "gelu",
        "attention_scale": given["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": given["attn_logit_softcapping"],
        "logit_softcap": given["final_logit_softcapping"],
        "embedding_scale": given["hidden_size"] ** 0.5,
    }  # fmt: skip


def _written_gemma(config: Given) -> Fields:
    written = written_windows(config)
    if written["sliding_window"] is None:  # their masks are made all the same
        written["sliding_window"] = _GEMMA["sliding_window"]
    scale = config["attention_scale"] or config["head_dim"] ** -0.5
    return {name: written[name] for name in ("sliding_window", "layer_types")} | {
        "attention_bias": config["qkv_bias"],
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": config["attention_softcap"],
        "final_logit_softcapping": config["logit_softcap"],
    }


def _gemma3_rope(given: Given) -> Fields:
    """Full attention's positions, which may be scaled, and those of the windows."""
    nested = given.get("rope_parameters") or {}
    full, local = nested.get("full_attention"), nested.get("sliding_attention")
    base, scaling = read_rope({**given, "rope_parameters": full}, 1e6)
    local_base, stretched = read_rope({"rope_parameters": local, "rope_theta": given.get("rope_local_base_freq")})
    if stretched is not None:
        raise ValueError(f"rotary positions of sliding_attention must be unscaled, got {local}")
    return {"rope_base": base, "rope_scaling": scaling, "local_rope_base": local_base}


def _written_gemma3_rope(config: Given) -> Fields:
    return {
        "rope_parameters": {
            "full_attention": write_rope(config["rope_base"], config["rope_scaling"]),
            "sliding_attention": write_rope(config["local_rope_base"] or config["rope_base"], None),
        }
    }


_GEMMA = {
    "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA_FIXED = {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False}
_TYPES = {
    "llama": _Type("LlamaForCausalLM", {}, _biases, lambda c: {"attention_bias": c["qkv_bias"]}),
    "mistral": _Type(
        "MistralForCausalLM",
        {"num_key_value_heads": 8, "sliding_window": 4096},
        lambda given: {"window": given["sliding_window"]},
        lambda c: {"sliding_window": c["window"]},
    ),
    "qwen2": _Type(
        "Qwen2ForCausalLM",
        {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
        lambda given: {"qkv_bias": True} | windows(given),
        written_windows,
    ),
    "qwen3": _Type(
        "Qwen3ForCausalLM",
        {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
        lambda given: {"qk_norm": "head"} | _biases(given) | windows(given),
        lambda c: {"attention_bias": c["qkv_bias"]} | written_windows(c),
    ),
    "smollm3": _Type(
        "SmolLM3ForCausalLM",
        {"num_key_value_heads": 4, "sliding_window": None, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
        _smollm3,
        lambda c: {"attention_bias": c["qkv_bias"]} | written_windows(c) | {
            "no_rope_layers": [int(index not in c["nope_layers"]) for index in range(c["depth"])]
        },
        rope=partial(_rope, base=2e6),
    ),
    "olmo2": _Type(
        "Olmo2ForCausalLM",
        {"rms_norm_eps": 1e-5},
        lambda given: {"qk_norm": "joint", "norm_order": "after"} | _biases(given),
        lambda c: {"attention_bias": c["qkv_bias"]},
    ),
    "gemma2": _Type(
        "Gemma2ForCausalLM",
        _GEMMA | {"sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _gemma,
        _written_gemma,
        fixed=_GEMMA_FIXED,
    ),
    "gemma3_text": _Type(
        "Gemma3ForCausalLM",
        _GEMMA | {"sliding_window_pattern": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None},
        lambda given: {"qk_norm": "head"} | _gemma(given) | _gemma3_rope(given),
        lambda c: _written_gemma(c) | _written_gemma3_rope(c),
        fixed=_GEMMA_FIXED,
    ),
}  # fmt: skip
MODEL_TYPES = tuple(_TYPES)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of such a decoder, and no others."""
    return "model.layers.0.mlp.gate_proj.weight" in state_dict and all(map(_KEY.fullmatch, state_dict))


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged, without the rotary frequencies that old files hold."""
    behind, both = (any(f".{place}_feedforward_layernorm." in key for key in state_dict) for place in ("post", "pre"))
    norms = _BOTH if both else _AFTER if behind else _BEFORE
    kept = {key: tensor for key, tensor in state_dict.items() if not key.endswith(".rotary_emb.inv_freq")}
    return rename(kept, _NAMES + norms)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of transformers; tensors unchanged."""
    both = any(key.endswith(".mlp_post_norm.weight") for key in state_dict)
    return rename(state_dict, _NAMES + (_BOTH if both else _BEFORE), backwards=True)


def config_from_transformers(config: Given) -> tuple[str, Fields]:
    """A transformers ``config.json`` -> ("transformer", fields of its configuration).

    Raises:
        ValueError: for an option that has no counterpart here.
    """
    kind = _TYPES[config["model_type"]]
    for name, value in {**_FIXED, **kind.fixed}.items():
        if config.get(name) is not None and config[name] != value:
            raise ValueError(f"{name} must be {value!r}, got {config[name]!r}")
    named = {name: value for name, value in config.items() if value is not None or name in _NULLABLE}
    given = {**_DEFAULTS, **kind.defaults, **named}
    given.setdefault("num_key_value_heads", given["num_attention_heads"])
    given.setdefault("head_dim", given["hidden_size"] // given["num_attention_heads"])
    fields = {ours: given[theirs] for theirs, ours in _FIELDS.items() if theirs in given}
    return "transformer", PLAIN | fields | kind.rope(given) | kind.read(given)


def settled(config: Given) -> Fields:
    """Fields of our configuration with the values that None stands for."""
    defaults = {"head_dim": config["dim"] // config["num_heads"], "num_kv_heads": config["num_heads"]}
    return {**config, **{name: value for name, value in defaults.items() if config[name] is None}}


def config_to_transformers(config: Given) -> Fields:
    """Fields of our transformer -> transformers' ``config.json`` of the first type that has words for all of them; of
    a Llama, where none has."""
    every = [_written(name, config) for name in _TYPES]
    return next((published for published in every if _says_all(published, config)), every[0])


def _written(name: str, config: Given) -> Fields:
    kind = _TYPES[name]
    fields = {theirs: config[ours] for theirs, ours in _FIELDS.items() if config[ours] is not None}
    return {**fields, **kind.fixed} | {
        "model_type": name,
        "architectures": [kind.architecture],
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # not known here; the classes have defaults
        "rope_parameters": write_rope(config["rope_base"], config["rope_scaling"]),
    } | kind.write(config)  # fmt: skip


def _says_all(published: Given, config: Given) -> bool:
    """Whether the options by which the types differ are read as they are written."""
    _, read = config_from_transformers(published)
    return all(read[name] == config[name] for name in PLAIN)
