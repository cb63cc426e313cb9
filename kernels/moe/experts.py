"""Expert MLPs over routed tokens: sort by expert, grouped products, weighted sum back in token order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import check_device, check_shape, compute_dtype
from zoo.kernels.moe.latent import Latent, check_latent, into_latents
from zoo.kernels.moe.op import add_bias, grouped_matmul, operation
from zoo.kernels.moe.order import TokenOrder, gather, sort_by_expert
from zoo.kernels.moe.reference import checked_bounds
from zoo.kernels.moe.routing import Routing
from zoo.kernels.stand_in import on_cpu


class Compressed(Protocol):
    """Matrices of experts that are no tensor of numbers: those of ``up`` are (E, F, D), a row for each output."""

    shape: torch.Size

    def matmul(self, x: Tensor, *, index: int) -> Tensor:
        """x (M, D) times the transpose of matrix ``index`` -> (M, F), in the dtype of x."""
        ...


Matrices = Tensor | Compressed | Latent


class MoEOutput(NamedTuple):
    """Output (M, D) in the dtype of x; number of assignments dropped for want of capacity, a 0-dim int64 tensor."""

    output: Tensor
    dropped: Tensor


def moe(
    x: Tensor,
    routing: Routing,
    up: Matrices,
    down: Matrices,
    *,
    gate: Matrices | None = None,
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
        up, gate: (E, D, F), or compressed, or ``Latent``, whose shared products are computed once a token and group.
        down: (E, F, D), or compressed, or ``Latent``. Without a gate the MLP has two layers.
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

    def mlp(into: Callable[..., Tensor], out: Callable[..., Tensor]) -> Tensor:
        hidden = into(up, up_bias)
        if gate is None:
            hidden = activation(hidden)
        else:
            opened = into(gate, gate_bias)
            hidden = activation(opened) * hidden if glu is None else glu(opened, hidden)
        return out(hidden, down, down_bias)

    if _is_small(x, routing, up, impl) and capacity is None:
        return MoEOutput(_one_token(x, routing, mlp, count(up)), routing.experts.new_zeros(()))
    rows = Rows(x, routing.experts, sort_by_expert(routing.experts, count(up), capacity=capacity), impl)
    y = rows.in_token_order(mlp(rows.into, rows.out))
    return MoEOutput(_combine(y, routing.weights).to(x.dtype), rows.order.dropped)


def count(weight: Matrices) -> int:
    """Experts that it has matrices of."""
    return len(weight.each) if isinstance(weight, Latent) else weight.shape[0]


class Rows:
    """Tokens (M, D), a row for each of their experts (M, k), sorted by expert."""

    def __init__(self, x: Tensor, experts: Tensor, order: TokenOrder, impl: str):
        self.x, self.experts, self.order, self.impl = x, experts, order, impl
        self.rows: Tensor | None = None  # (M k, D), once somebody asks for them

    def gathered(self) -> Tensor:
        """The sorted rows of the tokens themselves: (M k, D)."""
        if self.rows is None:
            self.rows = gather(self.x, self.order.order, self.order.inverse, self.experts.shape[1])
        return self.rows

    def in_token_order(self, rows: Tensor) -> Tensor:
        """Sorted rows as the assignments are numbered."""
        return gather(rows, self.order.inverse, self.order.order, 1)

    def into(self, weight: Matrices, bias: Tensor | None = None) -> Tensor:
        """The tokens' products with the matrices of their experts: (M k, F)."""
        if isinstance(weight, Latent):
            latents = into_latents(self.x, self.experts, weight, self.impl)
            return self.product(gather(latents, self.order.order, self.order.inverse, 1), weight.each, bias)
        return self.product(self.gathered(), weight, bias)

    def out(self, rows: Tensor, weight: Matrices, bias: Tensor | None = None) -> Tensor:
        """Products of hidden rows (M k, F): (M k, D)."""
        if isinstance(weight, Latent):
            latents, bounds = self.product(rows, weight.each), self.order.offsets[:: weight.group_size]
            y = grouped_matmul(latents, weight.shared, bounds, impl=self.impl)
            return y if bias is None else add_bias(y, bias, self.order.offsets)
        return self.product(rows, weight, bias)

    def product(self, rows: Tensor, weight: Tensor | Compressed, bias: Tensor | None = None) -> Tensor:
        """Each sorted row times the matrix of its expert."""
        if isinstance(weight, Tensor):
            return grouped_matmul(rows, weight, self.order.offsets, bias=bias, impl=self.impl)
        return _one_by_one(rows, weight, self.order.offsets, bias)


def _one_by_one(rows: Tensor, weight: Compressed, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """``grouped_matmul`` with compressed matrices."""
    bounds = checked_bounds(offsets, len(rows))
    found = [_product(rows[start:end], weight, bias, e) for e, (start, end) in enumerate(bounds) if end > start]
    return torch.cat([*found, rows.new_zeros(len(rows) - bounds[-1][1], weight.shape[1])])


def _is_small(x: Tensor, routing: Routing, up: Matrices, impl: str) -> bool:
    """Whether sorting would take longer than what is sorted: a decoding step on the CPU."""
    weight = up.each if isinstance(up, Latent) else up
    return (
        x.shape[0] == 1
        and on_cpu(x.device)
        and (x.dtype == weight.dtype != torch.float16 if isinstance(weight, Tensor) else True)
        and routing.experts.dtype == torch.int64
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and operation.choice(impl) == "auto"
    )


def _one_token(x: Tensor, routing: Routing, mlp: Callable[..., Tensor], num_experts: int) -> Tensor:
    """The sum over the experts of the only token, as the equation has it: (1, D)."""
    y, latents = x.new_zeros(x.shape, dtype=compute_dtype(x, routing.weights)), {}

    def into(weight: Matrices, bias: Tensor | None, expert: int) -> Tensor:
        if not isinstance(weight, Latent):
            return _product(x, weight, bias, expert)
        key = id(weight), expert // weight.group_size
        if key not in latents:
            latents[key] = x @ weight.shared[key[1]]
        return _product(latents[key], weight.each, bias, expert)

    experts = range(routing.experts.shape[1]) if x.is_meta else routing.experts[0].tolist()  # all cost the same
    for weight, expert in zip(routing.weights[0], experts, strict=True):
        if expert < num_experts:
            y += weight * mlp(partial(into, expert=expert), partial(_product, expert=expert))
    return y.to(x.dtype)


def _product(x: Tensor, weight: Matrices, bias: Tensor | None, expert: int) -> Tensor:
    if isinstance(weight, Latent):
        y = x @ weight.each[expert] @ weight.shared[expert // weight.group_size]
    else:
        y = x @ weight[expert] if isinstance(weight, Tensor) else weight.matmul(x, index=expert)
    return y if bias is None else y + bias[expert].to(y.dtype)


def _combine(rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum (M, D) of the k rows of each token (M k, D), in float32 or float64."""
    dtype = compute_dtype(rows, weights)
    return torch.bmm(weights[:, None].to(dtype), rows.unflatten(0, weights.shape).to(dtype))[:, 0]


def _check(x, routing, up, down, gate) -> None:
    check_shape("moe", "x", x, "(M, D)", None, None)
    check_shape("moe", "routing.weights", routing.weights, "(M, k)", x.shape[0], None)
    check_shape("moe", "routing.experts", routing.experts, "(M, k)", *routing.weights.shape)
    check_device("moe", x=x, weights=routing.weights, experts=routing.experts)
    for name, weight, inputs, into in (
        ("up", up, x.shape[1], True),
        ("gate", gate, x.shape[1], True),
        ("down", down, None, False),
    ):
        if isinstance(weight, Latent):
            check_latent(name, weight, x, inputs, into)
    sizes = {
        "up": (count(up), x.shape[1], None),
        "gate": (count(up), x.shape[1], None),
        "down": (count(up), None, None),
    }
    if isinstance(up, Tensor):
        sizes |= {"gate": tuple(up.shape), "down": (up.shape[0], up.shape[2], None)}
    plain = {name: w for name, w in (("up", up), ("gate", gate), ("down", down)) if isinstance(w, Tensor)}
    for name, weight in plain.items():
        check_shape("moe", name, weight, "(E, F, D)" if name == "down" else "(E, D, F)", *sizes[name])
    check_device("moe", x=x, **plain)
