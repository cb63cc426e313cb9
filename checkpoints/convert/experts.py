"""The experts of a layer in the three layouts of transformers' models: a tensor a matrix and expert in published files,
stacked in memory, and the zoo's, stacked and transposed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.)experts\.(\d+)\.(gate|up|down)_proj\.weight")
_STACKED = {"gate": "w1", "up": "w3", "down": "w2"}


def stack_experts(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The experts of each layer as w1, w3 (E, D, F) and w2 (E, F, D)."""
    result: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state_dict.items():
        if found := _EXPERT.fullmatch(key):
            layer, index, name = found.groups()
            experts.setdefault(_ours(layer) + _STACKED[name], {})[int(index)] = tensor
        elif key.endswith(".mlp.experts.gate_up_proj"):
            layer = _ours(key.removesuffix("experts.gate_up_proj"))
            result[f"{layer}w1"], result[f"{layer}w3"] = (part.mT.contiguous() for part in tensor.chunk(2, dim=1))
        elif key.endswith(".mlp.experts.down_proj"):
            result[_ours(key.removesuffix("experts.down_proj")) + "w2"] = tensor.mT.contiguous()
        else:
            result[key] = tensor
    return result | {key: torch.stack([parts[i].mT for i in sorted(parts)]) for key, parts in experts.items()}


def unstack_experts(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w1, w3 and w2 of each layer as transformers' gate_up_proj (E, 2 F, D) and down_proj (E, D, F)."""
    result = {}
    for key, tensor in state_dict.items():
        experts = key.replace("blocks.", "model.layers.").rpartition(".")[0] + ".experts."
        if key.endswith(".mlp.w1"):
            both = (tensor.mT, state_dict[f"{key.removesuffix('w1')}w3"].mT)
            result[f"{experts}gate_up_proj"] = torch.cat(both, dim=1)
        elif key.endswith(".mlp.w2"):
            result[f"{experts}down_proj"] = tensor.mT.contiguous()
        elif not key.endswith(".mlp.w3"):
            result[key] = tensor
    return result


def separate_experts(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w1, w3 and w2 of each layer as the published gate_proj, up_proj and down_proj of each expert."""
    published = {ours: theirs for theirs, ours in _STACKED.items()}
    result = {}
    for key, tensor in state_dict.items():
        layer, _, name = key.rpartition(".")
        if name in published and layer.endswith(".mlp"):
            experts = layer.replace("blocks.", "model.layers.") + ".experts."
            result |= {f"{experts}{i}.{published[name]}_proj.weight": t.mT.contiguous() for i, t in enumerate(tensor)}
        else:
            result[key] = tensor
    return result


def _ours(layer: str) -> str:
    return layer.replace("model.layers.", "blocks.")
