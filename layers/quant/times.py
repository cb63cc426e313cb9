"""Which times a model is called with, for layers whose numbers depend on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Clock:
    """The times t (B,) of the call that a model is in; its layers share one.

    A copy of the model has a copy of it, as of all that its hooks hold.
    """

    def __init__(self):
        self.times: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Clock:
        """One that sees each call of a model.

        Raises:
            ValueError: for a model that is not called with images and times.
        """
        if list(inspect.signature(model.forward).parameters)[1:2] != ["t"]:
            raise ValueError(f"ranges of times are of diffusion models, {type(model).__name__} is called without times")
        clock = cls()
        model.register_forward_pre_hook(clock.begin, with_kwargs=True)
        model.register_forward_hook(clock.end, always_call=True)
        return clock

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins."""
        given = kwargs["x"] if "x" in kwargs else args[0]
        t = kwargs.get("t", args[1] if len(args) > 1 else None)
        self.times = given.new_zeros(len(given)) if t is None else t

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """It is over, however it went."""
        self.times = None

    def by_range(self, x: Tensor, times: Sequence[float], compute: Callable[[Tensor, int], Tensor]) -> Tensor:
        """``compute(rows, range)`` of the rows of x (B, ...) in each range of times: (B, ...).

        Raises:
            RuntimeError: outside a call of the model, or for rows that are not its images.
        """
        if self.times is None or len(self.times) != len(x):
            raise RuntimeError(
                "a layer with ranges of times computes within a call of its model, a row an image: got "
                f"{len(x)} rows, {'no call' if self.times is None else len(self.times)}"
            )
        place = torch.bucketize(self.times.to(x.device), x.new_tensor(times, dtype=self.times.dtype))
        spans = place.unique().tolist()
        if len(spans) == 1:
            return compute(x, spans[0])
        parts = [compute(x[place == span], span) for span in spans]
        order = torch.cat([(place == span).nonzero()[:, 0] for span in spans])
        return torch.cat(parts)[order.argsort()]
