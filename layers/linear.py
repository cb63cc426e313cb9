"""Linear layers with a rule of precision, and what may be assumed of a linear layer that somebody may have replaced.

Layers call their linear layers and never read the weights of them, so that adapters, compressed weights and hooks in
their place are in effect everywhere. Where a fused form needs the matrix itself, ``is_plain`` says whether it is all
that there is.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.kernels import linear_cross_entropy, row_linear
from zoo.kernels.dispatch import AUTOCAST_DEVICES, compute_dtype, full_precision
from zoo.layers.precision import autocast_dtype

ROWS = 512  # whose logits exist at a time where the head has to be called
_USERS = threading.RLock()  # one thread at a time begins or ends ``decoding``
LEAST = 2**18  # numbers of a matrix of float32 that takes longer to read than ``row_linear`` to be called


class WideLinear(nn.Linear):
    """y = W x + b in float32 or wider, also in a low-precision model and under autocast: for routers.

    Paper: Fedus et al., "Switch Transformers", arXiv 2101.03961, section 2.4 (selective precision).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), float32 or wider."""
        wide = compute_dtype(x)
        with full_precision(x.device):
            return F.linear(x.to(wide), self.weight.to(wide), None if self.bias is None else self.bias.to(wide))


class WideBias(nn.Linear):
    """y = W x + b, the product in the precision of the model and the sum with a bias that outweighs it in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), float32 or wider."""
        kind = x.device.type
        low = kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind)
        if not low and compute_dtype(x) == x.dtype:
            return super().forward(x)
        product = F.linear(x, self.weight)
        return product.to(compute_dtype(product)) + self.bias


class HeldLinear(nn.Module):
    """y = x W^T + b with a matrix W that is held in another form than numbers: ``nn.Linear``'s place.

    Args:
        weight: has a ``shape`` (out, in) and ``matmul(x, bias)``.
        bias: (out,).
    """

    def __init__(self, weight: Any, bias: nn.Parameter | None = None):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x, under autocast in its dtype."""
        low = autocast_dtype(x.device.type)
        return self.weight.matmul(x if low is None else x.to(low), self.bias)


class BlockLinear(nn.Module):
    """y_k = x_k W_k + b_k over ``num_blocks`` equal parts x_k of the channels: a block-diagonal matrix.

    Args:
        dim: channels.
        num_blocks: parts.
        bias: add b.

    Raises:
        ValueError: for num_blocks that do not divide dim.
    """

    def __init__(self, dim: int, num_blocks: int, bias: bool = True):
        super().__init__()
        if num_blocks < 1 or dim % num_blocks:
            raise ValueError(f"num_blocks must divide dim, got dim {dim}, num_blocks {num_blocks}")
        size = dim // num_blocks
        self.weight = nn.Parameter(torch.empty(num_blocks, size, size).normal_(std=0.1 * size**-0.5))
        self.bias = nn.Parameter(torch.zeros(num_blocks, size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        y = torch.einsum("...ki,kij->...kj", x.unflatten(-1, self.weight.shape[:2]), self.weight)
        return (y if self.bias is None else y + self.bias).flatten(-2)


def is_plain(linear: nn.Module) -> bool:
    """Whether ``linear`` is nothing but x W^T + b: no adapter, compressed or distributed weight, or hook is in it."""
    return type(linear) is nn.Linear and _is_whole(linear) and not is_watched(linear)


def _is_whole(linear: nn.Linear) -> bool:
    """Whether its matrix is a tensor of torch's own, which is not compressed or distributed."""
    return type(linear.weight) in (Tensor, nn.Parameter)


def is_watched(module: nn.Module) -> bool:
    """Whether hooks see what ``module`` is called with, or change it."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(map(bool, hooks))


def read_matrix(linear: nn.Module, like: Tensor) -> Tensor:
    """The matrix W (out, in) of a linear layer without bias: where it is not plain, what it makes of the unit vectors.

    Args:
        linear: the layer.
        like: (..., in), an input.
    """
    if is_plain(linear):
        return linear.weight  # type: ignore[return-value]
    return linear(torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)).mT


@contextmanager
def decoding(model: nn.Module) -> Iterator[None]:
    """Within it plain linear layers compute few rows by ``row_linear``, which reads a matrix as fast as there is
    memory, unless that is less than what the call costs; whatever else replaces, wraps or watches one is in effect as
    before."""
    plain = [m for m in model.modules() if type(m) is nn.Linear and _is_whole(m) and is_own(m)]
    linears = [m for m in plain if m.weight.numel() >= LEAST or m.weight.dtype != torch.float32]
    with _USERS:
        used = [vars(linear).setdefault("forward", _FewRows(linear)) for linear in linears]
        for forward in used:
            forward.users += 1
            forward.linear.forward = forward
    try:
        yield
    finally:
        with _USERS:
            for forward in used:
                forward.users -= 1
                if not forward.users and vars(forward.linear).get("forward") is forward:
                    del vars(forward.linear)["forward"]


def is_own(linear: nn.Module) -> bool:
    """Whether nobody but ``decoding`` has replaced its ``forward``."""
    return type(vars(linear).get("forward")) in (type(None), _FewRows)


class _FewRows:
    """``forward`` of a linear layer within ``decoding``; without users, as in a copy, that of its class."""

    def __init__(self, linear: nn.Linear):
        self.linear, self.users = linear, 0

    def __call__(self, x: Tensor) -> Tensor:
        if not self.users:
            return nn.Linear.forward(self.linear, x)
        return row_linear(x, self.linear.weight, self.linear.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> _FewRows:
        return _FewRows(copy.deepcopy(self.linear, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _FewRows, (self.linear,)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """c tanh(logits / c) for a softcap c, the logits themselves without one.

    Paper: Gemma Team, "Gemma 2", arXiv 2408.00118, section 2.
    """
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def head_loss(
    head: nn.Module, hidden: Tensor, labels: Tensor, ignore_index: int = -100, softcap: float | None = None
) -> Tensor:
    r"""Mean cross-entropy in nats of a linear head's logits over the counted rows; they are never all stored.

    A plain head is fused with the loss (``linear_cross_entropy``). Any other is called on some rows after another, and
    once more in the backward pass.

    Args:
        head: (..., D) -> (..., V).
        hidden: (M, D).
        labels: (M,) int64 in [0, V), or ``ignore_index``.
        softcap: bound of the logits, see ``capped``.

    Returns:
        Scalar, float32 or wider; 0 where no row counts.
    """
    if is_plain(head):
        options: dict[str, Any] = {"bias": head.bias, "ignore_index": ignore_index, "softcap": softcap}
        return linear_cross_entropy(hidden, head.weight, labels, **options)  # type: ignore[arg-type]

    def summed(rows: Tensor, target: Tensor) -> Tensor:
        logits = capped(head(rows), softcap)
        wide = compute_dtype(logits)
        return F.cross_entropy(logits.to(wide), target, ignore_index=ignore_index, reduction="sum")

    pairs = zip(hidden.split(ROWS), labels.split(ROWS), strict=True)
    if torch.is_grad_enabled():
        parts = [checkpoint(summed, *pair, use_reentrant=False) for pair in pairs]
    else:
        parts = [summed(*pair) for pair in pairs]
    return torch.stack(parts).sum() / (labels != ignore_index).sum().clamp(min=1)  # type: ignore[arg-type]
