"""Records do not learn: what says so when somebody trains a compressed model as if they did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.quant.record import Record

ADAPTERS = "zoo.adapt(model, 'lora') of any record, 'peqa' or 'l4q' of integers, 'sketchtune' of tables"


class FrozenError(ValueError):
    """What was asked to learn cannot."""


def check_trainable(model: nn.Module) -> None:
    """Raise a ``FrozenError`` for a compressed model that is trained as a plain one: its records cannot learn.

    That is one of which nobody has said what is to learn, all that is no record (norms, short convolutions, ...)
    learning by default, or one with a tensor of a record that was asked to.
    """
    held = [(name, module) for name, module in model.named_modules() if isinstance(module, Record)]
    asked = [f"{name}.{part}" for name, record in held for part, p in record.named_parameters() if p.requires_grad]
    if asked:
        raise FrozenError(
            f"{asked[0]}{f' and {len(asked) - 1} others' if asked[1:] else ''} must not require a gradient: records "
            f"are frozen, and what learns is beside them. {ADAPTERS}"
        )
    inside = {id(p) for _, record in held for p in record.parameters()}
    if held and all(p.requires_grad for p in model.parameters() if id(p) not in inside):
        raise FrozenError(
            f"{held[0][0]} and {len(held) - 1} other weights are compressed, and frozen: train the float model before "
            f"zoo.quantize, adapt this one ({ADAPTERS}), or say which other parts learn: model.requires_grad_(False), "
            "then requires_grad_(True) of those"
        )


def refuse_backward(model: nn.Module) -> None:
    """From now on the backward pass of a call that was made in train mode raises the error of ``check_trainable``.

    A call alone is no training, adapters and gradients go through records, and which parameters learn is said after a
    model was compressed or loaded: so it is the backward pass that is refused, by what the model's parameters are at
    the call. In eval mode gradients, of inputs for one, are whoever's wants them. The model has one hook for it, which
    ``torch.compile`` does not see.
    """
    if _watched not in model._forward_hooks.values():
        model.register_forward_hook(_watched)


def _watched(model: nn.Module, inputs: Any, output: Any) -> None:
    if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    try:
        check_trainable(model)
    except FrozenError as error:
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(_refused, str(error)))


def _refused(message: str, gradient: Tensor) -> None:
    raise FrozenError(message)


def _tensors(found: Any) -> Iterator[Tensor]:
    """All in an output: in lists, dictionaries and dataclasses too."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        for each in found.values():
            yield from _tensors(each)
    elif isinstance(found, (list, tuple)):
        for each in found:
            yield from _tensors(each)
    elif dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            yield from _tensors(getattr(found, field.name))
