"""MambaVision checkpoints of the authors (NVlabs/MambaVision).

A level ends with its downsampling, where a stage of ours begins. Two convolutions, each of a half of the mixer's
channels, are one here; and the bias of the step size, which the authors' forward adds twice, is doubled and added once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from zoo.checkpoints.convert.rename import rename

_STEM = "stages.0.downsample."
_NAMES = [  # published, ours
    ("patch_embed.conv_down.0.", f"{_STEM}0.conv."),
    ("patch_embed.conv_down.1.", f"{_STEM}0.bn."),
    ("patch_embed.conv_down.3.", f"{_STEM}1.conv."),
    ("patch_embed.conv_down.4.", f"{_STEM}1.bn."),
    *((f"levels.{i}.downsample.reduction.0.", f"stages.{i + 1}.downsample.") for i in range(3)),
    ("levels.#.", "stages.#."),
]
_CONVOLUTIONS = {"conv1": "branch.0.conv", "norm1": "branch.0.bn", "conv2": "branch.1.conv", "norm2": "branch.1.bn"}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors."""
    return "patch_embed.conv_down.0.weight" in state_dict


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and tensors -> the zoo's."""
    converted = {}
    for key, tensor in rename(state_dict, _NAMES).items():
        if found := re.fullmatch(r"stages(\.\d+\.blocks\.\d+\.)(conv1|norm1|conv2|norm2)\.(.+)", key):
            block, layer, leaf = found.groups()
            if f"levels{block}conv1.weight" in state_dict:
                key = f"stages{block}{_CONVOLUTIONS[layer]}.{leaf}"
        key = re.sub(r"\.gamma_(\d)$", r".scale\1.gamma", key)
        if key.endswith(".mixer.dt_proj.bias"):
            tensor = 2 * tensor
        if key.endswith(".conv1d_z.weight"):
            continue
        if key.endswith(".conv1d_x.weight"):
            other = state_dict[key.replace("stages.", "levels.", 1).replace("conv1d_x", "conv1d_z")]
            key, tensor = key.replace("conv1d_x", "conv1d"), torch.cat([tensor, other])
        converted[key] = tensor
    return converted
