"""Feed-forward layers of which each token uses a few groups of channels (MoHD)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.moe import Routing
from zoo.layers.linear import WideLinear
from zoo.layers.lowrank.monarch import Monarch
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.moe.sub_dimensions import (
    IntoLinear,
    OutOfLinear,
    SubDimensionRouter,
    check_groups,
    sub_dimension_gates,
    sub_dimension_report,
)


class SubDimensionMLP(nn.Module):
    r"""SwiGLU that reads and writes the groups of the hidden dimension that a token uses.

    .. math::
        y = F \, W_2 (\mathrm{silu}(W_1 \hat x) \odot W_3 \hat x)

    with :math:`\hat x` of the router, and the grouped fusion F, a ``Monarch`` over the groups, by which those that the
    token does not use hear of the others.

    Args:
        dim: D.
        hidden_dim: F.
        router: chooses the groups.

    Paper: Chen et al., "Mixture of Hidden-Dimensions Transformer", arXiv 2412.05644.
    """

    def __init__(self, dim: int, hidden_dim: int, router: SubDimensionRouter):
        super().__init__()
        self.router = router
        self.w13 = IntoLinear(dim, 2 * hidden_dim, router)
        self.w2 = OutOfLinear(hidden_dim, dim, router)
        self.fusion = Monarch(dim, router.num_groups)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (..., D) -> (..., D); where ``mask`` (...) is False a token counts in no loss."""
        routed = self.router(x, mask)
        gate, up = self.w13(routed).chunk(2, dim=-1)
        return self.fusion(self.w2(F.silu(gate) * up, routed))


class SubDimensionExperts(RoutedExperts):
    r"""SwiGLU of which a token uses a few groups of the inner channels, weighed as the router of MoHD weighs them.

    .. math::
        y = \sum_i \alpha g_i W^2_i (\mathrm{silu}(W^1_i x) \odot W^3_i x)

    with s, g and :math:`\alpha` of ``SubDimensionRouter``. This is the other reading of the paper; here nothing is
    fused, for every group writes all channels.

    Attributes:
        auxiliary_losses, activity: as ``SubDimensionRouter``'s.

    Args:
        dim: D.
        hidden_dim: F, cut into N groups.
        num_groups, active, num_shared, balance_weight: as ``SubDimensionRouter``'s.

    Raises:
        ValueError: for groups that do not divide hidden_dim, or unless 1 <= num_shared < active <= num_groups.
    """

    def __init__(
        self, dim: int, hidden_dim: int, num_groups: int, active: int, num_shared: int, balance_weight: float = 0.0
    ):
        if num_groups < 1 or hidden_dim % num_groups:
            raise ValueError(
                f"num_groups must divide the inner channels, got {hidden_dim} channels, num_groups {num_groups}"
            )
        check_groups(num_groups, active, num_shared)
        router = WideLinear(dim, num_groups, bias=False)
        super().__init__(router, dim, hidden_dim // num_groups, num_groups, active)
        nn.init.normal_(router.weight, std=0.02)
        self.num_shared, self.balance_weight = num_shared, balance_weight

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (..., D) -> (..., D); where ``mask`` (...) is False, as for padding, y = 0."""
        tokens, kept = x.flatten(0, -2), None if mask is None else mask.flatten()
        scores = self.router(tokens).softmax(-1)
        usual, gates, chosen = sub_dimension_gates(scores, self.top_k, self.num_shared)
        always = torch.arange(self.num_shared, device=x.device).expand_as(usual)
        experts = torch.cat([always, chosen + self.num_shared], dim=-1)
        weight = self.balance_weight if self.training else 0.0
        self.report(*sub_dimension_report(scores, chosen, self.num_shared, weight, kept))
        return self.visit(tokens, Routing(torch.cat([usual, gates], dim=-1), experts, scores), kept).output.view(
            x.shape
        )
