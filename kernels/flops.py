"""Floating-point operations of the kernels, for torch's counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

import zoo.kernels  # noqa: F401  (defines the operators)
from zoo.kernels.operator import FORMULAS

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def flop_counter(**options: Any) -> FlopCounterMode:
    """A ``torch.utils.flop_counter.FlopCounterMode`` that also counts the zoo's operations; ``options`` are its own.

    Torch's module brings Triton along where it is installed, so it is imported here, not with the kernels.
    """
    from torch.utils.flop_counter import FlopCounterMode

    mapping = {getattr(torch.ops.zoo, name): _of_shapes(formula) for name, formula in FORMULAS.items()}
    return FlopCounterMode(custom_mapping=mapping, **options)


def _of_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """Without the shapes of the results, which torch passes by name."""
    return lambda *shapes, **_: formula(*shapes)
