"""How often each token passes a shared stack of layers: recursion with early exit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.moe import load_balance_loss, router_z_loss
from zoo.layers.depth.active import ActiveTokens
from zoo.layers.linear import WideLinear
from zoo.layers.options import require_at_least
from zoo.layers.report import Reports

Step = Callable[[int, Tensor, ActiveTokens], Tensor]


class Recursion(Reports, ABC):
    """Which tokens pass recursion r = 0, 1, ... of a shared stack f, and what becomes of its output.

    Args:
        num_recursions: R, the most a token passes.

    Attributes:
        auxiliary_losses: in training mode, already weighted.
        activity: of the latest forward pass: "tokens_per_recursion" (R,) int64, what was really computed, and
            "mean_depth" (), recursions a token passed. Not kept while a program is exported.
    """

    def __init__(self, num_recursions: int):
        super().__init__()
        if num_recursions < 1:
            raise ValueError(f"num_recursions must be at least 1, got {num_recursions}")
        self.num_recursions = num_recursions

    def capacity(self, r: int, length: Any) -> Any:
        """Tokens of ``length`` that recursion r is meant to compute, (R - r) / R of them rounded down."""
        return length * (self.num_recursions - r) // self.num_recursions

    @abstractmethod
    def forward(self, x: Tensor, tokens: ActiveTokens, step: Step, *, sampling: bool = True) -> Tensor:
        """The residual stream after all recursions.

        Args:
            x: (B, T, D). tokens: all T of them; those with negative ids are padding.
            step: f of recursion r: ``step(r, h, active)`` maps the active tokens h (B, N, D) to (B, N, D).
            sampling: decide by a token and its past alone. False only in training, where the choice may look ahead.
        """

    def publish(self, active: list[ActiveTokens], losses: dict[str, Tensor], **measures: Tensor) -> None:
        """Leave side losses and measures of this forward pass, ``active`` being the tokens of each recursion."""
        counts = torch.stack([tokens.valid.sum() for tokens in active])
        depth = counts.sum() / counts[0].clamp(min=1)
        activity = {"tokens_per_recursion": counts, "mean_depth": depth, **measures}
        self.report(losses if self.training else {}, activity)


class EveryToken(Recursion):
    r"""No routing, :math:`x_{r+1} = f(x_r)` for all tokens: a recursive transformer, and with R = 1 a plain one."""

    def forward(self, x: Tensor, tokens: ActiveTokens, step: Step, *, sampling: bool = True) -> Tensor:
        """See ``Recursion``."""
        for r in range(self.num_recursions):
            x = step(r, x, tokens)
        self.publish([tokens] * self.num_recursions, {})
        return x


class ExpertChoice(Recursion):
    r"""Each recursion chooses its tokens among those of the one before.

    .. math::
        g_t = \alpha \, \sigma(w_r \cdot x_t), \quad
        x_t \leftarrow x_t + g_t \, f(x)_t \;\; (t \in \mathcal{A}_r), \quad
        \mathcal{A}_r \subseteq \mathcal{A}_{r-1}

    In training :math:`\mathcal{A}_r` are the best :math:`\lfloor T (R - r) / R \rfloor` (at least one) of each packed
    sequence, which looks ahead. The sampling form takes the tokens of which :math:`w_r \cdot x_t > 0`, in recursion 0
    all; the side loss, binary cross-entropy between the logit and the training choice, makes the two agree. f contains
    its own residual connections. Padding passes no recursion.

    Args:
        dim: model width. num_recursions: R. scale: alpha.
        auxiliary_weight: of the side loss "expert_choice", summed over the recursions.
        auxiliary_router: sample by separate weights, which see the stream without sending gradients into it, and leave
            the router to the model's loss.

    Attributes:
        activity: also "agreement" () in training: share of the decisions after recursion 0 that the sampling form
            takes in the same way.

    Paper: Bae et al., "Mixture-of-Recursions", arXiv 2507.10524, section 2.2.
    """

    def __init__(
        self,
        dim: int,
        num_recursions: int,
        scale: float = 0.1,
        *,
        auxiliary_weight: float = 1e-3,
        auxiliary_router: bool = False,
    ):
        super().__init__(num_recursions)
        require_at_least(0, auxiliary_weight=auxiliary_weight)
        self.scale, self.auxiliary_weight = scale, auxiliary_weight
        self.router = WideLinear(dim, num_recursions, bias=False)
        self.sampler = WideLinear(dim, num_recursions, bias=False) if auxiliary_router else None
        for linear in (self.router, self.sampler):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor, tokens: ActiveTokens, step: Step, *, sampling: bool = True) -> Tensor:
        """See ``Recursion``."""
        length = None if sampling else tokens.sequence_length()
        tokens, (h,) = tokens.keep(tokens.valid, x)
        active, losses, agreement = [], [], []
        for r in range(self.num_recursions):
            logits = self.router(h)[..., r]  # (B, N)
            votes = logits if self.sampler is None else self.sampler(h.detach())[..., r]
            sampled = votes > 0 if r else torch.ones_like(votes, dtype=torch.bool)
            chosen, width = sampled, None
            if length is not None:
                capacity = self.capacity(r, length.gather(1, tokens.index)).clamp(min=1)
                chosen = tokens.rank(logits) < capacity
                width = max(1, self.capacity(r, x.shape[1])) if tokens.ids is None else None
                losses.append(_choice_loss(votes, chosen, tokens.valid))
                agreement.append(_masked_mean(chosen == sampled, tokens.valid))
            gate = self.scale * logits.sigmoid()
            tokens, (h, gate) = tokens.keep(chosen, h, gate, width=width)
            update = (gate[..., None] * step(r, h, tokens)).to(h.dtype)
            x, h = tokens.add(x, update), h + update
            active.append(tokens)
        if sampling:
            self.publish(active, {})
        else:
            side = {"expert_choice": self.auxiliary_weight * torch.stack(losses).sum()}
            self.publish(active, side, agreement=torch.stack(agreement[1:] or agreement).mean())
        return x


class TokenChoice(Recursion):
    r"""Each token is given its number of recursions before the first one.

    .. math::
        p_t = \alpha \, \mathrm{softmax}(W x_t), \quad i_t = \mathrm{argmax} \, p_t, \quad
        h^0_t = x_t, \quad h^{r+1}_t = f(h^r)_t \;\; (r \le i_t), \quad
        y_t = x_t + p_{t, i_t} h^{i_t + 1}_t

    It is causal, so training and sampling are the same. Padding passes no recursion.

    Args:
        dim: model width. num_recursions: R. scale: alpha. balance_weight: of the side loss "depth_balance", R times the
            sum over the depths of share of tokens and mean probability. z_weight: of the side loss "router_z".

    Paper: Bae et al., "Mixture-of-Recursions", arXiv 2507.10524, section 2.2. The intermediate h are not weighted, as
    in the authors' code.
    """

    def __init__(
        self,
        dim: int,
        num_recursions: int,
        scale: float = 1.0,
        *,
        balance_weight: float = 0.1,
        z_weight: float = 1e-5,
    ):
        super().__init__(num_recursions)
        require_at_least(0, balance_weight=balance_weight, z_weight=z_weight)
        self.scale, self.balance_weight, self.z_weight = scale, balance_weight, z_weight
        self.router = WideLinear(dim, num_recursions, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)

    def forward(self, x: Tensor, tokens: ActiveTokens, step: Step, *, sampling: bool = True) -> Tensor:
        """See ``Recursion``."""
        logits = self.router(x)  # (B, T, R)
        scores = logits.softmax(-1)
        depth = scores.argmax(-1)
        losses = self._losses(logits, scores, depth, tokens.valid) if self.training else {}
        gate = self.scale * scores.gather(-1, depth[..., None])[..., 0]
        tokens, (h, depth, gate) = tokens.keep(tokens.valid, x, depth, gate)
        active = []
        for r in range(self.num_recursions):
            tokens, (h, depth, gate) = tokens.keep(depth >= r, h, depth, gate)
            h = step(r, h, tokens)
            x = tokens.add(x, (gate * (depth == r))[..., None] * h)
            active.append(tokens)
        self.publish(active, losses)
        return x

    def _losses(self, logits: Tensor, scores: Tensor, depth: Tensor, real: Tensor) -> dict[str, Tensor]:
        flat, mask = scores.flatten(0, 1), real.flatten()
        return {
            "depth_balance": self.balance_weight * load_balance_loss(flat, depth.view(-1, 1), mask=mask),
            "router_z": self.z_weight * router_z_loss(logits.flatten(0, 1), mask=mask),
        }


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


def _choice_loss(logits: Tensor, chosen: Tensor, valid: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits, (chosen & valid).to(logits.dtype), reduction="none")
    return _masked_mean(loss, valid)
