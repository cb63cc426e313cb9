"""Tokens that choose their number of recursions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from zoo.kernels.moe import load_balance_loss, router_z_loss
from zoo.layers.depth.active import ActiveTokens
from zoo.layers.depth.recursion import Recursion, Step
from zoo.layers.depth.router import Gate, linear_router
from zoo.layers.options import require_above, require_at_least
from zoo.layers.report import over_processes

softmax: Gate = partial(torch.softmax, dim=-1)


class TokenChoice(Recursion):
    r"""Each token is given its number of recursions before the first one.

    .. math::
        p_t = \alpha \, \mathrm{softmax}(W x_t / \tau), \quad i_t = \mathrm{argmax} \, (p_t + b), \quad
        h^0_t = x_t, \quad h^{r+1}_t = f(h^r)_t \;\; (r \le i_t), \quad
        y_t = x_t + p_{t, i_t} h^{i_t + 1}_t

    It is causal, so training and sampling are the same. Padding passes no recursion. The depths are balanced by a side
    loss, or without one by the bias b: in ``after_step`` (called by ``zoo.after_step(model)`` once the optimiser has
    stepped) a depth that fewer tokens chose than the mean gains ``bias_speed``, one that more chose loses it.

    Args:
        dim: model width.
        num_recursions: R.
        scale: alpha.
        router: (dim, outputs) to what scores the depths.
        gate: in place of the softmax; the authors also tried sigmoid, with alpha 0.1.
        temperature: tau.
        balance_weight: of the side loss "depth_balance", R times the sum over the depths of share of tokens and mean
            probability.
        bias_speed: of loss-free balance, in place of the side loss; None for none.
        z_weight: of the side loss "router_z".

    Attributes:
        selection_bias: buffer b (R,), float32; None without a bias_speed.

    Papers: Bae et al., "Mixture-of-Recursions", arXiv 2507.10524, section 2.2; the intermediate h are not weighted, as
    in the authors' code. Loss-free balance: Wang et al., arXiv 2408.15664.
    """

    float32_buffers = ("selection_bias",)
    selection_bias: Tensor | None
    load: Tensor

    def __init__(
        self,
        dim: int,
        num_recursions: int,
        scale: float = 1.0,
        *,
        router: Callable[[int, int], nn.Module] = linear_router,
        gate: Gate = softmax,
        temperature: float = 1.0,
        balance_weight: float = 0.1,
        bias_speed: float | None = None,
        z_weight: float = 1e-5,
    ):
        super().__init__(num_recursions)
        require_at_least(0, balance_weight=balance_weight, z_weight=z_weight)
        require_above(0, temperature=temperature, **({} if bias_speed is None else {"bias_speed": bias_speed}))
        self.scale, self.gate, self.temperature = scale, gate, temperature
        self.balance_weight, self.bias_speed, self.z_weight = balance_weight, bias_speed, z_weight
        self.router = router(dim, num_recursions)
        self.register_buffer("selection_bias", None if bias_speed is None else torch.zeros(num_recursions))
        self.register_buffer("load", torch.zeros(num_recursions, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, tokens: ActiveTokens, step: Step, *, sampling: bool = True) -> Tensor:
        """See ``Recursion``."""
        score = self.router(x / self.temperature)  # (B, T, R)
        chance = self.scale * self.gate(score)
        depth = (chance if self.selection_bias is None else chance + self.selection_bias).argmax(-1)
        losses = self._losses(score, chance, depth, tokens.valid) if self.training else {}
        gate = chance.gather(-1, depth[..., None])[..., 0]
        tokens, (h, depth, gate) = tokens.keep(tokens.valid, x, depth, gate)
        active = []
        for r in range(self.num_recursions):
            tokens, (h, depth, gate) = tokens.keep(depth >= r, h, depth, gate)
            h = step(r, h, tokens)
            x = tokens.add(x, (gate * (depth == r))[..., None] * h)
            active.append(tokens)
        self.publish(active, losses)
        return x

    @torch.no_grad()
    def after_step(self) -> None:
        """b += speed * sign(mean load - load), the load being counted over the training passes since the last call."""
        if self.selection_bias is not None and self.bias_speed is not None:
            over_processes(self.load)
            load = self.load.to(self.selection_bias.dtype)
            self.selection_bias += self.bias_speed * (load.mean() - load).sign()
            self.load.zero_()

    def _losses(self, score: Tensor, chance: Tensor, depth: Tensor, real: Tensor) -> dict[str, Tensor]:
        mask, losses = real.flatten(), {}
        if self.bias_speed is None:
            balance = load_balance_loss(chance.flatten(0, 1), depth.view(-1, 1), mask=mask)
            losses["depth_balance"] = self.balance_weight * balance
        else:
            self.load += torch.stack([((depth == r) & real).sum() for r in range(self.num_recursions)])
        return losses | {"router_z": self.z_weight * router_z_loss(score.flatten(0, 1), mask=mask)}
