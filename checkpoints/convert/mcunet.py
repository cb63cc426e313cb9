"""MCUNet checkpoints of the authors (mit-han-lab/mcunet): one list of blocks, with gaps where one was searched away.

The file does not say where the map is halved, so the published networks are known here by the channels of their blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_NETWORKS = (  # output channels of the blocks, stages apart
    "16 | 16 16 16 | 24 24 24 | 48 48 56 56 56 | 112 112 192",  # in0
    "8 | 16 16 | 24 24 | 40 40 48 48 48 | 96 96 96 160",  # in1
    "8 | 16 16 16 16 | 24 24 24 | 40 40 48 48 48 | 96 96 96 96 160",  # in2
    "8 | 16 16 16 16 | 24 24 24 | 40 40 40 48 48 48 | 96 96 96 160",  # in3
    "16 | 24 24 24 | 40 40 40 | 80 80 80 96 96 96 | 192 192 192 320",  # in4
    "8 | 16 16 | 24 24 24 | 40 40 40 48 48 | 96 96 160",  # vww0
    "8 | 16 16 16 | 24 24 24 | 40 40 48 48 | 96 96 96 160",  # vww1
    "8 | 16 16 16 16 | 24 24 24 24 | 40 40 40 40 48 48 48 48 | 96 96 96 96 160",  # vww2
    "8 | 8 8 | 16 16 16 | 24 24 24 24 32 32 32 | 56 56 56 112",  # mbv2_w035
    "8 | 16 16 | 16 16 16 16 | 24 24 24 24 32 32 32 32 | 64 64 64 64 96",  # proxyless_w03
)
_STAGES = {
    tuple(map(int, text.replace("|", "").split())): [len(s.split()) for s in text.split("|")] for text in _NETWORKS
}
_PARTS = {"inverted_bottleneck": "expand", "depth_conv": "depthwise", "point_linear": "project"}
_BLOCK = re.compile(r"blocks\.(\d+)\.mobile_inverted_conv\.(\w+)\.(.+)")
_OUTPUT = "blocks.{}.mobile_inverted_conv.point_linear.conv.weight"


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' networks."""
    return _OUTPUT.format(0) in state_dict


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's; tensors unchanged. Blocks of a network not known here keep their names."""
    numbers = sorted({int(found[1]) for key in state_dict if (found := _BLOCK.match(key))})
    lengths = _STAGES.get(tuple(len(state_dict[_OUTPUT.format(number)]) for number in numbers))
    if lengths is None:
        return dict(state_dict)
    places = [
        f"stages.{stage}.downsample" if stage and not index else f"stages.{stage}.blocks.{index - (stage > 0)}"
        for stage, length in enumerate(lengths)
        for index in range(length)
    ]
    place = dict(zip(numbers, places, strict=True))
    ends = {
        "first_conv.": "stages.0.downsample.0.",
        "feature_mix_layer.": f"stages.{len(lengths) - 1}.blocks.{lengths[-1] - 1}.",
        "classifier.linear.": "head.",
    }
    converted = {}
    for key, tensor in state_dict.items():
        if found := _BLOCK.match(key):
            key = f"{place[int(found[1])]}.{_PARTS[found[2]]}.{found[3]}"
        for published, ours in ends.items():
            key = ours + key.removeprefix(published) if key.startswith(published) else key
        converted[key] = tensor
    return converted
