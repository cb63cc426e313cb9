"""Layers that read and write a few groups of the hidden dimension a token: some always, some as it is routed (MoHD)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype, full_precision
from zoo.kernels.moe import TokenOrder, grouped_matmul, load_balance_loss, sort_by_expert
from zoo.kernels.moe.order import gather
from zoo.layers.report import Reports, is_exporting


class Routed(NamedTuple):
    """M tokens in parts: of the groups that all use and of those that each chose.

    shared: (M, S d), the first S groups. rows: (M k, d), the chosen groups, sorted by group. chosen: (M, k), their
    numbers among the others. order: how the rows are sorted. shape: of the tokens, (..., D).
    """

    shared: Tensor
    rows: Tensor
    chosen: Tensor
    order: TokenOrder
    shape: torch.Size


def check_groups(num_groups: int, active: int, num_shared: int) -> None:
    """Raise a ValueError unless 1 <= num_shared < active <= num_groups."""
    if not 1 <= num_shared < active <= num_groups:
        raise ValueError(
            "shared groups must be at least one and fewer than the active ones, and those at most all, got "
            f"{num_shared} shared, {active} active of {num_groups}"
        )


def sub_dimension_gates(scores: Tensor, active: int, num_shared: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (M, N) -> scaled gates (M, S) of the shared groups and (M, k) of the chosen ones, and the numbers (M, k)
    of these among the others; see ``SubDimensionRouter``."""
    usual, others = scores[:, :num_shared], scores[:, num_shared:]
    best = others.topk(active - num_shared, dim=-1)
    alpha = scores.shape[1] * (usual.sum(-1, keepdim=True) + best.values.sum(-1, keepdim=True))
    return alpha * usual, alpha * best.values, best.indices


def sub_dimension_report(
    scores: Tensor, chosen: Tensor, num_shared: int, balance_weight: float = 0.0, kept: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Side losses and measures of ``SubDimensionRouter``, of the tokens that are ``kept`` (M,)."""
    others, losses = scores[:, num_shared:], {}
    if balance_weight:
        shares = others / others.sum(-1, keepdim=True)
        losses["load_balance"] = balance_weight * load_balance_loss(shares, chosen, mask=kept)
    real = torch.ones_like(chosen[:, :1]) if kept is None else kept[:, None].to(chosen.dtype)  # (M, 1)
    counts = real.new_zeros(others.shape[1]).scatter_add(0, chosen.flatten(), real.expand_as(chosen).flatten())
    counts = torch.cat([real.sum().expand(num_shared), counts])
    share = counts.sum() / (scores.shape[1] * real.sum().clamp(min=1))
    return losses, {"share": share, "tokens_per_group": counts}


class SubDimensionRouter(Reports):
    r"""Weighs the N groups of a token's hidden dimension and leaves out all but the shared and the k best others.

    .. math::
        s = \mathrm{softmax}(C x), \quad g_i = s_i \;\text{if}\; i < S \;\text{or}\; i \in \mathrm{top}_k(s_{\ge S}),
        \;\text{else}\; 0, \quad \hat x_i = \alpha g_i x_i, \quad \alpha = N \textstyle\sum_i g_i

    The activation scaling :math:`\alpha` makes :math:`\hat x = x` where all groups are on and s is uniform.

    Attributes:
        centroids: C (N, D).
        auxiliary_losses: in training mode "load_balance", already weighted, of the routed groups.
        activity: "share" (), the groups that a token uses over N; "tokens_per_group" (N,) int64.

    Args:
        dim: D.
        num_groups: N.
        active: groups a token uses.
        num_shared: S of them, which all tokens use.
        balance_weight: of the load-balance loss.

    Raises:
        ValueError: for groups that do not divide dim, or unless 1 <= num_shared < active <= num_groups.

    Paper: Chen et al., "Mixture of Hidden-Dimensions Transformer", arXiv 2412.05644; no code was published, and the
    router's and the scaling's formulas are as others describe them.
    """

    def __init__(self, dim: int, num_groups: int, active: int, num_shared: int, balance_weight: float = 0.0):
        super().__init__()
        if num_groups < 1 or dim % num_groups:
            raise ValueError(f"num_groups must divide dim, got dim {dim}, num_groups {num_groups}")
        check_groups(num_groups, active, num_shared)
        self.num_groups, self.active, self.num_shared = num_groups, active, num_shared
        self.balance_weight = balance_weight
        self.centroids = nn.Parameter(torch.empty(num_groups, dim).normal_(std=0.02))

    def scores(self, tokens: Tensor) -> Tensor:
        """s (M, N) of tokens (M, D), float32 or wider whatever the precision of the rest."""
        wide = compute_dtype(tokens)
        with full_precision(tokens.device):
            return F.linear(tokens.to(wide), self.centroids.to(wide)).softmax(-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Routed:
        """x (..., D); where ``mask`` (...) is False, as for padding, a token counts in no loss and no measure."""
        groups = x.reshape(-1, self.num_groups, x.shape[-1] // self.num_groups)  # (M, N, d)
        scores = self.scores(groups.flatten(1))
        usual, gates, chosen = sub_dimension_gates(scores, self.active, self.num_shared)
        shared, others = groups.split([self.num_shared, self.num_groups - self.num_shared], dim=1)
        shared = usual[..., None].to(x.dtype) * shared
        rows = gates[..., None].to(x.dtype) * others.take_along_dim(chosen[..., None], 1)  # (M, k, d)
        order = sort_by_expert(chosen, others.shape[1])
        if not is_exporting():
            kept = None if mask is None else mask.flatten()
            weight = self.balance_weight if self.training else 0.0
            self.report(*sub_dimension_report(scores, chosen, self.num_shared, weight, kept))
        rows = gather(rows.flatten(0, 1), order.order, order.inverse, 1)
        return Routed(shared.flatten(1), rows, chosen, order, x.shape)


class SplitLinear(nn.Module):
    """What the two layers below share: the weights of the shared groups, ``shared``, and of the others (E, ...)."""

    shared: nn.Linear
    others: nn.Parameter

    def reset_parameters(self, bound: float) -> None:
        """All weights uniform within ``bound``."""
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def num_idle_parameters(self, chosen: int) -> int:
        """Those of the groups that a token does not use, of which it has chosen so many."""
        return (len(self.others) - chosen) * self.others[0].numel()


class IntoLinear(SplitLinear):
    """y = W x of the groups of x that a token uses: their columns of W (F, D) alone are computed.

    Args:
        dim: D, of N groups of d.
        outputs: F.
        router: whose groups they are.
    """

    def __init__(self, dim: int, outputs: int, router: SubDimensionRouter):
        super().__init__()
        width = dim // router.num_groups
        self.shared = nn.Linear(width * router.num_shared, outputs, bias=False)
        self.others = nn.Parameter(torch.empty(router.num_groups - router.num_shared, width, outputs))  # (E, d, F)
        self.reset_parameters(dim**-0.5)

    def forward(self, x: Routed) -> Tensor:
        """Tokens (..., D) in parts -> (..., F)."""
        rows = grouped_matmul(x.rows, self.others.to(x.rows.dtype), x.order.offsets)  # (M k, F)
        rows = gather(rows, x.order.inverse, x.order.order, 1).unflatten(0, x.chosen.shape)
        return (self.shared(x.shared) + rows.sum(1)).view(*x.shape[:-1], self.others.shape[2])


class OutOfLinear(SplitLinear):
    """y = W h in the groups that a token uses: their rows of W (D, F) alone are computed; 0 in all others.

    Args:
        inputs: F.
        dim: D, of N groups of d.
        router: whose groups they are.
    """

    def __init__(self, inputs: int, dim: int, router: SubDimensionRouter):
        super().__init__()
        width = dim // router.num_groups
        self.shared = nn.Linear(inputs, width * router.num_shared, bias=False)
        self.others = nn.Parameter(torch.empty(router.num_groups - router.num_shared, inputs, width))  # (E, F, d)
        self.reset_parameters(inputs**-0.5)

    def forward(self, h: Tensor, x: Routed) -> Tensor:
        """h (..., F) of the tokens x -> (..., D)."""
        h, (tokens, top_k) = h.flatten(0, -2), x.chosen.shape
        rows = grouped_matmul(
            gather(h, x.order.order, x.order.inverse, top_k), self.others.to(h.dtype), x.order.offsets
        )
        rows = gather(rows, x.order.inverse, x.order.order, 1).unflatten(0, x.chosen.shape)  # (M, k, d)
        others = rows.new_zeros(tokens, len(self.others), rows.shape[-1])
        others = others.scatter(1, x.chosen[..., None].expand_as(rows), rows)
        return torch.cat([self.shared(h), others.flatten(1)], dim=-1).view(x.shape)
