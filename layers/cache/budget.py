"""How much a policy may keep: tokens, a share of the tokens, or bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Bytes:
    """Memory of one sequence in all layers that a policy governs, each of which gets the same part."""

    count: int


Budget = int | float | Bytes  # slots a layer and key-value head; a share in (0, 1] of the tokens given; memory


def require_budget(**budgets: Budget) -> None:
    """Raise a ValueError for what is no budget."""
    for name, budget in budgets.items():
        if isinstance(budget, bool) or not isinstance(budget, int | float | Bytes):
            raise ValueError(f"{name} must be tokens (an int), a share (a float) or Bytes, got {budget!r}")
        if isinstance(budget, float) and not 0 < budget <= 1:
            raise ValueError(f"{name} as a share must be in (0, 1], got {budget}; tokens are an int")
        if isinstance(budget, int) and budget < 1:
            raise ValueError(f"{name} must be at least 1 token, got {budget}")
        if isinstance(budget, Bytes) and budget.count < 1:
            raise ValueError(f"{name} must be at least 1 byte, got {budget.count}")


def slots_of(budget: Budget, tokens: int | Tensor, slot_bytes: int, layers: int, least: int = 1) -> int | Tensor:
    """Slots that a budget allows.

    Args:
        budget: what is allowed.
        tokens: given so far; (B,) where the rows have had different numbers.
        slot_bytes: of one slot of one row, in all heads of a layer.
        layers: that share the memory.
        least: slots that a share or a memory gives in any case.
    """
    if isinstance(budget, Bytes):
        return max(least, budget.count // (layers * slot_bytes))
    if isinstance(budget, int):
        return budget
    if isinstance(tokens, Tensor):
        return torch.ceil(tokens.double() * budget).long().clamp(min=least)
    return max(least, math.ceil(tokens * budget))


def parsed(text: str) -> Budget:
    """A budget as it is written on a command line: "256", "0.25" or "64MiB".

    Raises:
        ValueError: for anything else.
    """
    number = text.rstrip("BiKMG")
    unit = text[len(number) :]
    try:
        if unit:
            return Bytes(int(float(number) * UNITS[unit]))
        return int(number) if number.lstrip("-").isdigit() else float(number)
    except (ValueError, KeyError) as error:
        raise ValueError(f"a budget is tokens (256), a share (0.25) or memory (64MiB), got {text!r}") from error
