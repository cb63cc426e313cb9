"""What the inputs of layers are like, as far as the squared error of their outputs depends on it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.quantize.calibration import Calibration, watching

DAMPING = 0.01  # of the mean of the diagonal, so that the matrix can be inverted


@torch.no_grad()
def second_moments(model: nn.Module, names: Iterable[str], calibration: Calibration) -> dict[str, Tensor]:
    r""":math:`H = \frac{1}{M} \sum_m x_m x_m^T`, (C, C) float32, of all inputs of linear layers and of plain 2-D
    convolutions, by the name of their weight; other weights, experts and embeddings, are not in it. Weights that are
    tied have the sum of theirs."""
    watched, places = {}, {}
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        places[name] = id(model.get_parameter(name))
        if isinstance(module, nn.Linear) or (type(module) is nn.Conv2d and module.groups == 1):
            watched[name] = module
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def see(name: str, x: Tensor) -> None:
        rows = _rows(watched[name], x.float())
        key = places[name]
        sums[key] = sums.get(key, 0) + rows.mT @ rows
        counts[key] = counts.get(key, 0) + len(rows)

    with watching(watched, see):
        calibration.run(model)
    return {name: sums[key] / counts[key] for name, key in places.items() if key in sums}


def _rows(module: Any, x: Tensor) -> Tensor:
    """What the rows of a layer's matrix are multiplied with: (M, C)."""
    if isinstance(module, nn.Linear):
        return x.flatten(0, -2)
    unfold = partial(F.unfold, kernel_size=module.kernel_size, dilation=module.dilation, stride=module.stride)
    padding = module.padding if not isinstance(module.padding, str) else _same(module)
    return unfold(x, padding=padding).mT.flatten(0, 1)


def _same(module: Any) -> tuple[int, ...]:
    """Of padding "valid" and, for odd kernels, "same"."""
    if module.padding == "valid":
        return (0, 0)
    return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))


def damped(moment: Tensor | None, columns: int) -> Tensor:
    """(C, C) positive definite, of a second moment or, where there is none, of inputs that are all alike."""
    if moment is None:
        return torch.eye(columns)
    return moment + (DAMPING * moment.diagonal().mean() + torch.finfo(torch.float32).tiny) * torch.eye(
        columns, device=moment.device
    )


def output_error(off: Tensor, moment: Tensor) -> Tensor:
    """The mean squared error of each output (..., N) of matrices that are ``off`` (..., N, C)."""
    return (off @ moment * off).sum(-1)
