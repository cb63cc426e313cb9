"""VoVNet checkpoints, of timm and of the authors (stigma0617/VoVNet.pytorch, youngwanLEE/vovnet-detectron2).

The authors number the stages from 2 and the modules in them from 1, and write a layer's own name behind its place:
``stage2.OSA2_1.layers.0.OSA2_1_0/conv.weight``. Their networks differ from timm's of the same names and shapes, so a
file in their layout brings its options with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.convert.rename import rename

_STEM = ("stages.0.downsample.0.", "stages.0.downsample.1.", "stages.1.downsample.")
_TIMM = [  # timm's, ours
    *((f"stem.{i}.", name) for i, name in enumerate(_STEM)),
    *((f"stages.{i}.", f"stages.{i + 1}.") for i in range(4)),
    ("head.fc.", "head."),
]
_PARTS = {
    "conv_dw": "depthwise", "conv_pw": "conv", "conv_reduction": "reduce", "conv_mid": "layers",
    "conv_concat": "concat", "attn": "se",
}  # fmt: skip
_LEAVES = {"conv": "conv", "norm": "bn", "dw_conv3x3": "depthwise", "pw_conv1x1": "conv", "pw_norm": "bn"}
_DETECTOR = "backbone.bottom_up."
_PLACES = {"conv_reduction": "reduce", "ese": "se"}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a VoVNet."""
    return any(key.endswith("stem.stem_1/conv.weight") or key == "stem.0.conv.weight" for key in state_dict) and any(
        "conv_concat." in key or ".concat." in key for key in state_dict
    )


def implied(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of the authors' networks: the input of later blocks of a stage is added; where one squeezes every one does; a
    detector's has no classifier."""
    if not any(key.endswith("stem.stem_1/conv.weight") for key in state_dict):
        return {}
    options = {"residual": True, "squeeze": "every" if any(".ese.fc." in key for key in state_dict) else "never"}
    return options if any(key.startswith("classifier.") for key in state_dict) else options | {"num_classes": 0}


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged.

    Of a detector only the backbone is taken, and the counters that its frozen norms lack start at 0.
    """
    if "stem.0.conv.weight" not in state_dict:
        return _of_the_authors(state_dict)
    return {
        ".".join(_PARTS.get(part, part) for part in key.split(".")): tensor
        for key, tensor in rename(state_dict, _TIMM).items()
    }


def to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's names -> those of timm's VovNet; tensors unchanged."""
    names = {ours: theirs for theirs, ours in _PARTS.items() if ours != "conv"}
    parted = {}
    for key, tensor in state_dict.items():
        layer, _, end = key.rpartition("conv.weight")
        separable = end == "" and f"{layer}depthwise.weight" in state_dict
        parted[f"{layer}conv_pw.weight" if separable else key] = tensor
    renamed = rename(parted, _TIMM, backwards=True)
    return {".".join(names.get(part, part) for part in key.split(".")): tensor for key, tensor in renamed.items()}


def _of_the_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    detector = {key: tensor for key, tensor in state_dict.items() if key.startswith(_DETECTOR)}
    converted = {}
    for key, tensor in (detector or state_dict).items():
        converted[_renamed(key.removeprefix(_DETECTOR).removeprefix("module."))] = tensor
    for key in [key for key in converted if key.endswith(".running_mean")]:
        counter = key.replace("running_mean", "num_batches_tracked")
        converted.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return converted


def _renamed(key: str) -> str:
    place, _, leaf = key.rpartition("/")
    name, _, kind = leaf.partition(".")  # "conv", "weight"
    if found := re.fullmatch(r"stem\.stem_(\d)", place):
        return f"{_STEM[int(found[1]) - 1]}{_LEAVES[name]}.{kind}"
    if found := re.match(r"stage(\d)\.OSA\d_(\d+)\.(conv_reduction|layers\.\d+|concat|ese\.fc)\.", key):
        stage, block, part = found.groups()
        end = f"{_LEAVES[name]}.{kind}" if place else key[found.end() :]
        first, *rest = part.split(".")
        return ".".join([f"stages.{int(stage) - 1}.blocks.{int(block) - 1}", _PLACES.get(first, first), *rest, end])
    return f"head.{kind}" if key.startswith("classifier.") else key
