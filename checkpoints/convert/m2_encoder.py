"""M2-Encoder checkpoints of the authors (alipay/Ant-Multi-Modal-Framework): what its vectors are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_PLACES = {  # ours -> theirs
    "patch_embed.proj": "backbone.vision_embed.proj", "embedding": "backbone.text_embed",
    "image_norm": "backbone.encoder.layer_norm.A", "text_norm": "backbone.encoder.layer_norm.B",
    "joint_norm": "backbone_vl.layer_norm.A", "image_head": "itc_vl_image_proj.fc", "text_head": "itc_vl_text_proj.fc",
}  # fmt: skip
_WAYS = {"image_blocks": ("backbone.encoder", "A"), "text_blocks": ("backbone.encoder", "B"),
         "joint_blocks": ("backbone_vl", "A")}  # fmt: skip
_LAYERS = {
    "norm1": "self_attn_layer_norm.{}", "norm2": "final_layer_norm.{}", "inner_norm": "self_attn.inner_attn_ln.{}",
    "out": "self_attn.out_proj.{}", "fc1": "ffn.{}.fc1", "fc2": "ffn.{}.fc2", "hidden_norm": "ffn.{}.ffn_layernorm",
}  # fmt: skip
_UNUSED = 2  # first rows of their tables of positions


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' model."""
    return {"backbone.text_embed.weight", "itc_vl_image_proj.fc.weight"} <= set(state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under the zoo's names, without those that no vector is made of: the second way of the shared
    blocks, the first heads, the pooler and the mask token."""
    found = {
        "class_token": state_dict["backbone.vision_embed.cls_token"],
        "image_positions": state_dict["backbone.encoder.embed_positions.A.weight"][None, _UNUSED:],
        "text_positions": state_dict["backbone.encoder.embed_positions.B.weight"][None, _UNUSED:],
    }
    for ours, theirs in _PLACES.items():
        for part in ("weight", "bias"):
            if f"{theirs}.{part}" in state_dict:
                found[f"{ours}.{part}"] = state_dict[f"{theirs}.{part}"]
    for ours, (place, way) in _WAYS.items():
        pattern = re.compile(rf"{re.escape(place)}\.layers\.(\d+)\.self_attn\.q_proj\.{way}\.weight")
        for index in (match[1] for match in map(pattern.fullmatch, state_dict) if match):
            layer = f"{place}.layers.{index}."
            for part in ("weight", "bias"):
                qkv = [state_dict[f"{layer}self_attn.{one}_proj.{way}.{part}"] for one in "qkv"]
                found[f"{ours}.{index}.qkv.{part}"] = torch.cat(qkv)
                for name, theirs in _LAYERS.items():
                    found[f"{ours}.{index}.{name}.{part}"] = state_dict[f"{layer}{theirs.format(way)}.{part}"]
    return found
