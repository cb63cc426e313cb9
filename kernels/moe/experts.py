"""Expert MLPs over routed tokens: sort by expert, grouped products, weighted sum back in token order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import check_device, check_shape, compute_dtype
from zoo.kernels.moe.op import grouped_matmul, operation
from zoo.kernels.moe.reference import checked_bounds
from zoo.kernels.moe.routing import Routing


class Compressed(Protocol):
    """Matrices of experts that are no tensor of numbers: those of ``up`` are (E, F, D), a row for each output."""

    shape: torch.Size

    def matmul(self, x: Tensor, *, index: int) -> Tensor:
        """x (M, D) times the transpose of matrix ``index`` -> (M, F), in the dtype of x."""
        ...


class TokenOrder(NamedTuple):
    """Assignments (token m, choice j), numbered n = m k + j, sorted by expert, in token order within an expert.

    ``order`` (M k,) is the number of each sorted row, ``inverse`` the row of each number; the rows of expert e lie at
    ``offsets[e]:offsets[e + 1]`` and those of no expert behind ``offsets[E]``. ``dropped`` () counts what exceeded
    the capacity.
    """

    order: Tensor
    inverse: Tensor
    offsets: Tensor
    dropped: Tensor


class MoEOutput(NamedTuple):
    """Output (M, D) in the dtype of x; number of assignments dropped for want of capacity, a 0-dim int64 tensor."""

    output: Tensor
    dropped: Tensor


def sort_by_expert(experts: Tensor, num_experts: int, *, capacity: int | None = None) -> TokenOrder:
    """Sort assignments by expert, on the device, without waiting for it.

    Args:
        experts: (M, k) int64 in [0, num_experts]; ``num_experts`` itself stands for no expert.
        capacity: largest number of assignments an expert takes, the first in token order (Switch Transformers, arXiv
            2101.03961, section 2.2); the others go to no expert. None: no limit (dropless).

    Raises:
        ValueError: for experts that are not (M, k) int64, or a capacity below 1.
    """
    check_shape("sort_by_expert", "experts", experts, "(M, k)", None, None)
    if experts.dtype != torch.int64:
        raise ValueError(f"sort_by_expert: experts must be int64, got {experts.dtype}")
    if capacity is not None and capacity < 1:
        raise ValueError(f"sort_by_expert: capacity must be at least 1, got {capacity}")
    number = torch.arange(experts.numel(), device=experts.device)
    bounds = torch.arange(num_experts + 1, device=experts.device)
    expert, order = experts.flatten().sort(stable=True)
    offsets = torch.searchsorted(expert, bounds)
    dropped = offsets.new_zeros(())
    if capacity is not None:
        over = (number - offsets[expert] >= capacity) & (expert < num_experts)
        dropped = over.sum()
        expert, again = expert.masked_fill(over, num_experts).sort(stable=True)
        order, offsets = order[again], torch.searchsorted(expert, bounds)
    inverse = torch.empty_like(order).scatter(0, order, number)
    return TokenOrder(order, inverse, offsets, dropped)


def moe(
    x: Tensor,
    routing: Routing,
    up: Tensor | Compressed,
    down: Tensor | Compressed,
    *,
    gate: Tensor | Compressed | None = None,
    up_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] = F.silu,
    glu: Callable[[Tensor, Tensor], Tensor] | None = None,
    capacity: int | None = None,
    impl: str = "auto",
) -> MoEOutput:
    r"""Weighted sum of the MLPs of each token's experts.

    .. math::
        y_m = \sum_j w_{mj} \, h_{e} W^{down}_{e}, \quad e = \mathrm{experts}_{mj}, \quad
        h_e = \phi(x_m W^{gate}_e) \odot x_m W^{up}_e \;\text{or}\; \phi(x_m W^{up}_e)

    Every assignment is computed (dropless) unless ``capacity`` is given. The weighted sum and all gradients gather in
    a fixed order, without atomics.

    Args:
        x: tokens (M, D), any floating dtype.
        routing: of ``top_k_routing``; only weights (M, k) and experts (M, k) are used.
        up, gate: (E, D, F), or compressed.
        down: (E, F, D), or compressed. Without a gate the MLP has two layers.
        up_bias, gate_bias: (E, F), added to the products with these matrices.
        down_bias: (E, D).
        activation: phi, elementwise.
        glu: of the products with gate and up, in place of phi of the first times the second.
        capacity: as in ``sort_by_expert``; what is dropped adds nothing to its token.
        impl: implementation of ``grouped_matmul``. "auto" on the CPU computes a single token, where no gradient is
            recorded, with torch's functions, without sorting.

    Returns:
        MoEOutput(output (M, D), dropped).

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together.

    Papers: Shazeer et al., arXiv 1701.06538; Jiang et al., arXiv 2401.04088.
    """
    _check(x, routing, up, down, gate)

    def mlp(product: Callable[..., Tensor], rows: Tensor) -> Tensor:
        hidden = product(rows, up, bias=up_bias)
        if gate is None:
            hidden = activation(hidden)
        else:
            opened = product(rows, gate, bias=gate_bias)
            hidden = activation(opened) * hidden if glu is None else glu(opened, hidden)
        return product(hidden, down, bias=down_bias)

    if _is_small(x, routing, up, impl) and capacity is None:
        return MoEOutput(_one_token(x, routing, mlp, up.shape[0]), routing.experts.new_zeros(()))
    top_k = routing.experts.shape[1]
    order, inverse, offsets, dropped = sort_by_expert(routing.experts, up.shape[0], capacity=capacity)
    rows = _Gather.apply(x, order, inverse, top_k)  # (M k, D)

    def product(rows: Tensor, weight: Tensor | Compressed, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor):
            return grouped_matmul(rows, weight, offsets, bias=bias, impl=impl)
        return _one_by_one(rows, weight, offsets, bias)

    rows = mlp(product, rows)
    return MoEOutput(_combine(_Gather.apply(rows, inverse, order, 1), routing.weights).to(x.dtype), dropped)


def _one_by_one(rows: Tensor, weight: Compressed, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """``grouped_matmul`` with compressed matrices."""
    bounds = checked_bounds(offsets, len(rows))
    found = [_product(rows[start:end], weight, e, bias) for e, (start, end) in enumerate(bounds) if end > start]
    return torch.cat([*found, rows.new_zeros(len(rows) - bounds[-1][1], weight.shape[1])])


def _is_small(x: Tensor, routing: Routing, up: Tensor | Compressed, impl: str) -> bool:
    """Whether sorting would take longer than what is sorted: a decoding step on the CPU."""
    return (
        x.shape[0] == 1
        and x.device.type == "cpu"
        and (x.dtype == up.dtype != torch.float16 if isinstance(up, Tensor) else True)
        and routing.experts.dtype == torch.int64
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and operation.choice(impl) == "auto"
    )


def _one_token(x: Tensor, routing: Routing, mlp: Callable[..., Tensor], num_experts: int) -> Tensor:
    """The sum over the experts of the only token, as the equation has it: (1, D)."""
    y = x.new_zeros(x.shape, dtype=compute_dtype(x, routing.weights))
    for weight, expert in zip(routing.weights[0], routing.experts[0].tolist(), strict=True):
        if expert < num_experts:
            y += weight * mlp(partial(_product, expert=expert), x)
    return y.to(x.dtype)


def _product(x: Tensor, weight: Tensor | Compressed, expert: int, bias: Tensor | None = None) -> Tensor:
    y = x @ weight[expert] if isinstance(weight, Tensor) else weight.matmul(x, index=expert)
    return y if bias is None else y + bias[expert].to(y.dtype)


def _combine(rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum (M, D) of the k rows of each token (M k, D), in float32 or float64."""
    dtype = compute_dtype(rows, weights)
    return torch.bmm(weights[:, None].to(dtype), rows.unflatten(0, weights.shape).to(dtype))[:, 0]


class _Gather(torch.autograd.Function):
    """x[index // copies] where ``index`` is a permutation: the gradient gathers by the inverse, it does not scatter."""

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor, copies: int) -> Tensor:
        return x.index_select(0, index // copies)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, inverse, ctx.copies = inputs
        ctx.save_for_backward(inverse)

    @staticmethod
    def backward(ctx, dy):
        (inverse,) = ctx.saved_tensors
        dx = dy.index_select(0, inverse)
        if ctx.copies > 1:
            dx = dx.unflatten(0, (dx.shape[0] // ctx.copies, ctx.copies)).sum(1)
        return dx, None, None, None


def _check(x, routing, up, down, gate) -> None:
    check_shape("moe", "x", x, "(M, D)", None, None)
    check_shape("moe", "routing.weights", routing.weights, "(M, k)", x.shape[0], None)
    check_shape("moe", "routing.experts", routing.experts, "(M, k)", *routing.weights.shape)
    check_device("moe", x=x, weights=routing.weights, experts=routing.experts)
    if isinstance(up, Tensor):
        check_shape("moe", "up", up, "(E, D, F)", None, x.shape[1], None)
        check_shape("moe", "gate", gate, "(E, D, F)", *up.shape)
        check_shape("moe", "down", down, "(E, F, D)", up.shape[0], up.shape[2], None)
        check_device("moe", x=x, up=up, gate=gate, down=down)
