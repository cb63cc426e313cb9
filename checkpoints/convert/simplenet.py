"""SimpleNet checkpoints of the authors (Coderx7/SimpleNet_Pytorch): one list of layers, whose numbers count all kinds.

The numbers differ between versions of their code, which put dropout after every convolution or only after poolings; the
order does not. A pooling stands where the numbers of two convolutions lie further apart than usual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' network: convolutions with biases, numbered, and one classifier."""
    return {"features.0.bias", "features.1.running_mean", "classifier.weight"} <= set(state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged."""
    numbers = sorted(
        int(key.split(".")[1]) for key, t in state_dict.items() if key.startswith("features.") and t.dim() == 4
    )
    usual = min(b - a for a, b in pairwise(numbers))
    places, stage, block = {numbers[0]: "stages.0.downsample.0"}, 0, 0
    for before, number in pairwise(numbers):
        if number - before > usual:
            stage, block = stage + 1, 0
        places[number] = f"stages.{stage}.blocks.{block}"
        block += 1
    converted = {}
    for key, tensor in state_dict.items():
        if found := re.fullmatch(r"features\.(\d+)\.(\w+)", key):
            number, leaf = int(found[1]), found[2]
            place = f"{places[number]}.conv" if number in places else f"{places[number - 1]}.bn"
            converted[f"{place}.{leaf}"] = tensor
        else:
            converted[key.replace("classifier.", "head.")] = tensor
    return converted
