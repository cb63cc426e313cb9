"""LLaVA in transformers' layout: a CLIP vision tower, a projector, and a dense decoder.

Files name the parts in three ways: as transformers wrote them before 4.52 (``language_model.model.``,
``vision_tower.vision_model.``), as it does since (``model.language_model.``, ``model.vision_tower.``), with or without
the ``vision_model.`` in between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.convert import dense
from zoo.checkpoints.convert.rename import rename

MODEL_TYPES = ("llava",)
_LANGUAGE = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(?!lm_head\.)")
_HEAD = re.compile(r"(?:model\.)?(?:language_model\.)?lm_head\.")
_VISION = re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?")
_PROJECTOR = re.compile(r"(?:model\.)?multi_modal_projector\.")
_CLIP = [  # published, ours
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("pre_layrnorm.", "norm_pre."),
    ("post_layernorm.", "norm."),
    ("encoder.layers.#.layer_norm1.", "blocks.#.norm1."),
    ("encoder.layers.#.layer_norm2.", "blocks.#.norm2."),
    ("encoder.layers.#.self_attn.out_proj.", "blocks.#.attn.proj."),
    ("encoder.layers.#.self_attn.", "blocks.#.attn."),
    ("encoder.layers.#.mlp.", "blocks.#.mlp."),
]
_TABLES = {"embeddings.class_embedding": "cls_token", "embeddings.position_embedding.weight": "pos_embed"}
_VISION_DEFAULTS = {  # what LlavaConfig fills a missing part with
    "hidden_size": 1024, "intermediate_size": 4096, "image_size": 336, "patch_size": 14, "num_hidden_layers": 24,
    "num_attention_heads": 16,
}  # fmt: skip
_CLIP_DEFAULTS = {  # of CLIPVisionConfig
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "num_channels": 3, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
}  # fmt: skip
_LLAMA_DEFAULTS = {  # of LlamaConfig
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
}  # fmt: skip
_ACTIVATIONS = ("quick_gelu", "gelu")
_PREPARED = {  # CLIP's images
    "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711), "crop_pct": 1.0,
}  # fmt: skip
_PROMPT = "USER: <image>\nDescribe the image. ASSISTANT:"


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of such a model."""
    return any(map(_PROJECTOR.match, state_dict)) and any(map(_VISION.match, state_dict))


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's, with queries, keys and values of an encoder's block in one matrix."""
    language, vision, rest = {}, {}, {}
    for key, tensor in state_dict.items():
        if found := _HEAD.match(key):
            language["lm_head." + key[found.end() :]] = tensor
        elif found := _LANGUAGE.match(key):
            language["model." + key[found.end() :]] = tensor
        elif found := _VISION.match(key):
            vision[key[found.end() :]] = tensor
        elif found := _PROJECTOR.match(key):
            rest["projector." + key[found.end() :]] = tensor
        else:
            rest[key] = tensor
    language = {f"language.{key}": tensor for key, tensor in dense.to_zoo(language).items()}
    return rest | language | {f"vision.{key}": tensor for key, tensor in _clip(vision).items()}


def _clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = {_TABLES.get(k, k): t for k, t in tensors.items() if k != "embeddings.position_ids"}  # old files hold them
    for name, tensor in kept.items():
        if name in _TABLES.values():
            kept[name] = tensor.view(1, -1, tensor.shape[-1])
    renamed = rename(kept, _CLIP)
    joined: dict[str, Tensor] = {}
    for key, tensor in renamed.items():
        if ".attn.q_proj." in key:
            parts = [renamed[key.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            joined[key.replace("q_proj", "qkv")] = torch.cat(parts)
        elif not re.search(r"\.attn\.[kv]_proj\.", key):
            joined[key] = tensor
    return joined


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of published files; queries, keys and values apart."""
    language, vision, rest = ({}, {}, {})
    parts = {"language.": language, "vision.": vision, "projector.": rest}
    for key, tensor in state_dict.items():
        prefix = next(prefix for prefix in parts if key.startswith(prefix))
        parts[prefix][key.removeprefix(prefix)] = tensor
    found = {f"multi_modal_projector.{key}": tensor for key, tensor in rest.items()}
    found |= {f"language_model.{key}": tensor for key, tensor in dense.to_transformers(language).items()}
    return found | {f"vision_tower.vision_model.{key}": tensor for key, tensor in _written_clip(vision).items()}


def _written_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    apart: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".attn.qkv." in key:
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            apart |= {key.replace("qkv", f"{one}_proj"): part.contiguous() for one, part in thirds}
        else:
            apart[key] = tensor
    written = rename(apart, _CLIP, backwards=True)
    for theirs, ours in _TABLES.items():
        table = written.pop(ours)
        written[theirs] = table.flatten() if ours == "cls_token" else table[0]
    return written


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A transformers ``config.json`` -> ("llava", fields of its configuration).

    Raises:
        ValueError: for an option that has no counterpart here.
    """
    vision, text = config.get("vision_config") or _VISION_DEFAULTS, config.get("text_config") or {}
    if (kind := vision.get("model_type", "clip_vision_model")) != "clip_vision_model":
        raise ValueError(f"the vision tower must be a clip_vision_model, got {kind!r}")
    if (kind := text.get("model_type", "llama")) not in dense.MODEL_TYPES:
        raise ValueError(f"the language model must be one of {', '.join(dense.MODEL_TYPES)}, got {kind!r}")
    if (act := config.get("projector_hidden_act", "gelu")) != "gelu":
        raise ValueError(f"projector_hidden_act must be 'gelu', got {act!r}")
    given = {**_CLIP_DEFAULTS, **{key: value for key, value in vision.items() if value is not None}}
    if given["hidden_act"] not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act of the vision tower must be {' or '.join(_ACTIVATIONS)}, got {given['hidden_act']!r}"
        )
    depth, layer = given["num_hidden_layers"], config.get("vision_feature_layer", -2)
    blocks = layer if not isinstance(layer, int) or layer >= 0 else depth + 1 + layer  # 0 is what enters the first
    if not isinstance(layer, int) or not 1 <= blocks <= depth:
        raise ValueError(f"vision_feature_layer must be one of the outputs of {depth} blocks, got {layer!r}")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ValueError(f"vision_feature_select_strategy must be 'default' or 'full', got {strategy!r}")
    defaults = _LLAMA_DEFAULTS if text.get("model_type", "llama") == "llama" else {}
    tied = {"tie_word_embeddings": True} if config.get("tie_word_embeddings") else {}
    _, language = dense.config_from_transformers({"model_type": "llama", **defaults, **text, **tied})
    return "llava", {
        "vision": "vit_base_patch16_224",
        "vision_options": {
            "img_size": given["image_size"], "patch_size": given["patch_size"], "in_chans": given["num_channels"],
            "dim": given["hidden_size"], "depth": depth, "num_heads": given["num_attention_heads"],
            "mlp_ratio": given["intermediate_size"] / given["hidden_size"], "norm_eps": given["layer_norm_eps"],
            "activation": given["hidden_act"], "pre_norm": True, **_PREPARED,
        },
        "language": "llama2_7b",
        "language_options": language,
        "image_token": config.get("image_token_id", config.get("image_token_index", 32000)),
        "num_blocks": blocks,
        "class_feature": strategy == "full",
        "projector_bias": config.get("multimodal_projector_bias", True),
        "caption_prompt": _PROMPT,
    }  # fmt: skip


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration with the values that None stands for."""
    return {**config, "language_options": dense.settled(config["language_options"])}


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration -> transformers' ``config.json``."""
    vision = config["vision_options"]
    size, patch = vision["img_size"], vision["patch_size"]
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": config["image_token"],
        "image_seq_length": (size // patch) ** 2 + config["class_feature"] if isinstance(size, int) else 0,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": config["projector_bias"],
        "vision_feature_layer": (config["num_blocks"] or vision["depth"]) - vision["depth"] - 1,
        "vision_feature_select_strategy": "full" if config["class_feature"] else "default",
        "tie_word_embeddings": config["language_options"]["tie_embeddings"],
        "text_config": dense.config_to_transformers(config["language_options"]),
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": vision["dim"],
            "intermediate_size": int(vision["dim"] * vision["mlp_ratio"]), "num_hidden_layers": vision["depth"],
            "num_attention_heads": vision["num_heads"], "image_size": size, "patch_size": patch,
            "num_channels": vision["in_chans"], "layer_norm_eps": vision["norm_eps"],
            "hidden_act": vision["activation"], "projection_dim": vision["dim"],
        },
    }  # fmt: skip
