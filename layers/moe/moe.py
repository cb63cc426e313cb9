"""A feed-forward layer of experts, of which each token visits a few."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.kernels.moe import Routing, load_balance_loss, router_z_loss, top_k_routing
from zoo.layers.linear import WideLinear
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.report import is_exporting


class MoE(RoutedExperts):
    r"""Weighted sum of the ``top_k`` best of ``num_experts`` SwiGLU experts.

    .. math::
        p = \mathrm{softmax}(W_r x), \quad \mathcal{E} = \mathrm{top}_k(p), \quad
        y = \sum_{e \in \mathcal{E}} w_e \, W^2_e (\mathrm{silu}(W^1_e x) \odot W^3_e x), \quad
        w_e = p_e \;[\, / \textstyle\sum_{j \in \mathcal{E}} p_j ]

    ``router`` is a Linear, evaluated in float32 whatever the precision of the rest (Switch, section 2.4).
    ``w1`` and ``w3`` (E, D, F) and ``w2`` (E, F, D) hold all experts. Every token reaches all its experts (dropless),
    so its output depends on no other token. Only with a ``capacity_factor``, and only in training mode, an expert takes
    at most ceil(capacity_factor * top_k * tokens / num_experts) tokens, the first of the flattened batch; what is
    dropped adds nothing to its token, so there a token's output depends on those before it, also in other sequences.

    Attributes:
        auxiliary_losses: in training mode, already weighted: "load_balance" and "router_z" where the weight is not 0.
        activity: of the latest forward pass: "tokens_per_expert" (E,) int64, what was really computed; "utilisation"
            (), the exponential of the entropy of the router's choices over E: 1 when even, 1/E when one expert gets
            all; "dropped" () int64, assignments beyond the capacity. Not kept while a program is exported,
            and emptied by a step of decoding that runs as a program of C.
        routing: of the latest forward pass in training mode, for a loss over several layers; else None.

    Args:
        dim: model width D.
        hidden_dim: width F of an expert.
        num_experts: E.
        top_k: experts a token.
        normalize: the weights of a token sum to 1 (Mixtral); None: where top_k > 1. With top_k 1 (Switch) the weight
            must stay the probability, through which alone the router learns from the model's loss.
        score: "softmax" over the experts, or "sigmoid" of each, whose shares the load-balance loss then reads.
        act: a function in silu's place.
        capacity_factor: None for no limit.
        balance_weight: of ``load_balance_loss``.
        z_weight: of ``router_z_loss``.
        bias: router and experts have biases.
        glu: of an expert's gate and its other half, in place of act(gate) times that.
        shared: (..., D) -> (..., D), which every token visits besides; None for nothing.

    Raises:
        ValueError: for a top_k outside [1, num_experts], a capacity_factor that is not positive or a negative weight.

    Papers: Fedus et al., "Switch Transformers", arXiv 2101.03961; Jiang et al., "Mixtral of Experts", arXiv 2401.04088;
    Zoph et al., "ST-MoE", arXiv 2202.08906 (z-loss).
    """

    w3: nn.Parameter

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        normalize: bool | None = None,
        score: str = "softmax",
        act: Callable[[Tensor], Tensor] | None = None,
        capacity_factor: float | None = None,
        balance_weight: float = 0.0,
        z_weight: float = 0.0,
        bias: bool = False,
        glu: Callable[[Tensor, Tensor], Tensor] | None = None,
        shared: nn.Module | None = None,
    ):
        router = WideLinear(dim, num_experts, bias)
        options: dict[str, Any] = {"act": act, "bias": bias, "glu": glu, "shared": shared}
        super().__init__(router, dim, hidden_dim, num_experts, top_k, **options)
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"capacity_factor must be positive, or None for no limit, got {capacity_factor}")
        if not (balance_weight >= 0 and z_weight >= 0):
            raise ValueError(
                f"loss weights must not be negative, got balance_weight {balance_weight}, z_weight {z_weight}"
            )
        self.capacity_factor = capacity_factor
        self.normalize, self.score = top_k > 1 if normalize is None else normalize, score
        top_k_routing(torch.zeros(0, num_experts, device="cpu"), top_k, score=score)  # raises for an unknown score
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.routing: Routing | None = None

    def init_weights(self) -> None:
        """Every matrix as nn.Linear's: uniform within 1 / sqrt(inputs); biases of experts 0."""
        self.router.reset_parameters()  # type: ignore[operator]
        super().init_weights()

    def forward(self, x: Tensor, mask: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
        """x (..., D) -> (..., D).

        Args:
            mask: (...); where it is False, as for padding, no expert is visited: y = 0.
            logits: (..., E), what the router made of something else than x, before.
        """
        tokens, kept = x.flatten(0, -2), None if mask is None else mask.flatten()
        capacity = self.capacity(tokens.shape[0])
        logits = cast(Tensor, self.router(tokens)) if logits is None else logits.flatten(0, -2)  # (M, E)
        routing = top_k_routing(logits, self.top_k, score=self.score, normalize=self.normalize)
        y, dropped = self.visit(tokens, routing, kept, capacity)
        if not is_exporting():
            activity = self.measure(routing, kept) | {"dropped": dropped}
            if capacity is not None:
                activity["tokens_per_expert"] = activity["tokens_per_expert"].clamp(max=capacity)
            self.report(self._losses(logits, routing, kept) if self.training else {}, activity)
            self.routing = routing if self.training else None
        return self.add_shared(y.view(x.shape), x, mask)

    def capacity(self, tokens: int) -> int | None:
        """Most tokens an expert takes of so many; None: no limit, as always in evaluation mode."""
        if self.capacity_factor is None or not self.training:
            return None
        return max(1, math.ceil(self.capacity_factor * self.top_k * tokens / self.num_experts))

    def _losses(self, logits: Tensor, routing: Routing, mask: Tensor | None) -> dict[str, Tensor]:
        losses = {}
        if self.balance_weight:
            scores = routing.scores
            if self.score == "sigmoid":
                scores = scores / scores.sum(-1, keepdim=True)
            loss = load_balance_loss(scores, routing.experts, mask=mask)
            losses["load_balance"] = self.balance_weight * loss
        if self.z_weight:
            losses["router_z"] = self.z_weight * router_z_loss(logits, mask=mask)
        return losses

    def __getstate__(self) -> dict[str, Any]:
        """As every layer that reports, without the latest routing too."""
        return super().__getstate__() | {"routing": None}
