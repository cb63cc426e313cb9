"""Which tokens a block works on: the best of each sequence in training, those a causal predictor names elsewhere."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.depth.active import ActiveTokens
from zoo.layers.linear import WideLinear
from zoo.layers.report import Reports
from zoo.layers.state import is_traced


class TokenRouter(Reports):
    r"""Mixture-of-Depths: a share of the tokens passes through a block f, the others keep their value.

    .. math::
        r_i = w^\top x_i \;[+\, b], \qquad x_i' = x_i + r_i \, f(\tilde X)_i \;\text{ for } i \in \mathcal{C},
        \qquad x_i' = x_i \;\text{ otherwise}

    f is the block without its residual connection and :math:`\tilde X` the chosen tokens alone, in their order. In
    training :math:`\mathcal{C}` holds the ceil(capacity * n) highest scores r of each sequence of n tokens, which
    depends on later tokens. In evaluation, and always when decoding from a state, a token is chosen where a predictor,
    an MLP on the token x_i, is positive; it learns the membership by binary cross-entropy on a stopped gradient, so
    that it does not change what the model learns (the second method of section 3.5). A capacity of 1 chooses all and
    has no predictor.

    The paper's r has no offset b. It changes no choice; b = 1 at the start makes f a plain residual block from the
    first step (w x is near 0 there and would switch f off), and w = 0, b = 1 with capacity 1 is the model without
    routing. ``bias=False`` is the paper's formula.

    A compiled or exported program needs fixed shapes: there K = T in evaluation and with ``seq_idx``, with the same
    output and no saving.

    Attributes:
        auxiliary_losses: "depth_predictor", already weighted; not when decoding.
        activity: of the latest forward pass, of all but padding: "processed" (), the share of tokens chosen, and but
            for decoding "agreement" (), the share for which predictor and highest scores agree. Not kept while a
            program is exported.

    Args:
        dim: width D.
        capacity: share of the tokens, in (0, 1].
        bias: the offset b.
        predictor_dim: hidden width of the predictor.
        predictor_weight: of its loss.

    Raises:
        ValueError: for a capacity outside (0, 1].

    Paper: Raposo et al., "Mixture-of-Depths", arXiv 2404.02258.
    """

    def __init__(
        self, dim: int, capacity: float, *, bias: bool = True, predictor_dim: int = 64, predictor_weight: float = 1.0
    ):
        super().__init__()
        if not 0 < capacity <= 1:
            raise ValueError(f"capacity, a share of the tokens, must lie in (0, 1], got {capacity}")
        self.capacity, self.predictor_weight = capacity, predictor_weight
        self.router = WideLinear(dim, 1, bias=bias)
        if bias:
            nn.init.ones_(self.router.bias)
        predictor = nn.Sequential(WideLinear(dim, predictor_dim), nn.SiLU(), WideLinear(predictor_dim, 1))
        self.predictor = predictor if capacity < 1 else None

    def forward(
        self, x: Tensor, tokens: ActiveTokens, *, decoding: bool = False
    ) -> tuple[ActiveTokens, Tensor, Tensor]:
        """Choose among the tokens x (B, T, D), within each sequence; padding never.

        Returns:
            The chosen tokens, their x (B, K, D), and their weights r (B, K) in float32 or wider.
        """
        score, real = self.router(x).squeeze(-1), tokens.valid
        if self.predictor is None:
            chosen = real
            self._publish(chosen, real)
        else:
            logit = self.predictor(x.detach()).squeeze(-1)
            best = None if decoding else top_share(score, self.capacity, tokens.ids)
            chosen = best if self.training and best is not None else (logit > 0) & real
            self._publish(chosen, real, logit, best)
        chosen_tokens, (rows, weight) = tokens.keep(chosen, x, score, width=self._most(chosen, tokens, decoding))
        return chosen_tokens, rows, weight

    def _most(self, chosen: Tensor, tokens: ActiveTokens, decoding: bool) -> int:
        """K: tokens that the row with most of them has, known without looking at them where shapes must be fixed."""
        length = chosen.shape[1]
        if self.training and tokens.ids is None and not decoding:
            return math.ceil(self.capacity * length)
        return length if is_traced(chosen) or not len(chosen) else int(chosen.sum(1).amax())

    def _publish(self, chosen: Tensor, real: Tensor, logit: Tensor | None = None, best: Tensor | None = None) -> None:
        weight = real / real.sum().clamp(min=1)
        losses, activity = {}, {"processed": (chosen * weight).sum()}
        if logit is not None and best is not None:
            loss = F.binary_cross_entropy_with_logits(logit, best.to(logit.dtype), reduction="none")
            losses["depth_predictor"] = self.predictor_weight * (loss * weight).sum()
            activity["agreement"] = (((logit > 0) == best) * weight).sum()
        self.report(losses, activity)


def top_share(score: Tensor, share: float, groups: Tensor | None = None) -> Tensor:
    """Boolean (B, T): the ceil(share * n) highest scores of each group of n tokens, of equal ones the earlier.

    Args:
        score: (B, T).
        share: in (0, 1].
        groups: (B, T) integers, tokens of a row with the same one compete; of a negative group nothing is chosen. None:
            a row is a group.

    With sequences as groups this is the choice of Mixture-of-Depths (arXiv 2404.02258). That of VideoLLM-MoD (arXiv
    2408.16730), a share of each frame's tokens and all text, is ``top_share(score, 0.2, frames) | text`` with negative
    frames on text.
    """
    groups = torch.zeros_like(score, dtype=torch.int64) if groups is None else groups
    order = score.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, groups.gather(1, order).argsort(dim=1, stable=True))  # by group, the best first
    ids = groups.gather(1, order).contiguous()
    first, end = torch.searchsorted(ids, ids), torch.searchsorted(ids, ids, right=True)
    rank = torch.arange(score.shape[1], device=score.device) - first
    chosen = (rank < (share * (end - first).double()).ceil()) & (ids >= 0)
    return torch.zeros_like(chosen).scatter(1, order, chosen)
