"""Stored scales and zeros of what multiplies matrices, from the inputs of a calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from zoo.layers.quant import Format, Record
from zoo.layers.quant.inputs import Inputs, affine_grid
from zoo.quantize.calibration import Calibration, watching

KEPT = 1 << 15  # numbers of each part of a layer's inputs
POWER = 2.4  # of the error that shares of a range are chosen by
SHARES = [1 - index / 100 for index in range(80)]


@torch.no_grad()
def seen_inputs(
    model: nn.Module, parts: Mapping[str, Sequence[int]], calibration: Calibration, first: Mapping[str, int]
) -> dict[str, list[Tensor]]:
    """Some numbers of every call, the smallest and the largest among them, by the name of the layer and its part.

    Args:
        parts: name of a layer, linear or a convolution -> channels of its slices.
        first: name -> tokens that are left out at the beginning of a sequence.
    """
    calls = max(1, len(calibration.batches))
    found: dict[str, list[list[Tensor]]] = {name: [[] for _ in sizes] for name, sizes in parts.items()}

    def see(name: str, x: Tensor) -> None:
        axis = -1 if isinstance(model.get_submodule(name), nn.Linear) else 1
        x = x[..., first[name] :, :] if first.get(name) else x
        for held, part in zip(found[name], x.float().split(list(parts[name]), axis), strict=True):
            numbers = part.flatten()
            every = -(-numbers.numel() * calls // KEPT)
            held.append(torch.cat([numbers[::every], torch.stack(numbers.aminmax())]))

    with watching({name: model.get_submodule(name) for name in parts}, see):
        calibration.run(model)
    return {name: [torch.cat(part) for part in held] for name, held in found.items()}


def input_grid(parts: Iterable[Tensor], bits: int, search: bool) -> dict[str, Tensor]:
    """``input_scale`` and ``input_zero`` of the parts of a layer's inputs.

    Args:
        parts: numbers of each.
        bits: of a rounded one.
        search: of 80 shares of the range, the one of the least error :math:`\\sum |x - \\hat x|^{2.4}`, all of it
            among them; False: all of it.
    """
    grids = [_best(numbers, bits) if search else affine_grid(*numbers.aminmax(), bits) for numbers in parts]
    scales, zeros = (torch.stack(side) for side in zip(*grids, strict=True))
    return {"input_scale": scales.float(), "input_zero": zeros.to(torch.uint8)}


def _best(numbers: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = numbers.aminmax()
    best, least = affine_grid(low, high, bits), torch.inf
    for share in SHARES:
        scale, zero = affine_grid(low * share, high * share, bits)
        off = scale * (((numbers / scale).round() + zero).clamp(0, 2**bits - 1) - zero) - numbers
        if (error := off.abs().pow(POWER).sum().item()) < least:
            best, least = (scale, zero), error
    return best


def with_inputs(record: Record, inputs: Inputs, bits: int, stored: Mapping[str, Tensor]) -> Record:
    """The record with a rule of its inputs, and what it stores for it."""
    form: Format = dataclasses.replace(record.format, activation_bits=bits, inputs=inputs)
    return Record.holding(record.shape, form, {**dict(record.named_parameters()), **stored})
