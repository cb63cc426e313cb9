"""VMamba checkpoints of the authors (MzeroMiko/VMamba), in the names of today's code and of the first version.

The projections of the four directions are stacked tensors there, and linear layers here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from zoo.checkpoints.convert.rename import rename

_STEM = "stages.0.downsample."
_NAMES = [  # published, ours
    ("patch_embed.0.", f"{_STEM}0.conv."),
    ("patch_embed.proj.", f"{_STEM}0.conv."),
    ("patch_embed.2.", f"{_STEM}0.norm."),
    ("patch_embed.norm.", f"{_STEM}0.norm."),
    ("patch_embed.5.", f"{_STEM}2.conv."),
    ("patch_embed.7.", f"{_STEM}2.norm."),
    *((f"layers.{i}.downsample.1.", f"stages.{i + 1}.downsample.conv.") for i in range(3)),
    *((f"layers.{i}.downsample.3.", f"stages.{i + 1}.downsample.norm.") for i in range(3)),
    *((f"layers.{i}.downsample.", f"stages.{i + 1}.downsample.") for i in range(3)),
    ("layers.#.blocks.#.ln_1.", "stages.#.blocks.#.norm."),
    ("layers.#.blocks.#.self_attention.", "stages.#.blocks.#.op."),
    ("layers.#.", "stages.#."),
    ("classifier.", ""),
]


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors."""
    return any(key.startswith("layers.") and key.endswith(".x_proj_weight") for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names -> the zoo's; linear layers that were stored as 1 x 1 convolutions become matrices."""
    converted = {}
    for key, tensor in rename(state_dict, _NAMES).items():
        place, _, leaf = key.rpartition(".")
        if leaf == "x_proj_weight":
            converted[f"{place}.x_proj.weight"] = tensor.flatten(0, 1)
        elif found := re.fullmatch(r"dt_projs_(weight|bias)", leaf):
            converted |= {f"{place}.dt_projs.{k}.{found[1]}": part for k, part in enumerate(tensor)}
        else:
            matrix = leaf == "weight" and place.endswith(("_proj", ".fc1", ".fc2", ".reduction"))
            converted[key] = tensor[:, :, 0, 0] if matrix and tensor.dim() == 4 else tensor
    return converted
