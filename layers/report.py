"""What layers tell of their latest forward pass, and what they are told: that the optimiser has stepped."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_exporting() -> bool:
    """Whether ``torch.export`` is at work. torch 2.11's own function says so under ``torch.compile`` too."""
    return torch.compiler._is_exporting_flag


class Reports(nn.Module):
    """A layer that publishes side losses and measures of its latest forward pass.

    Attributes:
        auxiliary_losses: name -> scalar, already weighted.
        activity: name -> tensor: what was really computed.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.auxiliary_losses: dict[str, Tensor] = {}
        self.activity: dict[str, Tensor] = {}

    def report(self, losses: dict[str, Tensor], activity: dict[str, Tensor]) -> None:
        """Publish them in place of the last ones; nothing while a program is exported."""
        if not is_exporting():
            self.auxiliary_losses, self.activity = losses, activity

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles do without the latest forward pass, whose tensors may hold a graph."""
        return self.__dict__ | {"auxiliary_losses": {}, "activity": {}}


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


def after_step(model: nn.Module) -> None:
    """Let the layers learn what no gradient teaches, from the training passes since the last call.

    To be called after each ``optimizer.step()``, on all processes; the training tasks do so. It moves the bias of
    loss-free balance (``DeepSeekMoE``) and the centroids of routing attention (``OnlineKMeans``). Any module with a
    method ``after_step`` takes part.
    """
    for module in model.modules():
        if hasattr(type(module), "after_step"):
            module.after_step()  # type: ignore[operator]


def over_processes(*sums: Tensor) -> None:
    """Add up tensors over all processes, in place; nothing without a process group."""
    if dist.is_available() and dist.is_initialized():
        for tensor in sums:
            dist.all_reduce(tensor)
