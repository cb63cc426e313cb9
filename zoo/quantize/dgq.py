"""DGQ: groups of four bits inside rows of eight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels.lowbit_matmul import pack
from zoo.layers.quant import Format, Record
from zoo.layers.quant.layouts import grid
from zoo.layers.quant.layouts.dual_grained import TOP, fine_codes, limited
from zoo.layers.quant.layouts.layout import stored
from zoo.quantize.calibration import Calibration, largest_inputs
from zoo.quantize.folds import folds
from zoo.quantize.method import Method
from zoo.quantize.moments import damped, second_moments
from zoo.quantize.store import Store

GROUPS = [1.0, *(1.009 - 0.011 * index for index in range(20))]  # shares of a group's range
ROWS = [1.0, *(1.00975 - 0.01025 * index for index in range(80))]  # of a row's largest weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class DGQ(Method, name="dgq", calibrated=True):
    r"""Integers of ``bits``, scaled in groups to integers of eight bits, and those by one number a row.

    .. math::
        w = S \, s_g (q - z_g), \quad s_g = \max(1, \mathrm{round}(\hat s_g / S))

    The scale :math:`\hat s_g` of a group is that of 21 shares of its range which changes what the group adds to the
    layer's outputs least; then S is that of 81 shares of the row's largest weight. With ``activation_bits`` the few
    channels with by far the largest inputs are first divided in the norm before them down to the largest of the rest.

    Paper: Zhang et al., "Dual Grained Quantization: Efficient Fine-Grained Quantization for LLM", arXiv 2310.04836; the
    shares are those of its code.
    """

    outlying: float = 0.005
    """Share of the channels that is divided, where activations are rounded."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.outlying <= 1:
            raise ValueError(f"outlying must be a share of the channels, got {self.outlying}")

    def format(self, columns: int) -> Format:
        """Of layout "dual_grained"."""
        return dataclasses.replace(super().format(columns), layout="dual_grained")

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """Divide the outlying channels; the second moments of the inputs."""
        assert calibration is not None
        store.expect(1)
        if self.activation_bits is not None:
            places = [name.rpartition(".")[0] for name in names]
            linears = [place for place in places if type(model.get_submodule(place)) is nn.Linear]
            for fold in folds(model, linears, calibration):
                largest = largest_inputs(model, fold.linears, calibration)
                fold.apply(model, smoothing(torch.stack(list(largest.values())).amax(0), self.outlying))
        return store.once("moments", lambda: second_moments(model, names, calibration))

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The best scales of groups, then of rows."""
        size = matrix.shape[-1] // form.groups(matrix.shape[-1])
        blocks = (
            damped(known, matrix.shape[-1]).unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
        )  # (..., G, S, G, S)
        inner = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3).to(matrix.device)  # (..., G, S, S)

        def error(numbers: Tensor) -> Tensor:  # (..., N, G, S) -> (..., N, G)
            off = numbers - matrix.unflatten(-1, (-1, size))
            return torch.einsum("...ngs,...gst,...ngt->...ng", off, inner, off)

        scale, zero = best_groups(matrix, form, error)
        return best_rows(matrix, scale, zero, form, error)


def smoothing(largest: Tensor, share: float) -> Tensor:
    """c (C,): how far each of the channels with the largest inputs is above the largest of the others; 1 for these."""
    count = min(int(share * len(largest) + 1.5), len(largest) - 1)
    baseline = largest.sort(descending=True).values[count].clamp(min=torch.finfo(largest.dtype).tiny)
    return (largest / baseline).clamp(min=1)


def best_groups(matrix: Tensor, form: Format, error: Any) -> tuple[Tensor, Tensor]:
    """Scales, not rounded, and zeros (..., N, G)."""
    whole, zero = grid(matrix, dataclasses.replace(form, scale_dtype="float32"))
    assert zero is not None
    groups, centre = matrix.unflatten(-1, (whole.shape[-1], -1)), zero.float()[..., None]
    best, least = whole, torch.full_like(whole, torch.inf)
    for share in GROUPS:
        step = (whole * share)[..., None]
        q = ((groups / step).round() + centre).clamp(0, 2**form.bits - 1)
        found = error((q - centre) * step)
        best, least = torch.where(found < least, step[..., 0], best), torch.minimum(found, least)
    return best, zero


def best_rows(matrix: Tensor, scale: Tensor, zero: Tensor, form: Format, error: Any) -> Record:
    """The record of the best number a row for these groups."""
    top = matrix.abs().amax(-1, keepdim=True) / TOP
    held: dict[str, Tensor] = {}
    least = torch.full_like(top, torch.inf)
    for share in ROWS:
        coarse = stored(top * share, form)
        fine, q = fine_codes(matrix, scale, zero, coarse)
        q = limited(q, fine, zero, form)
        numbers = (q.float() - zero.float()[..., None]) * (fine.float() * coarse.float())[..., None]
        found = error(numbers).sum(-1, keepdim=True)
        better, new = found < least, {"codes": q.flatten(-2), "fine": fine, "coarse": coarse}
        held = {key: torch.where(better, value, held[key]) if held else value for key, value in new.items()}
        least = torch.minimum(found, least)
    return Record.holding(matrix.shape, form, held | {"codes": pack(held["codes"], form.bits), "zero": zero})
