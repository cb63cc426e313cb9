"""What layers publish of their latest forward pass: side losses, and what routed layers really computed."""

from __future__ import annotations

from torch import Tensor, nn


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Sums, over the layers, of the side losses of the latest forward pass: name -> scalar.

    A layer publishes its side losses (router balance, z-loss, ...) as a dict attribute ``auxiliary_losses``; a model
    without such layers gives an empty dict.
    """
    total: dict[str, Tensor] = {}
    for module in model.modules():
        for name, loss in getattr(module, "auxiliary_losses", {}).items():
            total[name] = total[name] + loss if name in total else loss
    return total


def activity(model: nn.Module) -> dict[str, Tensor]:
    """What routed and recursive layers really computed in the latest forward pass: "layer.measure" -> tensor.

    A layer publishes its measures (tokens per expert, mean depth, share of tokens processed, ...) as a dict attribute
    ``activity``; a model without such layers gives an empty dict.
    """
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in model.named_modules()
        for name, value in getattr(module, "activity", {}).items()
    }
