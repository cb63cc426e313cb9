"""PC-DARTS checkpoints of the authors (yuhuixu1993/PC-DARTS).

The cells are one list; of L the reductions are L // 3 and 2 L // 3, where our second and third stage begin. One batch
norm over both halves of a factorised reduction is two here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_STEM = "stages.0.downsample."
_ENDS = {  # within the stem, a cell's input and an operation: published -> ours
    "stem.0": f"{_STEM}0.conv", "stem.1": f"{_STEM}0.bn",
    "stem0.0": f"{_STEM}0.conv", "stem0.1": f"{_STEM}0.bn",
    "stem0.3": f"{_STEM}1.conv", "stem0.4": f"{_STEM}1.bn",
    "stem1.1": f"{_STEM}2.conv", "stem1.2": f"{_STEM}2.bn",
    "auxiliary_head.features.2": "auxiliary_head.reduce.conv", "auxiliary_head.features.3": "auxiliary_head.reduce.bn",
    "auxiliary_head.features.5": "auxiliary_head.conv", "auxiliary_head.features.6": "auxiliary_head.norm",
    "classifier": "head", "conv_1": "even.conv", "conv_2": "odd.conv",
}  # fmt: skip
_OVER_HALVES = re.compile(r"(.+\.(?:preprocess0|ops\.\d+))\.bn\.(\w+)")
_INPUT = {"op.1": "conv.conv", "op.2": "conv.bn"}
_EDGE = {
    "op.1": "depthwise.0", "op.2": "pointwise.0.conv", "op.3": "pointwise.0.bn",
    "op.5": "depthwise.1", "op.6": "pointwise.1.conv", "op.7": "pointwise.1.bn",
}  # fmt: skip


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' network."""
    return any(key.startswith("cells.0.preprocess0.") for key in state_dict)


def implied(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """A file with an auxiliary head was trained with the authors' weight of its loss."""
    return {"auxiliary_weight": 0.4} if any(key.startswith("auxiliary_head.") for key in state_dict) else {}


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    count = 1 + max(int(found[1]) for key in state_dict if (found := re.match(r"cells\.(\d+)\.", key)))
    starts = [0, count // 3, 2 * count // 3]
    renamed = {_renamed(key, starts): tensor for key, tensor in state_dict.items()}
    converted = {}
    for key, tensor in renamed.items():
        if found := _OVER_HALVES.fullmatch(key):
            parts = tensor.chunk(2) if tensor.dim() else (tensor, tensor)  # a counter of batches has no halves
            converted |= {f"{found[1]}.{half}.bn.{found[2]}": p for half, p in zip(("even", "odd"), parts, strict=True)}
        else:
            converted[key] = tensor
    return converted


def _renamed(key: str, starts: list[int]) -> str:
    place, _, leaf = key.rpartition(".")
    if place in _ENDS:
        return f"{_ENDS[place]}.{leaf}"
    found = re.fullmatch(r"cells\.(\d+)\.(preprocess\d|_ops\.\d+)\.(.+)", place)
    if found is None:
        return key
    cell, part, end = int(found[1]), found[2].lstrip("_"), found[3]
    stage = max(index for index, start in enumerate(starts) if start <= cell)
    names = _EDGE if part.startswith("ops") else _INPUT
    return f"stages.{stage}.blocks.{cell - starts[stage]}.{part}.{names.get(end) or _ENDS.get(end, end)}.{leaf}"
