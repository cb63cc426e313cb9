"""A linear layer of which some columns learn (PaCA)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.adapt.marks import device_of
from zoo.layers.options import require_at_least
from zoo.layers.precision import autocast_dtype


class PartialLinear(nn.Module):
    r"""y = x W^T + b in one product, where of W the columns of some inputs I learn and everything else is frozen.

    .. math:: W_{:, I} = P, \qquad \partial L / \partial P = (\partial L / \partial y)^T x_I

    For the backward pass the chosen inputs are kept, not all of them. At first P is what these columns were, and
    ``plain()`` computes the same, bit for bit, whatever P has learnt.

    Args:
        layer: whose parameters it takes over, frozen.
        index: I (r,), int64.

    Raises:
        ValueError: for no column.

    Paper: Woo et al., "PaCA: Partial Connection Adaptation for Efficient Fine-Tuning", arXiv 2503.01905.
    """

    index: Tensor

    def __init__(self, layer: nn.Linear, index: Tensor):
        super().__init__()
        require_at_least(1, rank=len(index))
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("index", index.to(device_of(layer.weight)))
        self.columns = nn.Parameter(layer.weight.detach()[:, index].contiguous())
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), under autocast in its dtype."""
        low = autocast_dtype(x.device.type)
        parts = x, self.weight, self.columns, self.bias
        x, weight, columns, bias = (p if p is None or low is None else p.to(low) for p in parts)
        return _PartialProduct.apply(x, weight, columns, self.index, bias)  # type: ignore[return-value]

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """A linear layer of the matrix with the columns in it."""
        with torch.device("meta"):
            made = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        made.weight, made.bias = nn.Parameter(_matrix(self.weight, self.columns, self.index)), self.bias
        return made


class _PartialProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, columns: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, _matrix(weight, columns, index), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, columns, index, _ = inputs
        ctx.save_for_backward(x[..., index], weight, columns, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (dy,), (chosen, weight, columns, index) = gradients, ctx.saved_tensors
        dx = dy @ _matrix(weight, columns, index) if ctx.needs_input_grad[0] else None
        rows = dy.flatten(0, -2)
        return (
            dx,
            None,
            rows.mT @ chosen.flatten(0, -2) if ctx.needs_input_grad[2] else None,
            None,
            rows.sum(0) if ctx.needs_input_grad[4] else None,
        )


def _matrix(weight: Tensor, columns: Tensor, index: Tensor) -> Tensor:
    return weight.index_copy(1, index, columns)
