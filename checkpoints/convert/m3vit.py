"""M³ViT checkpoints of the authors (VITA-Group/M3ViT), as one process saves them.

Their names: ``backbone.blocks.1.mlp.experts.htoh4.weight`` (E, F, D), ``.mlp.gate.0.w_gate`` (D, E) of task 0 or
``.mlp.gate.w_gate`` of all tasks, ``gate_task_represent`` for the embedding of the task, ``decoders.semseg.conv_0``,
``.syncbn_fc_0``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from zoo.checkpoints.convert.rename import rename

_EXPERTS = {"htoh4.weight": "w1", "htoh4.bias": "b1", "h4toh.weight": "w2", "h4toh.bias": "b2"}
_DECODER = re.compile(r"decoders\.(\w+)\.(conv|syncbn_fc)_(\d)\.(\w+)")
_TRAINING_ONLY = "tam_model"


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors."""
    return any(key.endswith(".mlp.experts.htoh4.weight") for key in state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names -> the zoo's, matrices transposed.

    One router without an embedding of the task becomes the router of every task. The bias of a convolution before a
    batch norm goes into the norm's running mean, to the same effect. The auxiliary decoders (TAM), used in training
    only, are dropped.
    """
    published = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    tasks = {key.split(".")[1] for key in published if key.startswith("decoders.")}
    converted: dict[str, Tensor] = {}
    for key, tensor in rename(published, [("backbone.gate_task_represent.", "task_embed."), ("backbone.", "")]).items():
        prefix, _, leaf = key.partition(".mlp.experts.")
        block, _, gate = key.partition(".mlp.gate.")
        if key.startswith(_TRAINING_ONLY):
            continue
        if leaf:
            converted[f"{prefix}.mlp.{_EXPERTS[leaf]}"] = tensor.mT if leaf.endswith("weight") else tensor
        elif gate == "w_gate" and tensor.shape[0] > published[f"backbone.{block}.norm2.weight"].shape[0]:
            converted[f"{block}.mlp.router.gate.weight"] = tensor.mT
        elif gate == "w_gate":
            for task in range(max(len(tasks), 1)):
                converted[f"{block}.mlp.router.gates.{task}.weight"] = tensor.mT
        elif gate:
            converted[f"{block}.mlp.router.gates.{gate.removesuffix('.w_gate')}.weight"] = tensor.mT
        elif found := _DECODER.fullmatch(key):
            _convert_decoder(converted, published, key, tensor, *found.groups())
        else:
            converted[key] = tensor
    return converted


def _convert_decoder(converted, published, key: str, tensor: Tensor, task: str, kind: str, index: str, leaf: str):
    prefix = f"decoders.{task}"
    normed = f"{prefix}.syncbn_fc_{index}.running_mean" in published
    if kind == "conv" and not normed:
        converted[f"{prefix}.out.{leaf}"] = tensor
    elif kind == "conv" and leaf == "weight":
        converted[f"{prefix}.stages.{index}.conv.weight"] = tensor
    elif leaf == "running_mean":
        converted[f"{prefix}.stages.{index}.bn.{leaf}"] = tensor - published[f"{prefix}.conv_{index}.bias"]
    elif kind == "syncbn_fc":
        converted[f"{prefix}.stages.{index}.bn.{leaf}"] = tensor
