"""Products of odd integers, bit by bit: the signs that two planes of bits agree in are counted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.binary_matmul import unpack_planes
from zoo.kernels.dispatch import Implementation, Operation, as_given, check_shape, is_plain_step
from zoo.kernels.integer_matmul.groups import group_sums, scaled_products

SOURCE = Path(__file__).with_name("bit_serial.c")


def bit_serial_sums(
    x: Tensor, w: Tensor, mask: Tensor | None = None, *, columns: int, groups: int = 1, impl: str = "auto"
) -> Tensor:
    r"""Sums over groups of columns of products of odd integers that are kept as planes of bits, one bit a sign.

    .. math::
        P_{mng} = \sum_{i, j} 2^{i + j} \sum_{c \in g} \mu_{nc} (2 x_{mic} - 1)(2 w_{njc} - 1)
        = \sum_{i, j} 2^{i + j} (K_{ng} - 2 \, \mathrm{popcount}_g(\mu_n \wedge (x_{mi} \oplus w_{nj})))

    Args:
        x: (M, bits of x, ceil(C / 8)) uint8, of ``pack_planes``.
        w: (N, bits of w, ceil(C / 8)) uint8.
        mask: mu (N, ceil(C / 8)) uint8: weights of 0 are those without a bit; None: there are none. K counts it.
        columns: C.
        groups: G equal groups of columns; whole bytes, or one.
        impl: "auto" or the name of an implementation ("native", "reference").

    Returns:
        (M, N, G) int32, exact.

    Raises:
        ValueError: for tensors that do not fit together, or groups that are no whole bytes.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: "Efficient Arbitrary Precision Acceleration for Large Language Models on GPU Tensor Cores" (bipolar
    integers), arXiv 2409.17870.
    """
    _check("bit_serial_sums", x, w, mask, columns, groups)
    return operation.resolve(_chosen(operation, impl, x, w, mask), x.device).forward(x, w, mask, columns, groups)


def bit_serial_products(
    x: Tensor, step: Tensor, w: Tensor, scale: Tensor, mask: Tensor | None = None, *, columns: int, impl: str = "auto"
) -> Tensor:
    r"""The sums of ``bit_serial_sums``, each scaled once: :math:`y_{mn} = s_m \sum_g s_{ng} P_{mng}`.

    Args:
        x: (M, bits of x, ceil(C / 8)) uint8, of ``pack_planes``.
        step: s_m (M, 1), float32 or wider.
        w: (N, bits of w, ceil(C / 8)) uint8.
        scale: s_ng (N, G); groups are whole bytes, or one.
        mask: (N, ceil(C / 8)) uint8: weights of 0 are those without a bit; None: there are none.
        columns: C.
        impl: "auto" or the name of an implementation ("native", "reference").

    Returns:
        (M, N), of the dtype of ``step``; not differentiable.

    Raises:
        ValueError: for tensors that do not fit together, or groups that are no whole bytes.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: as of ``bit_serial_sums``.
    """
    check_shape("bit_serial_products", "step", step, "(M, 1)", len(x), 1)
    check_shape("bit_serial_products", "scale", scale, "(N, G)", len(w), None)
    _check("bit_serial_products", x, w, mask, columns, scale.shape[1])
    chosen = _chosen(products, impl, x, step, w, scale, mask)
    return products.resolve(chosen, x.device).forward(x, step, w, scale, mask, columns)


def _check(name: str, x: Tensor, w: Tensor, mask: Tensor | None, columns: int, groups: int) -> None:
    size = -(-columns // 8)
    check_shape(name, "x", x, "(M, bits, bytes)", None, None, size)
    check_shape(name, "w", w, "(N, bits, bytes)", None, None, size)
    check_shape(name, "mask", mask, "(N, bytes)", len(w), size)
    if groups < 1 or columns % groups or (groups > 1 and columns // groups % 8):
        raise ValueError(f"{name}: groups must be whole bytes, got {groups} groups of {columns} columns")
    if wrong := [t.dtype for t in (x, w, mask) if t is not None and t.dtype != torch.uint8]:
        raise ValueError(f"{name}: planes must be uint8, got {wrong[0]}")


def _chosen(operation: Operation, impl: str, *tensors: Tensor | None) -> str:
    chosen = operation.choice(impl)
    return "reference" if chosen == "auto" and not is_plain_step(chosen, *tensors) else impl


def reference(x: Tensor, w: Tensor, mask: Tensor | None, columns: int, groups: int) -> Tensor:
    """The product of the integers."""
    return group_sums(odd_integers(x, columns), _integers(w, mask, columns), groups)


def odd_integers(planes: Tensor, columns: int) -> Tensor:
    r""":math:`\sum_i 2^i (2 b_i - 1)` (..., columns) int64 of planes (..., bits, bytes)."""
    place = 2 ** torch.arange(planes.shape[-2], device=planes.device)[:, None]
    return ((unpack_planes(planes, columns).long() * 2 - 1) * place).sum(-2)


def _native(x: Tensor, w: Tensor, mask: Tensor | None, columns: int, groups: int) -> Tensor:
    found = torch.empty(len(x), len(w), groups, dtype=torch.int32, device=x.device)
    native.call(
        SOURCE, "bit_serial", len(w), columns, x.shape[1], w.shape[1], groups, torch.get_num_threads(), len(x),
        x.contiguous(), w.contiguous(), mask if mask is None else mask.contiguous(), found,
    )  # fmt: skip
    return found


def _native_products(x, step, w, scale, mask, columns: int) -> Tensor:
    y = torch.empty(len(x), len(w), dtype=torch.float32, device=x.device)
    native.call(
        SOURCE, "bit_serial_products", len(w), columns, x.shape[1], w.shape[1], scale.shape[1],
        torch.get_num_threads(), len(x), x.contiguous(), w.contiguous(), mask if mask is None else mask.contiguous(),
        scale.float().contiguous(), step.float().contiguous(), y,
    )  # fmt: skip
    return y.to(step.dtype)


def reference_products(x, step, w, scale, mask, columns: int) -> Tensor:
    """The products of the integers, of some rows of w after another."""
    return scaled_products(odd_integers(x, columns), step, scale, lambda rows: _integers(w, mask, columns, rows))


def _integers(w: Tensor, mask: Tensor | None, columns: int, rows: slice = slice(None)) -> Tensor:
    """Those rows of a matrix (-, columns)."""
    found = odd_integers(w[rows], columns)
    return found if mask is None else found * unpack_planes(mask[rows], columns)


def _obstacle(device: torch.device) -> str | None:
    return native.obstacle(SOURCE, device)


operation = Operation(
    "bit_serial_sums",
    Implementation("native", _native, obstacle=_obstacle, prepare=as_given),
    Implementation("reference", reference, prepare=as_given),
)
products = Operation(
    "bit_serial_products",
    Implementation("native", _native_products, obstacle=_obstacle, prepare=as_given),
    Implementation("reference", reference_products, prepare=as_given),
)
