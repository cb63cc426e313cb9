"""Integers of 1 to 8 bits in bytes, without a bit left over.

A row lies in blocks of 128 codes, the last one shorter; rows are filled up to a multiple of 8 codes. A block of n codes
is a part of n w / 8 bytes for each width w of 8, 4, 2, 1 whose sum is the width of the codes, lowest bits first: 3 bits
are a part of 2 and a part of 1. In a part of L bytes the w bits of code k L + i are those from bit k w on of byte i, so
that one operation on whole words unpacks many codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
WIDTHS = (8, 4, 2, 1)


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of a row of ``columns`` codes."""
    return -(-columns // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes (..., C), integers in [0, 2^bits) -> (..., row_bytes(C, bits)) uint8.

    Raises:
        ValueError: for bits outside [1, 8].
    """
    check_bits("pack", bits)
    codes = torch.nn.functional.pad(codes.to(torch.uint8), (0, -codes.shape[-1] % 8))
    blocks = [
        torch.cat([_pack_part(block >> shift, width) for width, shift in _parts(bits)], dim=-1).flatten(-2)
        for block in _blocks(codes, BLOCK)
    ]
    return torch.cat(blocks, dim=-1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """packed (..., row_bytes(columns, bits)) uint8 -> codes (..., columns) uint8."""
    rows = []
    for block in _blocks(packed, BLOCK // 8 * bits):
        parts = block.split([block.shape[-1] // bits * width for width, _ in _parts(bits)], dim=-1)
        found = [_unpack_part(part, width) << shift for part, (width, shift) in zip(parts, _parts(bits), strict=True)]
        rows.append(torch.stack(found).sum(0, dtype=torch.uint8).flatten(-2))
    return torch.cat(rows, dim=-1)[..., :columns]


def check_bits(operation: str, bits: int) -> None:
    """Raise a ValueError for bits outside [1, 8]."""
    if not 1 <= bits <= 8:
        raise ValueError(f"{operation}: bits must be in [1, 8], got {bits}")


def _parts(bits: int) -> list[tuple[int, int]]:
    """(width, first bit) of the parts of a code."""
    widths = [width for width in WIDTHS if bits & width]
    return [(width, sum(widths[:index])) for index, width in enumerate(widths)]


def _blocks(rows: Tensor, size: int) -> list[Tensor]:
    """(..., n) -> whole blocks (..., n // size, size), then the rest (..., 1, n % size); neither where it is empty."""
    whole = rows.shape[-1] // size * size
    found = [rows[..., :whole].unflatten(-1, (whole // size, size))] if whole else []
    return [*found, rows[..., None, whole:]] if whole < rows.shape[-1] or not whole else found


def _pack_part(block: Tensor, width: int) -> Tensor:
    """(..., n), of which the lowest bits count -> (..., n width / 8)."""
    place = width * torch.arange(8 // width, device=block.device, dtype=torch.uint8)[:, None]
    slots = (block & 2**width - 1).unflatten(-1, (8 // width, block.shape[-1] * width // 8))
    return (slots << place).sum(-2, dtype=torch.uint8)


def _unpack_part(part: Tensor, width: int) -> Tensor:
    """(..., L) -> (..., 8 / width L)."""
    place = width * torch.arange(8 // width, device=part.device, dtype=torch.uint8)[:, None]
    return (part[..., None, :] >> place & 2**width - 1).flatten(-2)
