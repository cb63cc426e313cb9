"""A product with a matrix that is made a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

WHOLE = 1 << 22  # numbers of a matrix that is made at once: memory of more is fetched anew by each call
TILE, ROWS = 1 << 20, 64  # of a larger one that exist at a time, of a multiple of so many rows
MANY = 256  # rows of x: then a call for each part is nothing beside the product, and parts stay in a cache


def tiles(outputs: int, columns: int) -> Iterator[slice]:
    """Some rows of a matrix (N, C) after another."""
    size = max(ROWS, TILE // columns // ROWS * ROWS)
    for start in range(0, outputs, size):
        yield slice(start, start + size)


def tiled_product(x: Tensor, outputs: int, numbers: Callable[[slice], Tensor]) -> Tensor:
    """x (M, C) times the transpose of a matrix (N, C), of which ``numbers`` makes rows in the dtype of x: (M, N)."""
    if outputs * x.shape[1] <= (WHOLE if len(x) < MANY else TILE):
        return F.linear(x, numbers(slice(None)))
    y = x.new_empty(len(x), outputs)
    for rows in tiles(outputs, x.shape[1]):
        y[:, rows] = F.linear(x, numbers(rows))
    return y
