"""Qwen3-Next checkpoints, and the text models of Qwen3.5's, also within those that see images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.convert.experts import gathered, spread
from zoo.checkpoints.convert.rename import DECODER, rename
from zoo.checkpoints.convert.rope import read_partial_rope, write_partial_rope

MODEL_TYPES = ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
_NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.post_attention_layernorm.", "blocks.#.mlp_norm."),
    ("model.layers.#.mlp.gate.", "blocks.#.mlp.router."),
    ("model.layers.#.mlp.shared_expert_gate.", "blocks.#.mlp.shared.gate."),
    ("model.layers.#.mlp.shared_expert.gate_proj.", "blocks.#.mlp.shared.w1."),
    ("model.layers.#.mlp.shared_expert.up_proj.", "blocks.#.mlp.shared.w3."),
    ("model.layers.#.mlp.shared_expert.down_proj.", "blocks.#.mlp.shared.w2."),
    ("model.layers.#.mlp.gate_proj.", "blocks.#.mlp.w1."),
    ("model.layers.#.mlp.up_proj.", "blocks.#.mlp.w3."),
    ("model.layers.#.mlp.down_proj.", "blocks.#.mlp.w2."),
    ("model.layers.#.mlp.experts.", "blocks.#.mlp."),
]
_MIXERS = [  # of the attention, and of the delta rule
    ("self_attn.o_proj.", "mixer.out_proj."),
    ("self_attn.", "mixer."),
    ("linear_attn.norm.", "mixer.o_norm."),
    ("linear_attn.in_proj_z.", "mixer.g_proj."),
    ("linear_attn.in_proj_b.", "mixer.b_proj."),
    ("linear_attn.in_proj_a.", "mixer.a_proj."),
    ("linear_attn.", "mixer."),
]
_FIELDS = {
    **DECODER,
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "attention_bias": "attention_bias",
    "linear_num_value_heads": "delta_heads",
    "linear_num_key_heads": "delta_key_heads",
    "linear_key_head_dim": "delta_key_dim",
    "linear_value_head_dim": "delta_value_dim",
    "linear_conv_kernel_dim": "d_conv",
}
_EXPERT_FIELDS = {
    "num_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "moe_intermediate_size": "expert_dim",
    "shared_expert_intermediate_size": "shared_dim",
}
_KINDS = {  # of (fused projections, experts)
    (True, True): ("qwen3_next", "Qwen3Next"),
    (True, False): ("qwen3_next", "Qwen3Next"),
    (False, True): ("qwen3_5_moe_text", "Qwen3_5Moe"),
    (False, False): ("qwen3_5_text", "Qwen3_5"),
}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published Qwen3-Next or Qwen3.5."""
    ends = (".linear_attn.in_proj_qkvz.weight", ".linear_attn.in_proj_qkv.weight")
    return any(key.startswith("model.") and key.endswith(ends) for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's, without multi-token prediction and what sees images.

    The experts of a layer are stacked and transposed; queries and gates of the attention, and what the delta rule's
    convolution has in one tensor, become several.
    """
    text = {
        key.replace("model.language_model.", "model."): tensor
        for key, tensor in state_dict.items()
        if not key.startswith(("mtp.", "model.visual."))
    }
    converted = {}
    for key, tensor in rename(gathered(text), _NAMES).items():
        layer, _, mixer = key.removeprefix("model.layers.").partition(".")
        if not key.startswith("model.layers."):
            converted[key] = tensor
            continue
        prefix, (name,) = f"model.layers.{layer}.", rename({mixer: tensor}, _MIXERS)
        converted |= {f"blocks.{layer}.{one}": part for one, part in _apart(name, tensor, text, prefix).items()}
    return converted


def _apart(name: str, tensor: Tensor, text: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensor ``mixer.<name>`` of a layer as those that the zoo has in its place."""
    name = name.removeprefix("mixer.")
    if name.startswith("q_proj."):
        head_dim = len(text[f"{prefix}self_attn.q_norm.weight"])
        parts = tensor.unflatten(0, (-1, 2, head_dim)).unbind(1)
        names = (name, name.replace("q_proj", "gate_proj"))
        return {f"mixer.{one}": part.flatten(0, 1).contiguous() for one, part in zip(names, parts, strict=True)}
    if name in ("conv1d.weight", "in_proj_qkv.weight"):
        values = text[f"{prefix}linear_attn.out_proj.weight"].shape[1]
        keys = (len(tensor) - values) // 2
        form = "mixer.{}_conv1d.weight" if name == "conv1d.weight" else "mixer.{}_proj.weight"
        parts = tensor.split([keys, keys, values])
        return {form.format(one): part.contiguous() for one, part in zip("qkv", parts, strict=True)}
    return {f"mixer.{name}": tensor}


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of Qwen3NextForCausalLM, or of Qwen3_5ForCausalLM where projections are apart.

    Args:
        stacked: the experts of a layer are one tensor each; False: one an expert, as in the files.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    published = {}
    for key, tensor in state_dict.items():
        block, is_mixer, name = key.partition(".mixer.")
        if is_mixer:
            layers.setdefault(block.replace("blocks.", "model.layers."), {})[name] = tensor
        else:
            published[key] = tensor
    for layer, tensors in layers.items():
        kind, together = ("self_attn", _attention) if "k_norm.weight" in tensors else ("linear_attn", _delta)
        published |= {f"{layer}.{kind}.{name}": tensor for name, tensor in together(tensors).items()}
    return spread(rename(published, _NAMES, backwards=True), stacked)


def _attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries and gates side by side in each head."""
    head_dim, together = len(tensors["k_norm.weight"]), {}
    for name, tensor in tensors.items():
        if name.startswith("q_proj."):
            pair = (tensor, tensors[name.replace("q_proj", "gate_proj")])
            tensor = torch.stack([t.unflatten(0, (-1, head_dim)) for t in pair], dim=1).flatten(0, 2)
        if not name.startswith("gate_proj."):
            together[name.replace("out_proj", "o_proj")] = tensor
    return together


def _delta(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions, and projections that are apart, of queries, keys and values in one tensor each."""
    names = {"o_norm.weight": "norm.weight", "g_proj.weight": "in_proj_z.weight", "b_proj.weight": "in_proj_b.weight"}
    names |= {"a_proj.weight": "in_proj_a.weight"}
    together = {}
    for theirs, form in (("conv1d.weight", "{}_conv1d.weight"), ("in_proj_qkv.weight", "{}_proj.weight")):
        parts = [form.format(one) for one in "qkv"]
        if parts[0] in tensors:
            together[theirs] = torch.cat([tensors.pop(name) for name in parts])
    return together | {names.get(name, name): tensor for name, tensor in tensors.items()}


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("qwen3_next", fields of its configuration); of a model that sees images its
    text model's.

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    text = dict(config.get("text_config") or config) | {"tie_word_embeddings": config.get("tie_word_embeddings", False)}
    for name, value in (("hidden_act", "silu"), ("attention_dropout", 0), ("decoder_sparse_step", 1)):
        if text.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}, as in every published one, got {text[name]!r}")
    base, fraction = read_partial_rope(text, 0.25)
    experts = bool(text.get("num_experts"))
    names = _FIELDS | (_EXPERT_FIELDS if experts else {})
    fields = {ours: text[theirs] for theirs, ours in names.items() if text.get(theirs) is not None}
    dense = tuple(text.get("mlp_only_layers") or ()) if experts else ()
    return "qwen3_next", {"num_experts": None} | fields | {
        "attention_every": _attention_every(text),
        "rope_base": base,
        "rotary_fraction": fraction,
        "mlp_dim": text.get("intermediate_size") or text["shared_expert_intermediate_size"],
        "dense_layers": dense,
        "normalize": bool(text.get("norm_topk_prob", True)),
        "fused": text.get("model_type") == "qwen3_next",
    }


def _attention_every(config: Mapping[str, Any]) -> int:
    """The period of the blocks with attention."""
    kinds = config.get("layer_types")
    if kinds is None:
        return config.get("full_attention_interval", 4)
    attention = [index + 1 for index, kind in enumerate(kinds) if kind == "full_attention"]
    every = attention[0] if attention else len(kinds) + 1
    if attention != list(range(every, len(kinds) + 1, every)):
        raise ValueError(f"layer_types must have attention in every so manieth layer, got {list(kinds)}")
    return every


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Qwen3-Next configuration -> transformers' ``config.json``."""
    experts = config["num_experts"] is not None
    kind, architecture = _KINDS[config["fused"], experts]
    every = config["attention_every"]
    published = {theirs: config[ours] for theirs, ours in _FIELDS.items()} | {
        "model_type": kind,
        "architectures": [f"{architecture}ForCausalLM"],
        "hidden_act": "silu",
        "intermediate_size": config["mlp_dim"],
        "layer_types": [
            "linear_attention" if (index + 1) % every else "full_attention" for index in range(config["depth"])
        ],
        "rope_parameters": write_partial_rope(config["rope_base"], config["rotary_fraction"]),
    }
    if not experts:
        return published | ({"num_experts": 0} if config["fused"] else {})
    return published | {theirs: config[ours] for theirs, ours in _EXPERT_FIELDS.items()} | {
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config["dense_layers"]),
        "norm_topk_prob": config["normalize"],
    }  # fmt: skip
