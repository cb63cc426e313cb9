"""A matrix without its zeros, in the place of a weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.kernels.sparse_matmul import compress, dense, row_starts, sparse_matmul
from zoo.layers.sparse.pattern import Pattern


class SparseMatrix(nn.Module):
    """A matrix (N, C) or several (E, N, C), of which the places of a pattern have numbers.

    It is empty until ``fill`` or a state dict. The numbers learn; where there is none there never will be one.

    Args:
        shape: (N, C) or (E, N, C).
        pattern: how many numbers there are.
        like: whose device and dtype they have, and whether they learn.
    """

    mask: Tensor
    start: Tensor | None

    def __init__(self, shape: Sequence[int], pattern: Pattern, like: Tensor):
        super().__init__()
        *batch, rows, columns = shape
        self.shape, self.pattern = torch.Size(shape), pattern
        device = None if like.is_meta else like.device  # where a checkpoint's tensors will come
        values = torch.zeros(*batch, pattern.count(rows, columns), dtype=like.dtype, device=device)
        self.values = nn.Parameter(values, like.requires_grad)
        self.register_buffer("mask", torch.zeros(*batch, rows, -(-columns // 8), dtype=torch.uint8, device=device))
        start = None if pattern.even else torch.zeros(*batch, rows + 1, dtype=torch.int32, device=device)
        self.register_buffer("start", start)

    @torch.no_grad()
    def fill(self, matrices: Tensor, score: Tensor) -> None:
        """Keep those of the numbers (N, C) or (E, N, C) that have the largest scores in the pattern."""
        for index in range(self.shape[0]) if len(self.shape) > 2 else [...]:
            mask, values = compress(matrices[index], self.pattern.choose(score[index]))
            self.mask[index].copy_(mask)
            self.values[index].copy_(values)
            if self.start is not None:
                self.start[index].copy_(row_starts(mask, self.shape[-1]))

    def matmul(self, x: Tensor, bias: Tensor | None = None, index: int | None = None) -> Tensor:
        """x (..., C) times the transpose of the matrix, of matrix ``index`` where there are several -> (..., N)."""
        values, mask, start = (
            t if t is None or index is None else t[index] for t in (self.values, self.mask, self.start)
        )
        return sparse_matmul(x, values, mask, start, bias=bias)  # type: ignore[arg-type]

    def dense(self) -> Tensor:
        """The numbers (N, C) or (E, N, C), zeros among them."""
        if len(self.shape) == 2:
            return dense(self.values, self.mask, self.shape[1])
        return torch.stack([dense(v, m, self.shape[-1]) for v, m in zip(self.values, self.mask, strict=True)])

    def num_idle(self, active: int) -> int:
        """Numbers of the experts that a token does not visit."""
        return (len(self.values) - active) * self.values[0].numel()

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.nbytes for t in self.state_dict().values())

    def extra_repr(self) -> str:
        """Shape and pattern."""
        return f"{tuple(self.shape)}, {self.pattern}"
