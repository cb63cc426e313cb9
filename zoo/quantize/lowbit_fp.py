"""LowBitFP: which of its two neighbours each weight is rounded to learns, on any grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels.lowbit_matmul import pack
from zoo.layers.quant import LAYOUTS, Format, Record
from zoo.layers.quant.layouts import MINIFLOATS, MinifloatLayout, grid
from zoo.layers.quant.layouts.layout import SCALES, in_groups, largest, stored
from zoo.quantize.calibration import Calibration
from zoo.quantize.method import Method
from zoo.quantize.moments import output_error, second_moments
from zoo.quantize.store import Store

STRETCH = 1.2  # of the sigmoid, so that 0 and 1 are reached
SHARPEST, SOFTEST = 2.0, 20.0  # exponents of the penalty, from the second to the first
PENALTY = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowBitFP(Method, name="lowbit_fp", calibrated=True, any_layout=True):
    r"""Learn the rounding of weights to floating-point numbers of a few bits, or to integers.

    Between a weight's lower and upper neighbour l and u on the grid of its group

    .. math::
        \hat w = l + h(a) (u - l), \quad h(a) = \mathrm{clamp}(1.2\,\sigma(a) - 0.1, 0, 1)

    minimises the squared error of the layer's outputs, :math:`\mathrm{tr}\, (\hat W - W) H (\hat W - W)^T` with H the
    second moment of its inputs, and a penalty :math:`1 - |2h - 1|^\beta` that takes h to 0 or 1. The step of the grid
    is that of the weight's own binade. Scales come first: of 111 shares of each group's range, from 0.1 to 1.2, that of
    the least squared error; with ``any_split`` also the format of each matrix. A row whose outputs are no better than
    those of plain rounding is rounded plainly, as are embeddings and convolutions in groups.

    Paper: "Low-Bitwidth Floating Point Quantization for Efficient High-Quality Diffusion Models", arXiv 2408.06995; the
    shares: Kuzmin et al., "FP8 Quantization: The Power of the Exponent", arXiv 2208.09225; h: Nagel et al., "AdaRound",
    arXiv 2004.10568, equations 21 to 24. The penalty's factor and schedule are AdaRound's in spirit, not the paper's.
    """

    steps: int = 200
    """Of Adam; 0 for scales alone."""
    lr: float = 0.05
    """Of Adam."""
    any_split: bool = False
    """Each matrix takes the split of its bits between exponent and mantissa that leaves the least error of outputs."""

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 0 or self.lr <= 0:
            raise ValueError(f"steps must be at least 0 and lr above 0, got {self.steps} and {self.lr}")
        if self.group_rows != 1:
            raise ValueError(f"lowbit_fp finds a scale for each row: group_rows must be 1, got {self.group_rows}")
        if self.layout != "int" and not isinstance(LAYOUTS[self.layout], MinifloatLayout):
            raise ValueError(f"lowbit_fp rounds to integers and floating-point numbers, got layout {self.layout!r}")
        if self.any_split and self.layout == "int":
            raise ValueError("any_split is of floating-point layouts, such as 'e2m1': integers have no exponent")

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """The second moment of the inputs of each layer."""
        assert calibration is not None
        store.expect(1)
        return store.once("moments", lambda: second_moments(model, names, calibration))

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """Codes of the rounding that was learnt; the nearest where the inputs are not known."""
        if not self.any_split:
            return self._record(matrix, form, known)
        alike = [name for name, layout in MINIFLOATS.items() if layout.default == form.bits]
        made = [self._record(matrix, dataclasses.replace(form, layout=name), known) for name in alike]
        moment = torch.eye(matrix.shape[-1], device=matrix.device) if known is None else known
        return min(made, key=lambda record: output_error(record.dequantise() - matrix, moment).sum().item())

    def _record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        levels = integer_levels if form.layout == "int" else minifloat_levels
        scale, zero = best_grid(matrix, form, levels)
        plain, below, above = levels(matrix, scale, zero, form)
        found = plain
        if known is not None and self.steps:
            hard = learnt(matrix, below, above, known, self.steps, self.lr)
            better = output_error(hard - matrix, known) < output_error(plain - matrix, known)
            found = torch.where(better[..., None], hard, plain)
        return exact_codes(found, scale, zero, form)


def integer_levels(matrix: Tensor, scale: Tensor, zero: Tensor | None, form: Format) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest number of the grid, and those below and above, for each of (..., N, C)."""
    top, s = 2**form.bits - 1, scale.float()[..., None]
    centre: Any = 2 ** (form.bits - 1) if zero is None else zero[..., None].float()
    v = in_groups(matrix, form) / s
    codes = (v.round() + centre, v.floor() + centre, v.floor() + centre + 1)
    plain, below, above = (((q.clamp(0, top) - centre) * s).flatten(-2) for q in codes)
    return plain, below, above


def minifloat_levels(matrix: Tensor, scale: Tensor, zero: Tensor | None, form: Format) -> tuple[Tensor, Tensor, Tensor]:
    """The same of floating-point numbers, whose steps differ from binade to binade."""
    kind = _minifloat(form).kind
    positive = kind.numbers().to(matrix)
    every, s = torch.cat([-positive[1:].flip(0), positive]), scale.float()[..., None]
    v = in_groups(matrix, form) / s
    place = torch.searchsorted(every, v.contiguous(), right=True)  # of the first above
    below, above = (every[(place + by).clamp(0, len(every) - 1)] for by in (-1, 0))
    plain = kind.round(v, saturate=True)
    return (plain * s).flatten(-2), (below * s).flatten(-2), (above * s).flatten(-2)


def best_grid(matrix: Tensor, form: Format, levels: Any) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros (..., N, G) of the share of each group's range that leaves the least squared error."""
    whole, zero = grid(matrix, form) if form.layout == "int" else (_largest_scale(matrix, form), None)
    best, least = whole, torch.full_like(whole, torch.inf, dtype=torch.float32)
    for share in (1.0, *(index / 100 for index in range(10, 121))):
        scale = (whole.float() * share).to(SCALES[form.scale_dtype])
        error = in_groups(levels(matrix, scale, zero, form)[0] - matrix, form).square().sum(-1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best, zero


def learnt(matrix: Tensor, below: Tensor, above: Tensor, moment: Tensor, steps: int, lr: float) -> Tensor:
    """The matrices (..., N, C) of the neighbours that were chosen."""
    gap = above - below
    share = torch.where(gap > 0, (matrix - below) / gap.clamp(min=torch.finfo(gap.dtype).tiny), 0.0).clamp(0.01, 0.99)
    soft = torch.logit((share + (STRETCH - 1) / 2) / STRETCH)
    whole = (gap.square() * moment.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).sum(-1)  # the error of a whole step
    scale = whole.mean().clamp(min=1e-20)
    with torch.enable_grad():
        soft.requires_grad_()
        optimizer = torch.optim.Adam([soft], lr=lr)
        for step in range(steps):
            h = opened(soft)
            error = output_error(below + h * gap - matrix, moment).sum() / scale
            done = step / max(1, steps - 1)
            beta = SOFTEST + (SHARPEST - SOFTEST) * done
            closed = (1 - (2 * h - 1).abs() ** beta).sum() if done > 0.2 else 0.0  # first the error alone
            optimizer.zero_grad()
            (error + PENALTY * closed).backward()
            optimizer.step()
    return torch.where(soft.detach() >= 0, above, below)


def opened(soft: Tensor) -> Tensor:
    """h."""
    return (STRETCH * soft.sigmoid() - (STRETCH - 1) / 2).clamp(0, 1)


def exact_codes(numbers: Tensor, scale: Tensor, zero: Tensor | None, form: Format) -> Record:
    """The record of numbers (..., N, C) that lie on its grid."""
    if form.layout == "int":
        centre: Any = 2 ** (form.bits - 1) if zero is None else zero[..., None].float()
        q = (in_groups(numbers, form) / scale.float()[..., None]).round() + centre
        return Record.of(q.flatten(-2).to(torch.uint8), scale, zero, form)
    codes = pack(_minifloat(form).codes(numbers, scale, form).flatten(-2), form.bits)
    return Record.holding(numbers.shape, form, {"codes": codes, "scale": scale})


def _minifloat(form: Format) -> MinifloatLayout:
    layout = LAYOUTS[form.layout]
    assert isinstance(layout, MinifloatLayout)
    return layout


def _largest_scale(matrix: Tensor, form: Format) -> Tensor:
    """The largest weight of a group is the largest number."""
    return stored(largest(matrix, form) / _minifloat(form).kind.largest, form)
