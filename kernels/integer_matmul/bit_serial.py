"""Products of odd integers, bit by bit: the signs that two planes of bits agree in are counted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.binary_matmul import unpack_planes
from zoo.kernels.dispatch import Implementation, Operation, as_given, check_shape, is_plain_step
from zoo.kernels.integer_matmul.groups import group_sums

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
    size = -(-columns // 8)
    check_shape("bit_serial_sums", "x", x, "(M, bits, bytes)", None, None, size)
    check_shape("bit_serial_sums", "w", w, "(N, bits, bytes)", None, None, size)
    check_shape("bit_serial_sums", "mask", mask, "(N, bytes)", len(w), size)
    if groups < 1 or columns % groups or (groups > 1 and columns // groups % 8):
        raise ValueError(f"bit_serial_sums: groups must be whole bytes, got {groups} groups of {columns} columns")
    if wrong := [t.dtype for t in (x, w, mask) if t is not None and t.dtype != torch.uint8]:
        raise ValueError(f"bit_serial_sums: planes must be uint8, got {wrong[0]}")
    chosen = operation.choice(impl)
    if chosen == "auto" and not is_plain_step(chosen, x, w, mask):
        impl = "reference"
    return operation.resolve(impl, x.device).forward(x, w, mask, columns, groups)


def reference(x: Tensor, w: Tensor, mask: Tensor | None, columns: int, groups: int) -> Tensor:
    """The product of the integers."""
    left, right = odd_integers(x, columns), odd_integers(w, columns)
    return group_sums(left, right if mask is None else right * unpack_planes(mask, columns), groups)


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


operation = Operation(
    "bit_serial_sums",
    Implementation("native", _native, obstacle=lambda device: native.obstacle(SOURCE, device), prepare=as_given),
    Implementation("reference", reference, prepare=as_given),
)
