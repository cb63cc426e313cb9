"""DeepSeekMoE: many narrow experts of which each token visits a few, and shared ones that all tokens visit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels.moe import Routing, load_balance_loss, top_k_routing
from zoo.layers.linear import WideLinear
from zoo.layers.mlp import SwiGLU
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.report import is_exporting, over_processes


class DeepSeekMoE(RoutedExperts):
    r"""Shared experts plus the weighted sum of the ``top_k`` best of ``num_experts`` routed SwiGLU experts.

    .. math::
        s = \mathrm{score}(W_r x), \quad \mathcal{E} = \mathrm{top}_k(s + b), \quad
        y = \mathrm{shared}(x) + \lambda \sum_{e \in \mathcal{E}} w_e f_e(x), \quad
        w_e = s_e \;[\, / \textstyle\sum_{j \in \mathcal{E}} s_j ]

    With ``num_groups`` > 1 the experts come from the ``top_groups`` best groups only, a group ranked by the sum of its
    ``group_top`` largest :math:`s + b`. Every token reaches all its experts; its output depends on no other token.

    The bias b balances the load without a loss: in ``after_step`` (called by ``zoo.after_step(model)`` once the
    optimiser has stepped) an expert with less than the mean load gains ``bias_speed`` and one with more loses it. The
    load is counted over the training passes since then, on all processes: accumulated and recomputed passes see one b.

    Attributes:
        selection_bias: buffer b (E,), float32; None without a bias_speed. auxiliary_losses: in training mode
            "load_balance" (already weighted), where its weight is not 0. activity: of the latest forward pass:
            "tokens_per_expert" (E,) int64, what was really computed; "utilisation" (), the exponential of the entropy
            of the router's choices over E: 1 when even. Not kept while exporting.

    Args:
        dim: model width D.
        hidden_dim: width F of an expert.
        num_experts: E.
        top_k: experts a token.
        num_shared: shared experts, one SwiGLU of width num_shared F; 0 for none.
        shared: (..., D) -> (..., D), in place of them.
        score: "softmax" over the experts (V2) or "sigmoid" of each (V3).
        normalize: divide by the sum (V3).
        scale: lambda.
        num_groups, top_groups, group_top: see above; group_top is 1 in V2, 2 in V3.
        bias_speed: gamma of V3, 0 to freeze the bias; None for no bias (V2).
        balance_weight: of the load-balance loss within each sequence, alpha in both papers. V2's (softmax, no bias)
            counts the experts that were chosen, V3's the top_k best by the score alone, whatever bias and groups say.

    Raises:
        ValueError: for groups that do not divide the experts or hold fewer than top_k, or a negative speed or weight.

    Papers: Dai et al., "DeepSeekMoE", arXiv 2401.06066; DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, and
    "DeepSeek-V3", arXiv 2412.19437, section 2.1.2; the bias: Wang et al., arXiv 2408.15664.
    """

    float32_buffers = ("selection_bias",)
    w3: nn.Parameter
    selection_bias: Tensor | None
    load: Tensor

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        *,
        num_shared: int = 1,
        shared: nn.Module | None = None,
        score: str = "sigmoid",
        normalize: bool = True,
        scale: float = 1.0,
        num_groups: int = 1,
        top_groups: int = 1,
        group_top: int = 2,
        bias_speed: float | None = 1e-3,
        balance_weight: float = 0.0,
    ):
        super().__init__(WideLinear(dim, num_experts, bias=False), dim, hidden_dim, num_experts, top_k)
        if not ((bias_speed or 0.0) >= 0 and balance_weight >= 0):
            raise ValueError(
                f"bias_speed and balance_weight must not be negative, got {bias_speed} and {balance_weight}"
            )
        self.bias_speed, self.balance_weight = bias_speed, balance_weight
        self.routing: dict[str, Any] = {
            "score": score, "normalize": normalize, "scale": scale, "num_groups": num_groups, "top_groups": top_groups,
            "group_top": group_top,
        }  # fmt: skip
        top_k_routing(torch.zeros(0, num_experts, device="cpu"), top_k, **self.routing)  # raises where sizes do not fit
        self.shared = SwiGLU(dim, num_shared * hidden_dim) if num_shared and shared is None else shared
        self.register_buffer("selection_bias", None if bias_speed is None else torch.zeros(num_experts))
        self.register_buffer("load", torch.zeros(num_experts, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D); where ``mask`` (B, T) is False, as for padding, no expert is visited: y = 0."""
        tokens, kept = x.flatten(0, -2), None if mask is None else mask.flatten()
        routing = top_k_routing(self.router(tokens), self.top_k, bias=self.selection_bias, **self.routing)
        y = self.visit(tokens, routing, kept).output.view(x.shape)
        if not is_exporting():
            self.report(self._losses(routing, mask, x.shape[0]) if self.training else {}, self.measure(routing, kept))
            if self.training and self.bias_speed:
                self.load += self.activity["tokens_per_expert"]
        return self.add_shared(y, x, mask)

    @torch.no_grad()
    def after_step(self) -> None:
        """b += speed * sign(mean load - load)."""
        if self.selection_bias is not None and self.bias_speed:
            over_processes(self.load)
            load = self.load.to(self.selection_bias.dtype)
            self.selection_bias += self.bias_speed * (load.mean() - load).sign()
            self.load.zero_()

    def _losses(self, routing: Routing, mask: Tensor | None, batch: int) -> dict[str, Tensor]:
        """The mean over the sequences of each one's load-balance loss."""
        if not self.balance_weight or not batch:
            return {}
        as_chosen = self.routing["score"] == "softmax" and self.selection_bias is None
        experts = routing.experts if as_chosen else routing.scores.topk(self.top_k, dim=-1).indices
        scores = routing.scores / routing.scores.sum(-1, keepdim=True)
        kept = [None] * batch if mask is None else mask
        parts = zip(scores.unflatten(0, (batch, -1)), experts.unflatten(0, (batch, -1)), kept, strict=True)
        loss = torch.stack([load_balance_loss(s, e, mask=m) for s, e, m in parts]).mean()
        return {"load_balance": self.balance_weight * loss / self.top_k}
