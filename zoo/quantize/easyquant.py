"""EasyQuant: a few weights are kept as they are, and the ranges of the others optimised, without any data."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from zoo.layers.quant import Format, Record
from zoo.layers.quant.layouts import grid, nearest
from zoo.layers.quant.layouts.layout import SCALES, in_groups
from zoo.quantize.method import Method

SMALLEST = 0.05  # of a scale, relative to its start


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasyQuant(Method, name="easyquant"):
    r"""Weights farther than n standard deviations from the mean of their matrix are kept; the scales of the rest are
    those of the least squared error that Adam finds, from the smallest and largest weight of each group on.

    .. math::
        \min_s \sum_i (s \, l_i - w_i)^2, \quad l_i = \mathrm{clamp}(\mathrm{round}(w_i / s) + z) - z, \quad
        \frac{\partial}{\partial s} = 2 \sum_i (s \, l_i - w_i) \, l_i

    Each group keeps the best scale of all steps, the first among them.

    Paper: Tang et al., "EasyQuant: An Efficient Data-free Quantization Algorithm for LLMs", arXiv 2403.02775, equations
    2 to 5, of which the third prints the variance where its text and its share of outliers mean the deviation. There a
    row has one scale; the step of Adam is in units of the first scale here.
    """

    deviations: float = 3.0
    """n; infinity keeps no weight."""
    steps: int = 100
    """Of Adam."""
    lr: float = 1e-2
    """Of Adam, of a scale relative to its start."""

    def __post_init__(self):
        super().__post_init__()
        if self.deviations < 0 or self.steps < 0 or self.lr <= 0:
            raise ValueError(
                "deviations and steps must be at least 0 and lr above 0, got "
                f"{self.deviations}, {self.steps} and {self.lr}"
            )
        if self.group_rows != 1:
            raise ValueError(f"easyquant finds a scale for each row: group_rows must be 1, got {self.group_rows}")

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """Codes of the best scales, and the outliers beside them."""
        kept = outliers(matrix, self.deviations)
        rest = torch.where(kept, 0.0, matrix)
        first, zero = grid(rest, form)
        scale = best_scales(rest, first, zero, form, self.steps, self.lr)
        q = nearest(rest, scale, zero, form)
        return Record.of(q, scale, zero, form, torch.where(kept, matrix, 0.0) if kept.any() else None)


def outliers(matrix: Tensor, deviations: float) -> Tensor:
    """Which of the numbers of each matrix (..., N, C) are at least so many standard deviations from its mean."""
    mean, deviation = matrix.mean((-2, -1), keepdim=True), matrix.std((-2, -1), correction=0, keepdim=True)
    return (matrix - mean).abs() >= deviations * deviation


def best_scales(matrix: Tensor, first: Tensor, zero: Tensor | None, form: Format, steps: int, lr: float) -> Tensor:
    """The scales (..., N, G) of the least squared error among all steps of Adam, as they are stored."""
    groups, dtype = in_groups(matrix, form), SCALES[form.scale_dtype]
    centre: Any = 2 ** (form.bits - 1) if zero is None else zero[..., None].float()
    ratio = torch.ones_like(first, dtype=torch.float32)
    optimizer = torch.optim.Adam([ratio], lr=lr)
    best, least = first, torch.full_like(ratio, torch.inf)
    for _ in range(steps + 1):
        s = (first.float() * ratio).to(dtype)
        levels = ((groups / s.float()[..., None]).round() + centre).clamp(0, 2**form.bits - 1) - centre
        off = s.float()[..., None] * levels - groups
        error = off.square().sum(-1)
        better = error < least
        best, least = torch.where(better, s, best), torch.where(better, error, least)
        ratio.grad = 2 * (off * levels).sum(-1) * first.float()
        optimizer.step()
        ratio.clamp_(min=SMALLEST)
    return best
