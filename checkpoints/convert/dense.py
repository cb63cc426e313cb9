"""Dense decoders in transformers' layout: Llama, Mistral, Qwen2, Qwen3, SmolLM3 and OLMo-2, options of one family here.

The tensors have the same names but for the norms: before attention and feed-forward layer, or (OLMo-2) behind them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from zoo.checkpoints.convert.rename import rename
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
_KEY = re.compile(
    r"(model\.(embed_tokens|norm)|lm_head)\.weight|model\.layers\.\d+\.(rotary_emb\.inv_freq|self_attn\.("
    r"rotary_emb\.inv_freq|[qkvo]_proj\.(weight|bias)|[qk]_norm\.weight)|mlp\.(gate|up|down)_proj\.weight|"
    r"(input|post_attention|post_feedforward)_layernorm\.weight)"
)
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "initializer_range",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "mlp_dim",
    "max_position_embeddings": "context_length",
    "head_dim": "head_dim",
}
_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}  # of all their classes
_FIXED = {  # options with one value here
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_dropout": 0,
    "quantization_config": None,
}


class _Type(NamedTuple):
    """A model_type.

    Attributes:
        architecture: the class of transformers.
        defaults: options that a config.json may leave out, besides _DEFAULTS.
        read: options -> fields of ours, besides _FIELDS.
        write: the inverse.
        rope_base: where a config.json says none.
    """

    architecture: str
    defaults: Given
    read: Callable[[Given], Fields]
    write: Callable[[Given], Fields]
    rope_base: float = 10000.0


def _biases(given: Given) -> Fields:
    return dict.fromkeys(("qkv_bias", "out_bias"), bool(given.get("attention_bias")))


def _windows(given: Given) -> Fields:
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


def _written_windows(config: Given) -> Fields:
    depth, window = config["depth"], config["window"]
    full = [window is None or index in config["full_layers"] for index in range(depth)]
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": full.index(False) if False in full else depth,
        "layer_types": ["full_attention" if one else "sliding_attention" for one in full],
    }


def _nope(given: Given) -> Fields:
    turning = given.get("no_rope_layers")  # 1 where positions count
    if turning is None:
        every = given["no_rope_layer_interval"]
        turning = [(index + 1) % every for index in range(given["num_hidden_layers"])]
    return {"nope_layers": tuple(index for index, turns in enumerate(turning) if not turns)}


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
        lambda given: {"qkv_bias": True} | _windows(given),
        _written_windows,
    ),
    "qwen3": _Type(
        "Qwen3ForCausalLM",
        {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
        lambda given: {"qk_norm": "head"} | _biases(given) | _windows(given),
        lambda c: {"attention_bias": c["qkv_bias"]} | _written_windows(c),
    ),
    "smollm3": _Type(
        "SmolLM3ForCausalLM",
        {"num_key_value_heads": 4, "sliding_window": None, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
        lambda given: _biases(given) | _windows(given) | _nope(given),
        lambda c: {"attention_bias": c["qkv_bias"]} | _written_windows(c) | {
            "no_rope_layers": [int(index not in c["nope_layers"]) for index in range(c["depth"])]
        },
        rope_base=2e6,
    ),
    "olmo2": _Type(
        "Olmo2ForCausalLM",
        {"rms_norm_eps": 1e-5},
        lambda given: {"qk_norm": "joint", "norm_order": "after"} | _biases(given),
        lambda c: {"attention_bias": c["qkv_bias"]},
    ),
}  # fmt: skip
MODEL_TYPES = tuple(_TYPES)


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of such a decoder, and no others."""
    return "model.layers.0.mlp.gate_proj.weight" in state_dict and all(map(_KEY.fullmatch, state_dict))


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged, without the rotary frequencies that old files hold."""
    norms = _AFTER if any(".post_feedforward_layernorm." in key for key in state_dict) else _BEFORE
    kept = {key: tensor for key, tensor in state_dict.items() if not key.endswith(".rotary_emb.inv_freq")}
    return rename(kept, _NAMES + norms)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of transformers; tensors unchanged."""
    return rename(state_dict, _NAMES + _BEFORE + _AFTER, backwards=True)


def config_from_transformers(config: Given) -> tuple[str, Fields]:
    """A transformers ``config.json`` -> ("transformer", fields of its configuration).

    Raises:
        ValueError: for an option that has no counterpart here.
    """
    for name, value in _FIXED.items():
        if config.get(name) is not None and config[name] != value:
            raise ValueError(f"{name} must be {value!r}, got {config[name]!r}")
    kind = _TYPES[config["model_type"]]
    named = {name: value for name, value in config.items() if value is not None or name == "sliding_window"}
    given = _DEFAULTS | kind.defaults | named
    given.setdefault("num_key_value_heads", given["num_attention_heads"])
    given.setdefault("head_dim", given["hidden_size"] // given["num_attention_heads"])
    base, scaling = read_rope(config, kind.rope_base)
    fields = {ours: given[theirs] for theirs, ours in _FIELDS.items() if theirs in given}
    return "transformer", fields | {"rope_base": base, "rope_scaling": scaling} | kind.read(given)


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
    return fields | kind.write(config) | {
        "model_type": name,
        "architectures": [kind.architecture],
        "hidden_act": "silu",
        "rope_parameters": write_rope(config["rope_base"], config["rope_scaling"]),
    }  # fmt: skip


def _says_all(published: Given, config: Given) -> bool:
    """Whether the options by which the types differ are read as they are written."""
    plain = {"window": None, "full_layers": (), "nope_layers": (), "qk_norm": None, "norm_order": "before"}
    read = plain | {"qkv_bias": False, "out_bias": False} | config_from_transformers(published)[1]
    return all(read[name] == config[name] for name in (*plain, "qkv_bias", "out_bias"))
