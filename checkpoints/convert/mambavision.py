"""MambaVision checkpoints of the authors (NVlabs/MambaVision), and their repositories nvidia/MambaVision-* on the Hub.

A level ends with its downsampling, where a stage of ours begins. Two convolutions, each of a half of the mixer's
channels, are one here; and the bias of the step size, which the authors' forward adds twice, is doubled and added once.

Facts of the repositories: their configuration_mambavision.py, and config.json of B-1K and L-1K. Tensors have the names
of the files of the authors behind "model.".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.convert.rename import rename

MODEL_TYPES = ("mambavision",)
_SIZES = {  # channels of the first level, blocks of each -> name
    (80, (1, 3, 8, 4)): "mambavision_t", (80, (1, 3, 11, 4)): "mambavision_t2",
    (96, (3, 3, 7, 5)): "mambavision_s", (128, (3, 3, 10, 5)): "mambavision_b",
    (196, (3, 3, 10, 5)): "mambavision_l", (196, (3, 3, 12, 5)): "mambavision_l2",
    (256, (3, 3, 20, 10)): "mambavision_l3",
}  # fmt: skip
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


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The authors' ``config.json`` -> name of the size, or of the smallest for one of its own, and the fields.

    The first two levels are convolutions, whatever heads and windows it names for them. The size of the images, which
    it does not have, is the one whose third map is one window.

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    if config.get("layer_scale_conv") is not None:
        raise ValueError(f"layer_scale_conv must be None, got {config['layer_scale_conv']!r}")
    dim, depths, heads, windows = (config[name] for name in ("dim", "depths", "num_heads", "window_size"))
    if not len(depths) == len(heads) == len(windows) == 4:
        raise ValueError(f"depths, num_heads and window_size must be of 4 levels, got {depths}, {heads}, {windows}")
    fields = {
        "dims": [dim << level for level in range(4)],
        "depths": depths,
        "num_heads": [0, 0, *heads[2:]],
        "windows": [0, 0, *windows[2:]],
        "stem_dim": config["in_dim"],
        "mlp_ratio": config["mlp_ratio"],
        "layer_scale": config.get("layer_scale"),
        "img_size": 16 * windows[2],
    }
    if labels := config.get("id2label"):
        fields |= {"num_classes": len(labels), "label_names": [labels[str(index)] for index in range(len(labels))]}
    return _SIZES.get((dim, tuple(depths)), "mambavision_t"), fields
