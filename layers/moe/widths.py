"""Which of the widths of its weights an expert computes a token with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.moe import Routing
from zoo.layers.report import Reports


class ExpertWidths(Reports):
    r"""A second router, of each expert: tokens to one of K widths in bits.

    .. math::
        p = \mathrm{softmax}(V_e x + v_e), \quad b = b_{\arg\max p}

    It starts with the last width for all. While ``soft``, a token's output is the sum over the widths weighted by p,
    through which V learns; with ``shares`` each width then takes that share of the tokens at most, those of the largest
    p, and passes the others by.

    Attributes:
        activity: "bits" (), the mean over all tokens and their experts in the latest forward pass.
        spent: while ``soft``, the mean of sum p b, with its gradient.

    Args:
        num_experts: E.
        dim: of the tokens.
        widths: bits, rising.

    Paper: "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving", arXiv 2504.15299.
    """

    def __init__(self, num_experts: int, dim: int, widths: Sequence[int]):
        super().__init__()
        self.widths, self.soft, self.spent = tuple(widths), False, torch.zeros(())
        self.shares: Sequence[float] | None = None
        self.weight = nn.Parameter(torch.zeros(num_experts, len(self.widths), dim))
        self.bias = nn.Parameter(torch.zeros(num_experts, len(self.widths)))
        nn.init.constant_(self.bias[:, -1], 1.0)

    def forward(self, tokens: Tensor, experts: Tensor) -> Tensor:
        """Tokens (M, D) and their experts (M, k), of which E is none -> p (M, k, K), float32 or wider."""
        wide, index = compute_dtype(tokens), experts.clamp(max=len(self.weight) - 1)
        logits = torch.einsum("mjkd,md->mjk", self.weight.to(wide)[index], tokens.to(wide))
        return (logits + self.bias.to(wide)[index]).softmax(-1)

    def routings(self, tokens: Tensor, routing: Routing) -> Iterator[tuple[int, Routing]]:
        """Each width that is taken and who takes it: of all others the expert is E, or the weight a part."""
        p, none = self(tokens, routing.experts), len(self.weight)
        bits = torch.tensor(self.widths, dtype=p.dtype, device=p.device)
        visited = routing.experts < none
        chosen = p.argmax(-1)
        mean = (bits[chosen] * visited).sum() / visited.sum().clamp(min=1)
        self.report({}, {"bits": mean.detach()})
        if self.soft:
            self.spent = ((p * bits).sum(-1) * visited).sum() / visited.sum().clamp(min=1)
        for place, width in enumerate(self.widths):
            if self.soft:
                taken = p[..., place]
                if self.shares is not None:
                    taken = taken * _first(taken.detach(), visited, self.shares[place])
                yield width, routing._replace(weights=routing.weights * taken)
            elif bool((taken := (chosen == place) & visited).any()):
                yield width, routing._replace(experts=routing.experts.masked_fill(~taken, none))


def _first(p: Tensor, visited: Tensor, share: float) -> Tensor:
    """Which of those that visit an expert are of the largest p: a share of them, as bool of the shape of p."""
    count = math.ceil(share * int(visited.sum()))
    best = p.masked_fill(~visited, -1.0).flatten().topk(count).indices
    return torch.zeros(p.numel(), dtype=torch.bool, device=p.device).index_fill(0, best, True).view(p.shape)
