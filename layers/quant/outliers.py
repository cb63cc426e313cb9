"""Numbers of a matrix that are kept as they are, beside codes that stand for 0 in their places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype


def cut(matrix: Tensor, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The ``count`` largest numbers of each matrix (..., N, C) taken out: what is left, with zeros there, and their
    places n C + c, rising, and values."""
    flat = matrix.flatten(-2)
    place = flat.abs().topk(count).indices.sort().values
    rest = flat.scatter(-1, place, 0.0).view(matrix.shape)
    return rest, {"outlier_index": place.to(torch.int32), "outlier_value": flat.gather(-1, place)}


def add_outliers(
    w: Tensor, shape: Sequence[int], place: Tensor, value: Tensor, rows: Tensor | int | None = None
) -> Tensor:
    """The numbers that codes stand for, with the outliers in their places.

    Args:
        w: (..., N, C), or the part of it that ``rows`` has.
        shape: of the whole.
        place, value: (..., K).
        rows: index into the first axis of the whole: matrices of a stack, or rows of the only one.
    """
    place, value = place.long(), value.to(w.dtype)
    if rows is not None and len(shape) > 2:
        place, value = place[rows], value[rows]
    elif rows is not None:
        return _add_to_rows(w, torch.as_tensor(rows, device=w.device), place, value)
    return w.flatten(-2).scatter_add(-1, place, value).view(w.shape)


def _add_to_rows(w: Tensor, rows: Tensor, place: Tensor, value: Tensor) -> Tensor:
    """Rows (..., C) with those outliers that lie in them; places rise, so that a row's lie side by side."""
    columns = w.shape[-1]
    first, end = (torch.searchsorted(place, bound) for bound in (rows * columns, (rows + 1) * columns))
    offset = torch.arange(int((end - first).max()) if rows.numel() else 0, device=w.device)
    index = first[..., None] + offset
    inside = index < end[..., None]
    index = index.clamp(max=len(place) - 1)
    return w.scatter_add(-1, place[index] % columns, value[index] * inside)


def outlier_product(x: Tensor, place: Tensor, value: Tensor, rows: int) -> Tensor:
    """What the outliers (K,) of one matrix add to the product of x (..., C): (..., rows), float32 or wider."""
    wide, place = compute_dtype(x), place.long()
    columns = x.shape[-1]
    parts = x.to(wide)[..., place % columns] * value.to(wide)
    return x.new_zeros(*x.shape[:-1], rows, dtype=wide).index_add(-1, place // columns, parts)
