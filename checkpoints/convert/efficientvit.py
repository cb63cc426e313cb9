"""EfficientViT (MSRA) and SHViT checkpoints, of the authors and of timm.

The second family took the frame of the first, so the authors' names (microsoft/Cream, ysj9909/SHViT) agree around the
blocks: ``blocks1`` is the first stage, and the first three entries of ``blocks2`` and ``blocks3`` are the downsampling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from zoo.checkpoints.convert.rename import rename, replace

_STEM, _DOWN = "stages.0.downsample.", "stages.#.downsample."
_NAMES = [  # published, ours; numbers of the authors' stem count the ReLUs
    *((f"patch_embed.{2 * i}.", f"{_STEM}{i}.") for i in range(4)),
    *((f"patch_embed.conv{i + 1}.", f"{_STEM}{i}.") for i in range(4)),
    ("stages.#.downsample.res1.", _DOWN),
    ("stages.#.downsample.patchmerge.", _DOWN + "2."),
    ("stages.#.downsample.res2.0.", _DOWN + "3."),
    ("stages.#.downsample.res2.1.", _DOWN + "4."),
    ("blocks1.#.", "stages.0.blocks.#."),
    *((f"blocks{i + 1}.0.", f"stages.{i}.downsample.") for i in (1, 2)),
    *((f"blocks{i + 1}.1.", f"stages.{i}.downsample.2.") for i in (1, 2)),
    *((f"blocks{i + 1}.2.{j}.", f"stages.{i}.downsample.{3 + j}.") for i in (1, 2) for j in (0, 1)),
]
_TO_TIMM = (  # ours, timm's EfficientViT
    *((f"{_STEM}{i}.", f"patch_embed.conv{i + 1}.") for i in range(4)),
    (_DOWN + "0.", "stages.#.downsample.res1.0."),
    (_DOWN + "1.", "stages.#.downsample.res1.1."),
    (_DOWN + "2.", "stages.#.downsample.patchmerge."),
    (_DOWN + "3.", "stages.#.downsample.res2.0."),
    (_DOWN + "4.", "stages.#.downsample.res2.1."),
)
_PARTS = {"m": "branch", "c": "conv", "l": "linear", "pre_norm": "norm"}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of an EfficientViT or SHViT classifier."""
    return any(key.startswith(("patch_embed.0.c.", "patch_embed.conv1.conv.")) for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; 1 x 1 convolutions stored as matrices become convolutions."""
    converted = {}
    for key, tensor in rename(state_dict, _NAMES).items():
        if key.endswith("attention_bias_idxs"):
            continue
        if found := re.match(r"blocks([23])\.(\d+)\.(.*)", key):
            stage, block, rest = found.groups()
            key = f"stages.{int(stage) - 1}.blocks.{int(block) - 3}.{rest}"
        key = ".".join(_PARTS.get(part, part) for part in key.split(".") if part != "attn")
        converted[key] = tensor[:, :, None, None] if key.endswith("conv.weight") and tensor.dim() == 2 else tensor
    return converted


def to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of timm's EfficientViT-M or SHViT; tensors unchanged."""
    if any(".qkvs." in key for key in state_dict):  # cascaded groups
        return replace(rename(state_dict, _TO_TIMM), (("mixer.branch.", "mixer.m.attn."), (".branch.", ".m.")))
    renamed = rename(state_dict, [(f"{_STEM}{i}.", f"patch_embed.{2 * i}.") for i in range(4)])
    shorter = ((".branch.norm.", ".m.pre_norm."), (".branch.", ".m."), ("head.linear.", "head.l."))
    return {
        re.sub(r"\.conv\.(weight|bias)$", r".c.\1", key): tensor for key, tensor in replace(renamed, shorter).items()
    }
