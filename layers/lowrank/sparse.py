"""A linear layer whose matrix is a product of two narrow ones and a few numbers at fixed places."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.linear import is_plain
from zoo.layers.options import require_above, require_at_least


class SparseLowRank(nn.Module):
    r"""A linear layer trained with r (in + out) numbers and a share of its matrix, which is never kept between steps.

    .. math::
        y = W x + b, \quad W = \frac{\alpha}{r} B A + S

    A (r, in) and B (out, r) are linear layers of their own; S has ``values`` at the places ``support`` of the flattened
    matrix, drawn once and kept in the state dict. W is made when it is needed, in the forward and again in the
    backward pass, which saves x and the parameters alone. B starts at zero, A and the values within 1 / sqrt(in).

    A step of decoding makes W too: ``merged`` gives the plain layer.

    Args:
        in_features, out_features: of the layer.
        rank: r.
        density: share of the matrix that S may fill, rounded down.
        alpha: numerator of the factor of B A.
        bias: add b.

    Raises:
        ValueError: for a rank below 1, a density outside [0, 1], or alpha not above 0.

    Paper: Han et al., "SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining", arXiv
    2406.02214.
    """

    support: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        density: float = 0.03,
        alpha: float = 16.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_options(rank, density, alpha)
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.scale = in_features, out_features, alpha / rank
        self.A = nn.Linear(in_features, rank, bias=False, **like)
        self.B = nn.Linear(rank, out_features, bias, **like)
        nn.init.zeros_(self.B.weight)
        places = in_features * out_features
        count, index = int(density * places), torch.int32 if places < 2**31 else torch.int64
        support = torch.randperm(places, device=device)[:count].sort().values.to(index)
        self.register_buffer("support", support)
        self.values = nn.Parameter(torch.empty(count, **like).uniform_(-(in_features**-0.5), in_features**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        if is_plain(self.A) and is_plain(self.B):
            return self._product(x, self.A.weight, self.B.weight, self.B.bias)
        rest = self._product(x, x.new_zeros(0, self.in_features), x.new_zeros(self.out_features, 0), None)
        return self.B(self.scale * self.A(x)) + rest

    def merged(self) -> nn.Linear:
        """The plain linear layer of the same outputs.

        Raises:
            ValueError: where A or B is wrapped or compressed.
        """
        if not (is_plain(self.A) and is_plain(self.B)):
            raise ValueError("only plain factors can be merged: merge the adapters in A and B first")
        weight = self.A.weight
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        layer = nn.Linear(self.in_features, self.out_features, self.B.bias is not None, **like)
        with torch.no_grad():
            layer.weight.copy_(dense(weight, self.B.weight, self.values, self.support, self.scale))
            if self.B.bias is not None:
                layer.bias.copy_(self.B.bias)
        return layer

    def _product(self, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return _Product.apply(x, A, B, self.values, self.support, bias, self.scale)  # type: ignore[return-value]
        return F.linear(x, dense(A, B, self.values, self.support, self.scale), bias)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, values={len(self.values)}, scale={self.scale:g}"


def check_options(rank: int, density: float, alpha: float) -> None:
    """Raise a ValueError for what no layer can have."""
    require_at_least(1, rank=rank)
    require_above(0, alpha=alpha)
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie in [0, 1], got {density}")


def dense(A: Tensor, B: Tensor, values: Tensor, support: Tensor, scale: float) -> Tensor:
    """W (out, in) = scale B A + S."""
    low = B @ (scale * A)
    return low.flatten().scatter_add(0, support.long(), values.to(low.dtype)).view_as(low)


class _Product(torch.autograd.Function):
    """y = W x + b, which saves x and what W is made of, never W."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, A, B, values, support, bias, scale):
        return F.linear(x, dense(A, B, values, support, scale), bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[override]
        x, A, B, values, support, bias = ctx.saved_tensors
        of_x, *of_matrix, _, of_bias, _ = ctx.needs_input_grad
        dx = dA = dB = dvalues = dbias = None
        rows = dy.reshape(-1, dy.shape[-1])
        if of_x:
            dx = (dy @ dense(A, B, values, support, ctx.scale).to(dy.dtype)).to(x.dtype)
        if any(of_matrix):
            dW = rows.mT @ x.reshape(-1, x.shape[-1]).to(dy.dtype)
            dA, dB = ctx.scale * B.mT.to(dy.dtype) @ dW, ctx.scale * dW @ A.mT.to(dy.dtype)
            dvalues = dW.flatten()[support.long()].to(values.dtype)
            dA, dB = dA.to(A.dtype), dB.to(B.dtype)
        if of_bias:
            dbias = rows.sum(0).to(bias.dtype)
        return dx, dA, dB, dvalues, None, dbias, None
