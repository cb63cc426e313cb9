"""A model as the units that are called in a forward pass, in their order: blocks of lists, and single layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from zoo.quantize.calibration import Calibration


def units(model: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, list[str]]:
    """The outermost members of lists that are called, and the layers outside of them, with the names of their weights.

    A list's member that only holds others is not called: a stage of a U-Net is divided into its blocks.

    Args:
        names: of weights; those of modules that are not called are in no unit.
        calibration: of which the first batch is run, to see the order.
    """
    members = {
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        for child, _ in module.named_children()
    }
    layers = {name.rpartition(".")[0] for name in names}
    order: list[str] = []

    def hook(name: str):
        def see(module: nn.Module, inputs: object) -> None:
            if not any(name.startswith(f"{other}.") for other in order) and name not in order:
                order.append(name)

        return see

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in members | layers]
    try:
        with torch.no_grad():
            Calibration(calibration.batches[:1]).run(model)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[str]] = {name: [] for name in order}
    for name in names:
        for unit in order:
            if name.startswith(f"{unit}."):
                found[unit].append(name)
                break
    return {unit: inside for unit, inside in found.items() if inside}
