"""The hashed lookup, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, check_shape, is_plain_step
from zoo.kernels.hashed_lookup import bag, native, reference
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation

FEW = 16  # tokens


def hashed_lookup(
    x: Tensor, tables: Tensor, *, temperature: float = 1.0, scaled: bool = False, impl: str = "auto"
) -> Tensor:
    r"""Of each part of the input its signs choose a row of a table, and its size a weight; the rows are summed.

    .. math::
        y = \sum_k w(z_k) \, T_k[h(z_k)], \quad h(z) = \sum_i 2^{\tau - 1 - i} [z_i \ge 0], \quad
        p(z) = \prod_i \frac{1}{1 + e^{-2 |z_i|}}

    where z_1, ... are the K parts of x / t, of tau channels each, and w is p, or p times the sum of :math:`|z_i|`. No
    matrix multiplies x: a token costs K (tau + D) multiplications. The codes have no gradient, x has that of w.

    Args:
        x: (..., K tau), any floating dtype; sums are float32 (float64 if an input is float64).
        tables: (K, 2^tau, D).
        temperature: t, above 0.
        scaled: w is p times the sum.
        impl: "auto" or the name of an implementation ("triton", "native", "bag", "reference"). "auto" on the CPU
            computes up to 16 tokens in C outside the operator, where nothing records, compiles or transforms them.

    Returns:
        (..., D) in the dtype of the tables.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or a temperature that is not above 0.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: Ding et al., "MemoryFormer", arXiv 2411.12992, equations 6 to 12; the scaled weight: the authors' code, after
    Zeng et al., "LookupFFN", ICML 2023.
    """
    impl = _check(x, tables, temperature, impl)
    shape, count, dim = x.shape, tables.shape[0], tables.shape[2]
    parts = x.reshape(-1, count, shape[-1] // count)
    if _is_direct(parts, tables, impl):
        return native.forward(parts.contiguous(), tables.contiguous(), temperature, scaled).view(*shape[:-1], dim)
    return _hashed_lookup(parts, tables, temperature, scaled, impl).view(*shape[:-1], dim)


operation = Operation(
    "hashed_lookup",
    triton_implementation("zoo.kernels.hashed_lookup.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle),
    Implementation("bag", bag.forward, bag.backward),
    Implementation("reference", reference.forward),
)


def _shapes(x: Tensor, tables: Tensor, temperature: float, scaled: bool) -> Like:
    """x (M, K, tau) -> (M, D)."""
    return Like(tables, (x.shape[0], tables.shape[2]))


def _flops(x, tables, *_) -> int:
    """A multiplication and an addition for each channel of x, of its weight, and for each of each row; the paper counts
    the pairs, (tau + D) K for a token."""
    return 2 * x[0] * x[1] * (x[2] + tables[2])


_hashed_lookup = define(operation, "x tables", _shapes, flops=_flops)


def _is_direct(parts: Tensor, tables: Tensor, impl: str) -> bool:
    """Whether it is a step of decoding, for which an operator takes longer than what it does."""
    plain = parts.dtype == tables.dtype == torch.float32 and is_plain_step(impl, parts, tables)
    return plain and 0 < parts.shape[0] <= FEW and native.obstacle(parts.device) is None


def _check(x, tables, temperature, impl) -> str:
    check_shape("hashed_lookup", "tables", tables, "(K, 2^tau, D)", None, None, None)
    if x.dim() == 0 or x.shape[-1] % tables.shape[0] or tables.shape[1] != 2 ** (x.shape[-1] // tables.shape[0]):
        raise ValueError(
            f"hashed_lookup: x must have K tau channels for tables (K, 2^tau, D), got x {tuple(x.shape)} and tables "
            f"{tuple(tables.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"hashed_lookup: temperature must be above 0, got {temperature}")
    return operation.check(impl, x=x, tables=tables)
