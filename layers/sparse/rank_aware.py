"""A matrix of which a token reads the rows of its largest inputs; of the others a product of low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import is_plain_step
from zoo.layers.linear import HeldLinear
from zoo.layers.report import Reports

FEW = 4  # tokens: with more, a product with the whole matrix takes less time


class RankAware(Reports):
    r"""A matrix W (N, C) in the place of a weight, by R-Sparse.

    .. math::
        y = W (m \odot x) + U V ((1 - m) \odot x), \quad m_c = [\, |x_c| \, \lVert W_{:c} \rVert_2 > \tau \,]

    Every call computes this. Few tokens without gradients read on the CPU the columns of W that m keeps and no others,
    which lie one after another; more tokens multiply with all of W. With tau below 0 it is the dense matrix, with U V =
    W too, whatever tau is. It is empty until ``fill`` or a state dict.

    Attributes:
        activity: "kept" (), the mean of m in the latest forward pass; absent after a step that ran as a program, which
            does not count them.

    Args:
        shape: (N, C).
        rank: of U V; 0 for none.
        like: whose device and dtype the numbers have, and whether W learns; U, V and tau do not.

    Paper: Zhang et al., "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference", arXiv 2504.19449.
    """

    norm: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, shape: Sequence[int], rank: int, like: Tensor):
        super().__init__()
        rows, columns = shape
        self.shape, self.rank = torch.Size(shape), rank
        device = None if like.is_meta else like.device  # where a checkpoint's tensors will come
        kind = {"dtype": like.dtype, "device": device}
        self.columns = nn.Parameter(torch.zeros(columns, rows, **kind), like.requires_grad)
        self.register_buffer("left", torch.zeros(rank, rows, **kind))
        self.register_buffer("right", torch.zeros(columns, rank, **kind))
        self.register_buffer("norm", torch.zeros(columns, **kind))
        self.register_buffer("threshold", torch.zeros((), **kind))

    @torch.no_grad()
    def fill(self, matrix: Tensor, left: Tensor, right: Tensor, threshold: float) -> None:
        """W (N, C), U (N, r), V (r, C) and tau."""
        self.columns.copy_(matrix.mT)
        self.left.copy_(left.mT)
        self.right.copy_(right.mT)
        self.norm.copy_(matrix.float().norm(dim=0))
        self.threshold.fill_(threshold)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., C) -> (..., N), in the dtype of x."""
        kept = ~(x.abs() * self.norm.to(x.dtype) <= self.threshold)  # and what is no number, so that it is told
        self.report({}, {"kept": kept.float().mean()})
        rows = x.reshape(-1, x.shape[-1])
        if 1 <= len(rows) <= FEW and is_plain_step("auto", rows, self.columns) and x.dtype == self.columns.dtype:
            y = gathered(rows, kept.view(rows.shape), self.columns).view(*x.shape[:-1], -1)
        else:
            y = (x * kept) @ self.columns.to(x.dtype)
        if self.rank:
            y = y + (x * ~kept) @ self.right.to(x.dtype) @ self.left.to(x.dtype)
        return y if bias is None else y + bias.to(y.dtype)

    def dense(self) -> Tensor:
        """W."""
        return self.columns.mT

    def nbytes_read(self, kept: float | None = None) -> float:
        """Bytes that a token reads of it when it keeps a share of its inputs, of the latest pass where none is given:
        its columns of W, U and V, and the norms.

        Raises:
            ValueError: without a share where the latest pass left none.
        """
        if kept is None and "kept" not in self.activity:
            raise ValueError(
                "the share of inputs that a token keeps is that of a pass of the whole model, and the latest was none, "
                "or a step of generation that ran as a program: call model(tokens) first, or give kept="
            )
        kept = self.activity["kept"].item() if kept is None else kept
        rows, columns = self.shape
        return (kept * columns * rows + self.rank * (rows + columns) + columns) * self.columns.element_size()

    def extra_repr(self) -> str:
        """Shape and rank."""
        return f"{tuple(self.shape)}, rank {self.rank}"


class RankAwareLinear(HeldLinear):
    """y = R-Sparse's product + b: ``nn.Linear``'s place."""

    weight: RankAware


def gathered(x: Tensor, kept: Tensor, columns: Tensor) -> Tensor:
    """Each row of x (M, C) times the columns (C, N) that it keeps (M, C): (M, N).

    Bags of weighted rows, of which no copy is made. Each thread sums a part of the outputs.
    """
    rows, parts = columns.shape[1], torch.get_num_threads()
    parts = parts if rows % parts == 0 else 1
    index = kept.nonzero()  # (K, 2): token, channel
    counts = torch.bincount(index[:, 0], minlength=len(x))
    start = F.pad(counts.cumsum(0), (1, 0))[:-1]  # of each token's
    value, place = x[kept], index[:, 1] * parts
    found = F.embedding_bag(
        torch.cat([place + part for part in range(parts)]),
        columns.view(-1, rows // parts),
        torch.cat([start + part * len(index) for part in range(parts)]),
        mode="sum",
        per_sample_weights=value.repeat(parts),
    )
    return found.view(parts, len(x), -1).transpose(0, 1).flatten(1)


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (N, r) and V (r, C) of the best product of that rank."""
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def rank_of(shape: Sequence[int], sparsity: float, share: float) -> int:
    """r of as many numbers as (1 - sparsity) (1 - share) of a matrix has."""
    rows, columns = shape
    return int(rows * columns * (1 - sparsity) * (1 - share) / (rows + columns))
