"""Low ranks beside compressed layers: which layers these are, and what the sum of both becomes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.quant.inputs import Inputs
from zoo.layers.quant.layers import Linear
from zoo.layers.quant.record import Record
from zoo.layers.sparse import SparseLinear


def is_held(module: Any) -> bool:
    """Whether it is a linear layer over a record or a sparse matrix, to whose output others may be added."""
    return type(module) in (Linear, SparseLinear)


@torch.no_grad()
def joined(module: Any, into: str | None) -> nn.Module:
    """A layer of the sum W + (alpha / r) B A of one of peft's over a compressed one, which stays as it is.

    Args:
        module: peft's.
        into: "float", a layer of numbers in the dtype of B; "nearest", a layer over a record of the same format.

    Raises:
        ValueError: for a layer that rounds or moves what it multiplies, which numbers would not, or one without
            records where the nearest is asked for.
    """
    layer, weight = module.base_layer, module.base_layer.weight
    form = weight.format if isinstance(weight, Record) else None
    if form is not None and (form.inputs != Inputs() or (into == "float" and form.activation_bits is not None)):
        raise ValueError(
            f"a layer that changes its inputs, {form}, would be another one with {into!r}: keep the adapter, "
            "zoo.save_model saves the model with it"
        )
    matrix = _numbers(weight)
    for name in module.lora_A:
        matrix = matrix + module.get_delta_weight(name)
    if into == "float":
        return _plain(matrix.to(module.lora_B[name].weight.dtype), layer.bias)
    if form is None:
        raise ValueError("the sum of a sparse matrix and low ranks has no zeros: only into='float' makes a layer of it")
    return Linear(Record.nearest(matrix.float(), form), layer.bias)


def _numbers(weight: Any) -> Tensor:
    return weight.dequantise() if isinstance(weight, Record) else weight.dense()


def _plain(matrix: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    made.weight = nn.Parameter(matrix)
    made.register_parameter("bias", bias)
    return made
