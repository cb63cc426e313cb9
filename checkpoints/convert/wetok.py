"""WeTok checkpoints of the authors (zhuangshaobin/WeTok): training files, with losses and a running average besides.

Encoder and decoder have the zoo's names; their averages, which the authors evaluate, have them without the dots.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PARTS = ("encoder.", "decoder.")


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' network and more than encoder and decoder."""
    ours = {"encoder.conv_in.weight", "decoder.adaptive.0.gamma.weight"} <= set(state_dict)
    return ours and not all(key.startswith(PARTS) for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages of encoder and decoder, where there are some, else themselves."""
    kept = {key: tensor for key, tensor in state_dict.items() if key.startswith(PARTS)}
    return {key: state_dict.get(f"model_ema.{key.replace('.', '')}", tensor) for key, tensor in kept.items()}
