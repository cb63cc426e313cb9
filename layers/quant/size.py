"""How large a model is that may hold compressed weights."""

from __future__ import annotations

from torch import nn

from zoo.layers.quant.record import Record


def count_parameters(model: nn.Module) -> int:
    """Numbers that a model stands for: a record counts as the matrix it replaces, a shared tensor once."""
    found = {record: record.shape.numel() for record in model.modules() if isinstance(record, Record)}
    inside = {id(parameter) for record in found for parameter in record.parameters()}
    return sum(found.values()) + sum(p.numel() for p in model.parameters() if id(p) not in inside)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of its state dict, a shared tensor once."""
    return sum({id(tensor): tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()}.values())
