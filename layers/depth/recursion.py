"""How often each token passes a shared stack of layers: recursion with early exit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.layers.depth.active import ActiveTokens
from zoo.layers.precision import KeepsFloat32
from zoo.layers.report import Reports

Step = Callable[[int, Tensor, ActiveTokens], Tensor]


class Recursion(Reports, KeepsFloat32, ABC):
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
            x: (B, T, D).
            tokens: all T of them; those with negative ids are padding.
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
