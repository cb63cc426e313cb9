"""Recursions that choose their tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.depth.active import ActiveTokens
from zoo.layers.depth.recursion import Recursion, Step
from zoo.layers.depth.router import Gate, linear_router, masked_mean
from zoo.layers.options import require_above, require_at_least


class ExpertChoice(Recursion):
    r"""Each recursion chooses its tokens among those of the one before.

    .. math::
        s_t = w_r \cdot x_t / \tau, \quad g_t = \alpha \, \sigma(s_t), \quad
        x_t \leftarrow x_t + g_t \, f(x)_t \;\; (t \in \mathcal{A}_r), \quad
        \mathcal{A}_r \subseteq \mathcal{A}_{r-1}

    In training :math:`\mathcal{A}_r` are the best :math:`\lfloor T (R - r) / R \rfloor` (at least one) of each packed
    sequence, which looks ahead. The sampling form takes the tokens of which :math:`s_t > 0`, in recursion 0 all; the
    side loss, binary cross-entropy between the score and the training choice, makes the two agree. f contains its own
    residual connections. Padding passes no recursion.

    Args:
        dim: model width.
        num_recursions: R.
        scale: alpha.
        router: (dim, outputs) to what scores the tokens. A linear one has a row a recursion; of others each recursion
            has its own.
        gate: sigma, increasing; the authors also tried tanh and the score itself.
        temperature: tau.
        auxiliary_weight: of the side loss "expert_choice", summed over the recursions.
        auxiliary_router: sample by separate weights, which see the stream without sending gradients into it, and leave
            the router to the model's loss.
        z_weight: of the side loss "router_z", the mean square of the scores, summed over the recursions.

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
        router: Callable[[int, int], nn.Module] = linear_router,
        gate: Gate = torch.sigmoid,
        temperature: float = 1.0,
        auxiliary_weight: float = 1e-3,
        auxiliary_router: bool = False,
        z_weight: float = 0.0,
    ):
        super().__init__(num_recursions)
        require_at_least(0, auxiliary_weight=auxiliary_weight, z_weight=z_weight)
        require_above(0, temperature=temperature)
        self.scale, self.gate, self.temperature = scale, gate, temperature
        self.auxiliary_weight, self.z_weight = auxiliary_weight, z_weight
        self.router = self._routers(router, dim)
        self.sampler = self._routers(router, dim) if auxiliary_router else None

    def forward(self, x: Tensor, tokens: ActiveTokens, step: Step, *, sampling: bool = True) -> Tensor:
        """See ``Recursion``."""
        length = None if sampling else tokens.sequence_length()
        tokens, (h,) = tokens.keep(tokens.valid, x)
        active, losses, agreement, squares = [], [], [], []
        for r in range(self.num_recursions):
            score = self._score(self.router, h, r)  # (B, N)
            votes = score if self.sampler is None else self._score(self.sampler, h.detach(), r)
            sampled = votes > 0 if r else torch.ones_like(votes, dtype=torch.bool)
            chosen, width = sampled, None
            if length is not None:
                capacity = self.capacity(r, length.gather(1, tokens.index)).clamp(min=1)
                chosen = tokens.rank(score) < capacity
                width = max(1, self.capacity(r, x.shape[1])) if tokens.ids is None else None
                losses.append(_choice_loss(votes, chosen, tokens.valid))
                agreement.append(masked_mean((chosen == sampled).to(score.dtype), tokens.valid))
                squares.append(masked_mean(score.square(), tokens.valid))
            gate = self.scale * self.gate(score)
            tokens, (h, gate) = tokens.keep(chosen, h, gate, width=width)
            update = (gate[..., None] * step(r, h, tokens)).to(h.dtype)
            x, h = tokens.add(x, update), h + update
            active.append(tokens)
        if sampling:
            self.publish(active, {})
        else:
            side = {"expert_choice": self.auxiliary_weight * torch.stack(losses).sum()}
            if self.z_weight:
                side["router_z"] = self.z_weight * torch.stack(squares).sum()
            self.publish(active, side, agreement=torch.stack(agreement[1:] or agreement).mean())
        return x

    def _routers(self, build: Callable[[int, int], nn.Module], dim: int) -> nn.Module:
        if build is linear_router:
            return build(dim, self.num_recursions)
        return nn.ModuleList(build(dim, 1) for _ in range(self.num_recursions))

    def _score(self, router: nn.Module, h: Tensor, r: int) -> Tensor:
        h = h / self.temperature
        return router[r](h)[..., 0] if isinstance(router, nn.ModuleList) else router(h)[..., r]


def _choice_loss(score: Tensor, chosen: Tensor, valid: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(score, (chosen & valid).to(score.dtype), reduction="none")
    return masked_mean(loss, valid)
