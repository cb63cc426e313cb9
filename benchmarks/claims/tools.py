"""What several claims measure with: operations and numbers kept, counted without memory; a fit's exponent; sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.common import fitted_exponent
from zoo.kernels.flops import flop_counter

UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


def flops(call: Callable[..., Any], *inputs: Any) -> int:
    """Operations of a call without gradients."""
    with torch.no_grad(), flop_counter(display=False) as counter:
        call(*inputs)
    return counter.get_total_flops()


def on_meta(name: str, **options: Any) -> Any:
    """A model without memory, in eval mode."""
    return zoo.create_model(name, device="meta", **options).eval()


def tokens(length: int, batch: int = 1, device: str = "meta") -> Tensor:
    return torch.zeros(batch, length, dtype=torch.int64, device=device)


def images(model: Any) -> Tensor:
    """One image of a vision model's size, without memory."""
    c = model.config
    return torch.empty(1, c.in_chans, *c.image_shape, device="meta")


def growth(cost: Callable[[int], float], lengths: Sequence[int]) -> Found:
    """The exponent with which a cost grows over the lengths."""
    costs = {length: cost(length) for length in lengths}
    return Found(fitted_exponent(lengths, list(costs.values())), {"cost over length": costs})


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def printed(figure: str) -> tuple[float, float]:
    """The number that "46.7B" stands for, and a unit of its last digit; zeros at the end of a whole number say nothing.

    >>> printed("350M")
    (350000000.0, 10000000.0)
    """
    digits, unit = (figure[:-1], UNITS[figure[-1]]) if figure[-1] in UNITS else (figure, 1.0)
    if "." in digits:
        return float(digits) * unit, 10.0 ** -len(digits.partition(".")[2]) * unit
    return float(digits) * unit, 10.0 ** (len(digits) - len(digits.rstrip("0"))) * unit


def apart(found: float, figure: str) -> float:
    """How far a count is from a printed figure, in units of its last digit."""
    value, unit = printed(figure)
    return abs(found - value) / unit


def figures(count: Callable[[str], float], published: Mapping[str, str]) -> Found:
    """The largest distance of a count from what is printed, over the models."""
    found = {name: count(name) for name in published}
    details = {name: {"published": figure, "counted": found[name]} for name, figure in published.items()}
    return Found(max(apart(found[name], figure) for name, figure in published.items()), details)


def published(
    name: str, families: str, paper: str, what: str, count: Callable[[str], float], figure: Mapping[str, str],
    *, says: str, source: str,
) -> None:  # fmt: skip
    """Declare that counts are the printed ones, rounded or cut: within a unit of the last digit.

    Args:
        what: is counted.
        figure: model -> as printed.
    """

    def run() -> Found:
        return figures(count, figure)

    run.__name__, run.__doc__ = name, f"{what} of {', '.join(figure)}, counted without memory."
    distance = "largest distance from a printed figure, in units of its last digit"
    claim(families, paper, says=says, source=source, evidence="count", value=distance, at_most=1.0)(run)
