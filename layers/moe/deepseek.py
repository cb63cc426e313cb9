"""DeepSeekMoE: many narrow experts of which each token visits a few, and shared ones that all tokens visit."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo.kernels.moe import Routing, expert_utilisation, load_balance_loss, moe, top_k_routing
from zoo.layers.linear import WideLinear
from zoo.layers.mlp import SwiGLU
from zoo.layers.precision import KeepsFloat32

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class DeepSeekMoE(KeepsFloat32):
    r"""Shared experts plus the weighted sum of the ``top_k`` best of ``num_experts`` routed SwiGLU experts.

    .. math::
        s = \mathrm{score}(W_r x), \quad \mathcal{E} = \mathrm{top}_k(s + b), \quad
        y = \mathrm{shared}(x) + \lambda \sum_{e \in \mathcal{E}} w_e f_e(x), \quad
        w_e = s_e \;[\, / \textstyle\sum_{j \in \mathcal{E}} s_j ]

    With ``num_groups`` > 1 the experts come from the ``top_groups`` best groups only, a group ranked by the sum of its
    ``group_top`` largest :math:`s + b`. Every token reaches all its experts; its output depends on no other token.

    The bias b balances the load without a loss: once a training step, an expert with less than the mean load gains
    ``bias_speed`` and one with more loses it. The load is counted over the training passes since the optimiser last
    changed the router, on all processes, and the first pass after a change moves b: accumulated and recomputed passes
    see one b. Evaluation leaves it as it is.

    Attributes:
        selection_bias: buffer b (E,), float32; None without a bias_speed.
        auxiliary_losses: in training mode "load_balance" (already weighted), where its weight is not 0.
        activity: of the latest forward pass: "tokens_per_expert" (E,) int64, what was really computed; "utilisation"
            (), the exponential of the entropy of the router's choices over E: 1 when even. Not kept while exporting.

    Args:
        dim: model width D. hidden_dim: width F of an expert. num_experts: E. top_k: experts a token.
        num_shared: shared experts, one SwiGLU of width num_shared F; 0 for none.
        score: "softmax" over the experts (V2) or "sigmoid" of each (V3). normalize: divide by the sum (V3).
        scale: lambda. num_groups, top_groups, group_top: see above; group_top is 1 in V2, 2 in V3.
        bias_speed: gamma of V3, 0 to freeze the bias; None for no bias (V2).
        balance_weight: of the load-balance loss within each sequence, alpha in both papers.

    Raises:
        ValueError: for groups that do not divide the experts or hold fewer than top_k, or a negative speed or weight.

    Papers: Dai et al., "DeepSeekMoE", arXiv 2401.06066; DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434, and
    "DeepSeek-V3", arXiv 2412.19437, section 2.1.2; the bias: Wang et al., arXiv 2408.15664.
    """

    float32_buffers = ("selection_bias",)
    selection_bias: Tensor | None
    load: Tensor
    stamp: Tensor

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        *,
        num_shared: int = 1,
        score: str = "sigmoid",
        normalize: bool = True,
        scale: float = 1.0,
        num_groups: int = 1,
        top_groups: int = 1,
        group_top: int = 2,
        bias_speed: float | None = 1e-3,
        balance_weight: float = 0.0,
    ):
        super().__init__()
        if (bias_speed or 0.0) < 0 or balance_weight < 0:
            raise ValueError(
                f"bias_speed and balance_weight must not be negative, got {bias_speed} and {balance_weight}"
            )
        self.num_experts, self.top_k = num_experts, top_k
        self.bias_speed, self.balance_weight = bias_speed, balance_weight
        self.routing: dict[str, Any] = {
            "score": score, "normalize": normalize, "scale": scale, "num_groups": num_groups, "top_groups": top_groups,
            "group_top": group_top,
        }  # fmt: skip
        top_k_routing(torch.zeros(0, num_experts, device="cpu"), top_k, **self.routing)  # raises where sizes do not fit
        self.router = WideLinear(dim, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.w3 = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.shared = SwiGLU(dim, num_shared * hidden_dim) if num_shared else None
        self.register_buffer("selection_bias", None if bias_speed is None else torch.zeros(num_experts))
        self.register_buffer("load", torch.zeros(num_experts, dtype=torch.int64), persistent=False)
        self.register_buffer("stamp", torch.zeros((), dtype=torch.int64), persistent=False)
        self.auxiliary_losses: dict[str, Tensor] = {}
        self.activity: dict[str, Tensor] = {}
        for weight in (self.w1, self.w3, self.w2):
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D); where ``mask`` (B, T) is False, as for padding, no expert is visited: y = 0."""
        if self.training and self.bias_speed:
            self._move_bias()
        tokens, device = x.flatten(0, -2), x.device.type
        logits = self.router(tokens)  # (M, E)
        low = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if low else x.dtype
        with torch.autocast(device, enabled=False):
            routing = top_k_routing(logits, self.top_k, bias=self.selection_bias, **self.routing)
            visited = routing.experts
            if mask is not None:
                visited = visited.masked_fill(~mask.flatten()[:, None], self.num_experts)
            w1, w3, w2 = (weight.to(dtype) if low else weight for weight in (self.w1, self.w3, self.w2))
            y = moe(tokens.to(dtype), routing._replace(experts=visited), w3, w2, gate=w1).output
        if not torch.compiler.is_exporting():
            self._publish(routing, visited, mask, x.shape[0])
        y = y.view(x.shape)
        if self.shared is None:
            return y
        shared = self.shared(x)
        return y + (shared if mask is None else shared.masked_fill(~mask[..., None], 0.0))

    @torch.no_grad()
    def _move_bias(self) -> None:
        """b += speed * sign(mean load - load) if the router's weights changed since the load was counted."""
        assert self.selection_bias is not None and self.bias_speed is not None
        weight = self.router.weight.detach()
        stamp = weight.view(_BITS[weight.element_size()]).sum()
        changed = stamp != self.stamp
        load = self.load.to(self.selection_bias.dtype)
        self.selection_bias += changed * self.bias_speed * (load.mean() - load).sign()
        self.load *= ~changed
        self.stamp.copy_(stamp)

    def _publish(self, routing: Routing, visited: Tensor, mask: Tensor | None, batch: int) -> None:
        _, entropy, counts = expert_utilisation(visited, self.num_experts)
        self.activity = {"tokens_per_expert": counts, "utilisation": entropy.exp() / self.num_experts}
        self.auxiliary_losses = {}
        if not self.training:
            return
        if self.bias_speed:
            load = counts.clone()
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(load)
            self.load += load
        if self.balance_weight:
            scores = routing.scores / routing.scores.sum(-1, keepdim=True)
            kept = [None] * batch if mask is None else mask
            parts = zip(scores.unflatten(0, (batch, -1)), routing.experts.unflatten(0, (batch, -1)), kept, strict=True)
            loss = torch.stack([load_balance_loss(s, experts, mask=m) for s, experts, m in parts]).mean()
            self.auxiliary_losses["load_balance"] = self.balance_weight * loss / self.top_k

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of the layer do without the latest forward pass, whose tensors may hold a graph."""
        return self.__dict__ | {"auxiliary_losses": {}, "activity": {}}
