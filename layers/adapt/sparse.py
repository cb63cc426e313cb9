"""Linear layers with zeros, of which low ranks learn that leave the zeros where they are."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import full_precision
from zoo.layers.adapt.marks import device_of
from zoo.layers.precision import autocast_dtype
from zoo.layers.quant.between import between
from zoo.layers.sparse.masks import Mask
from zoo.layers.sparse.pattern import Pattern


def mask_of(layer: nn.Module) -> Mask | None:
    """What stands between a linear layer and its weight, where that is a mask and nothing else."""
    if not isinstance(layer, nn.Linear):
        return None
    found = [part for _, _, part in between(layer, nn.Module)]
    return found[0] if len(found) == 1 and isinstance(found[0], Mask) else None


class MaskedLoRA(nn.Module):
    r"""y = x W^T + b over a masked linear layer (``zoo.mask_weights``) and a product of low rank with its zeros.

    .. math:: W = (W_0 + \alpha / r \, B A) \odot M

    A and B learn, B is 0 at first. W is not kept, but made again for the backward pass. Merged, the layer has the same
    mask and computes the same, bit for bit.

    Args:
        layer: with a mask.
        rank, alpha: r and alpha.

    Paper: Zimmer et al., "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs", arXiv 2312.15230 (MaskLoRA).
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base_layer, self.factor = layer, alpha / rank
        self.in_features, self.out_features = layer.in_features, layer.out_features
        like = {"device": device_of(self._held.original), "dtype": self._held.original.dtype}
        self.A = nn.Parameter(torch.empty(rank, layer.in_features, **like))
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        low, held, bias = autocast_dtype(x.device.type), self._held, self.base_layer.bias
        x, bias = (part if part is None or low is None else part.to(low) for part in (x, bias))
        return _MaskedProduct.apply(x, held.original, held[0].mask, self.A, self.B, self.factor, bias)  # type: ignore[return-value]

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """A masked layer of its own with the product in the numbers beneath the mask."""
        made = copy.deepcopy(self.base_layer)
        held: Any = made.parametrizations["weight"]  # type: ignore[index]
        held.original.copy_(_moved(held.original, self.A, self.B, self.factor))
        return made

    @property
    def _held(self) -> Any:
        """The weight and its mask."""
        return self.base_layer.parametrizations.weight  # type: ignore[union-attr]


class _MaskedProduct(torch.autograd.Function):
    """x W^T + b, of which x, the parameters and the mask are kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, A: Tensor, B: Tensor, factor: float, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask, A, B)
        ctx.factor = factor
        return F.linear(x, (_moved(weight, A, B, factor) * mask).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (dy,), (x, weight, mask, A, B) = gradients, ctx.saved_tensors
        dx = dy @ (_moved(weight, A, B, ctx.factor) * mask).to(dy.dtype) if ctx.needs_input_grad[0] else None
        rows = dy.flatten(0, -2)
        G = (rows.mT @ x.flatten(0, -2)).to(weight.dtype) * mask
        dw, db = G if ctx.needs_input_grad[1] else None, rows.sum(0) if ctx.needs_input_grad[6] else None
        return dx, dw, None, ctx.factor * (B.mT @ G), ctx.factor * (G @ A.mT), None, db


def _moved(weight: Tensor, A: Tensor, B: Tensor, factor: float) -> Tensor:
    """W_0 + alpha / r B A."""
    with full_precision(weight.device):
        return weight + factor * (B @ A)


class StructuredScores(nn.Module):
    r"""y = x W^T + b with a mask that learns beside a change of low rank (PST), over a frozen layer.

    .. math::
        W' = W_0 + \beta U V, \quad S = |W'| + \alpha_1 A B + \alpha_2 (R 1^\top + 1 C^\top), \quad W = M \odot W'

    M is 1 at the places of the largest S and moves with every optimiser step (``after_step``), while the share of zeros
    grows from 0: nothing in the first tenth of ``steps``, then by a cubic to ``ratio``, which it has in the last three
    tenths and from there on. The gradient of M goes straight through to S, and so to U, V, A, B, R and C, which learn;
    U and A are normal at first, all else is 0. So S is |W| then and nothing changes.

    Args:
        layer: whose parameters it takes over, frozen.
        rank, score_rank: of U V and of A B.
        ratio: share of zeros in the end.
        steps: optimiser steps over which it grows.
        beta, alpha: factors, alpha of both.

    Paper: Li et al., "Parameter-Efficient Sparsity for Large Language Models Fine-Tuning", arXiv 2205.11005.
    """

    mask: Tensor
    done: Tensor

    def __init__(
        self, layer: nn.Linear, rank: int, score_rank: int, ratio: float, steps: int, beta: float, alpha: float
    ):
        super().__init__()
        self.ratio, self.steps, self.beta, self.alpha = ratio, steps, beta, alpha
        self.in_features, self.out_features = columns, rows = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        like: dict[str, Any] = {"device": device_of(layer.weight), "dtype": layer.weight.dtype}
        self.U, self.A = (nn.Parameter(torch.randn(rows, r, **like)) for r in (rank, score_rank))
        self.V, self.B = (nn.Parameter(torch.zeros(r, columns, **like)) for r in (rank, score_rank))
        self.R, self.C = nn.Parameter(torch.zeros(rows, 1, **like)), nn.Parameter(torch.zeros(1, columns, **like))
        self.register_buffer("mask", torch.ones(rows, columns, dtype=torch.bool, device=like["device"]))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64, device=like["device"]))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return F.linear(x, self.matrix(), self.bias)

    def matrix(self) -> Tensor:
        """W (out, in)."""
        weight = self.weight + self.beta * (self.U @ self.V)
        if not torch.is_grad_enabled():
            return weight * self.mask
        return weight * _StraightThrough.apply(self.score(weight), self.mask)

    def score(self, weight: Tensor) -> Tensor:
        """S (out, in) of W'."""
        return weight.abs() + self.alpha * (self.A @ self.B + self.R + self.C)

    @property
    def sparsity(self) -> float:
        """Share of zeros after the steps that are done."""
        grown = (int(self.done) / self.steps - 0.1) / 0.6
        return self.ratio * (1 - (1 - min(max(grown, 0.0), 1.0)) ** 3)

    @torch.no_grad()
    def after_step(self) -> None:
        """Choose the places anew; see ``zoo.after_step``."""
        self.done += 1
        score = self.score(self.weight + self.beta * (self.U @ self.V))
        self.mask.copy_(Pattern(sparsity=self.sparsity).choose(score))

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """A linear layer of W, zeros among its numbers."""
        with torch.device("meta"):
            made = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        made.weight, made.bias = nn.Parameter(self.matrix()), self.bias
        return made


class _StraightThrough(torch.autograd.Function):
    """A mask, whose gradient is the score's."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, mask: Tensor) -> Tensor:
        return mask.to(score.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradients[0], None
