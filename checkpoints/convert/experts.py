"""Experts in published layouts, and stacked and transposed in the zoo's: ``w1``, ``w3`` (E, D, F) and ``w2`` (E, F, D).

Files have each expert's matrices, ``experts.E.NAME.weight``; a model of transformers 5 in memory has them stacked,
``experts.gate_up_proj`` (E, 2 F, D), the gate's half first, and ``experts.down_proj`` (E, D, F).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PROJECTIONS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}  # of a file, ours
_STACKED = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}


def gathered(state_dict: Mapping[str, Tensor], names: Mapping[str, str] = PROJECTIONS) -> dict[str, Tensor]:
    """The experts of either layout as ``experts.w1``, ``experts.w3`` and ``experts.w2``; other tensors unchanged.

    Args:
        names: what a file calls the matrices.

    Raises:
        ValueError: where one of a layer's experts is missing.
    """
    separate = re.compile(rf"(.+\.experts)\.(\d+)\.({'|'.join(names)})\.weight")
    result: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state_dict.items():
        layer, _, name = key.rpartition(".")
        if found := separate.fullmatch(key):
            experts.setdefault(f"{found[1]}.{names[found[3]]}", {})[int(found[2])] = tensor
        elif layer.endswith(".experts") and name in _STACKED:
            parts = zip(_STACKED[name], tensor.chunk(len(_STACKED[name]), dim=1), strict=True)
            result |= {f"{layer}.{ours}": part.mT.contiguous() for ours, part in parts}
        else:
            result[key] = tensor
    for key, parts in experts.items():
        if missing := sorted(set(range(max(parts) + 1)) - set(parts)):
            raise ValueError(f"{key}: experts {missing} are missing from the checkpoint")
        result[key] = torch.stack([parts[index].mT for index in range(len(parts))])
    return result


def spread(
    state_dict: Mapping[str, Tensor], stacked: bool, names: Mapping[str, str] = PROJECTIONS
) -> dict[str, Tensor]:
    """The inverse of ``gathered``: the layout in memory, or with ``stacked`` False that of the files."""
    theirs = {ours: name for name, ours in names.items()}
    result: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        layer, _, name = key.rpartition(".")
        if not layer.endswith(".experts") or name not in theirs:
            result[key] = tensor
        elif not stacked:
            result |= {f"{layer}.{e}.{theirs[name]}.weight": one.mT.contiguous() for e, one in enumerate(tensor)}
        elif name == "w1":
            result[f"{layer}.gate_up_proj"] = torch.cat([tensor.mT, state_dict[f"{layer}.w3"].mT], dim=1)
        elif name == "w2":
            result[f"{layer}.down_proj"] = tensor.mT.contiguous()
    return result
