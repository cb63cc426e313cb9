"""What sees, and may change, the step sizes of a Mamba or Mamba-2 mixer before its scan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.precision import KeepsFloat32


class StepRule(KeepsFloat32):
    """Called with step sizes (B, T, C), their bias and softplus applied; returns those that the scan takes."""

    def applies(self, length: int) -> bool:
        """Whether it is called for a call of so many steps; where not, the mixer is as without it."""
        return True

    def forward(self, dt: Tensor) -> Tensor:
        """dt (B, T, C) -> the same."""
        return dt


class StepFilter(StepRule):
    r"""Steps that are too small are skipped: they neither add to a channel's memory nor let it decay.

    .. math::
        \Delta'_t = \Delta_t \text{ where } \Delta_t > g(L) \text{, else } 0

    with a threshold g a channel, of the length among ``lengths`` that is nearest to the steps L of the call; none up to
    the length trained on, and where that is the nearest. The convolution and the skip connection see every step.

    Args:
        channels: C.
        trained: steps of the sequences trained on.
        lengths: those that there are thresholds for.

    Attributes:
        threshold: (len(lengths), C), 0 at first.

    Paper: Ye et al., "LongMamba", arXiv 2504.16053.
    """

    float32_buffers = ("threshold",)
    threshold: Tensor

    def __init__(self, channels: int, trained: int, lengths: tuple[int, ...]):
        super().__init__()
        self.trained, self.lengths = trained, lengths
        self.register_buffer("threshold", torch.zeros(len(lengths), channels))

    def nearest(self, length: int) -> int | None:
        """Which of the lengths; None for the one trained on."""
        if length <= self.trained:
            return None
        known = (self.trained, *self.lengths)
        place = min(range(len(known)), key=lambda index: abs(known[index] - length))
        return place - 1 if place else None

    def applies(self, length: int) -> bool:
        """Beyond the length trained on alone."""
        return self.nearest(length) is not None

    def forward(self, dt: Tensor) -> Tensor:
        """dt (B, T, C) -> the same."""
        index = self.nearest(dt.shape[1])
        return dt if index is None else dt.masked_fill(dt <= self.threshold[index].to(dt.dtype), 0.0)


class Watch(StepRule):
    """Keeps the step sizes that it is called with, before another rule where there is one."""

    def __init__(self, rule: StepRule | None):
        super().__init__()
        self.rule = rule
        self.seen: list[Tensor] = []

    def forward(self, dt: Tensor) -> Tensor:
        """dt (B, T, C) -> the same, or what the other rule makes of it."""
        self.seen.append(dt.detach())
        return self.rule(dt) if self.rule is not None and self.rule.applies(dt.shape[1]) else dt


def selective(model: nn.Module) -> dict[str, Any]:
    """Name -> mixer of a model's Mamba and Mamba-2 mixers.

    Raises:
        ValueError: where there is none.
    """
    found = {name: module for name, module in model.named_modules() if hasattr(module, "step_rule")}
    if not found:
        raise ValueError(f"{type(model).__name__} has no Mamba or Mamba-2 mixer, whose step sizes depend on the input")
    return found


@contextmanager
def watching(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within it the step sizes of every call are kept, by the name of the mixer."""
    mixers = selective(model)
    rules = {name: mixer.step_rule for name, mixer in mixers.items()}
    watches = {name: Watch(rule) for name, rule in rules.items()}
    try:
        for name, mixer in mixers.items():
            mixer.step_rule = watches[name]
        yield {name: watch.seen for name, watch in watches.items()}
    finally:
        for name, mixer in mixers.items():
            mixer.step_rule = rules[name]


def slowest(mixer: Any) -> Tensor:
    """A (C,) of each channel, of the state that decays slowest where it has several; float32 or wider, negative."""
    rates = -mixer.A_log.detach().to(torch.promote_types(mixer.A_log.dtype, torch.float32)).exp()
    return rates.amax(-1) if rates.dim() == 2 else rates
