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


class FrozenError(ValueError):
    """What was asked to learn cannot."""


def check_trainable(model: nn.Module) -> None:
    """Raise a ``FrozenError`` for a compressed model of which nobody has said what is to learn: its records cannot."""
    names = [name for name, module in model.named_modules() if isinstance(module, Record)]
    others = [p for name, p in model.named_parameters() if name.rpartition(".")[0] not in names]
    learns = [p for p in model.parameters() if p.requires_grad]
    if names and len(learns) == len(others) and all(p.requires_grad for p in others):
        raise FrozenError(
            f"{names[0]} and {len(names) - 1} other weights are compressed, and frozen: train the float model before "
            "zoo.quantize, or freeze this one and train adapters beside its records"
        )
