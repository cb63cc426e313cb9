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

    mapping: dict[Any, Callable[..., int]] = _attention_on_the_cpu() | {
        getattr(torch.ops.zoo, name): _of_shapes(formula) for name, formula in FORMULAS.items()
    }
    return FlopCounterMode(custom_mapping=mapping, **options)


def _attention_on_the_cpu() -> dict[Any, Callable[..., int]]:
    """Of torch's own attention, which the counter of torch 2.11 does not know on the CPU, nor with grouped heads."""
    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: _attention(q, k, v, 1, 1),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, v, *__, **___: _attention(
            q, k, v, 3, 2
        ),
    }


def _attention(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], of_keys: int, of_values: int) -> int:
    """Products of (T, S) with the width of the keys and of the values, (B, H, T, d) and (B, H, S, d)."""
    (batch, heads, length, width), (keys, value_width) = q, (k[2], v[3])
    return 2 * batch * heads * length * keys * (of_keys * width + of_values * value_width)


def _of_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """Without the shapes of the results, which torch passes by name."""
    return lambda *shapes, **_: formula(*shapes)
