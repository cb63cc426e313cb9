"""How a kernel is compared with its reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cases import outputs_and_gradients

VARIATIONS = 4


def assert_accurate(
    call: Callable, inputs: dict[str, Tensor], *impls: str, variations: int = VARIATIONS, against: str = "reference"
) -> None:
    """error(kernel, float64) <= 2 * (error(reference in the same dtype, float64) + one rounding of the largest value).

    Errors and values are the largest of a tensor over several variations of the inputs, as if they were one batch: in
    a tensor of one or two numbers a single draw may cancel in one summation order and not in the other. Float64 inputs
    have no wider reference: there the two differ by summation order alone, 1e-12 of the largest value.

    Args:
        against: the implementation that is the reference.

    Raises:
        AssertionError: naming the implementation and the tensor that is off.
    """
    largest: dict[str, list[Tensor]] = {}
    for variation in range(variations):
        varied = {name: varied_input(t, variation) for name, t in inputs.items()}
        wide = {name: t.double() if t.is_floating_point() else t for name, t in varied.items()}
        exact = outputs_and_gradients(call, wide, against)
        reference = outputs_and_gradients(call, varied, against)
        found = [(impl, *item) for impl in impls for item in outputs_and_gradients(call, varied, impl).items()]
        for impl, name, value in found:
            assert torch.isfinite(value).all(), f"{impl}: {name} is not finite"
            eps = 1e-12 if value.dtype == torch.float64 else torch.finfo(value.dtype).eps
            errors = value - exact[name], reference[name] - exact[name], eps * exact[name]
            largest.setdefault(f"{impl}: {name}", []).append(torch.stack([e.double().abs().max() for e in errors]))
    for name, values in largest.items():
        error, reference_error, rounding = torch.stack(values).amax(0).tolist()
        allowed = 2 * (reference_error + rounding)
        assert error <= allowed, f"{name} is off by {error:.2e}, allowed {allowed:.2e}"


def varied_input(tensor: Tensor, variation: int) -> Tensor:
    """The tensor itself, then with every value scaled by a random factor in [0.5, 1.5]."""
    if variation == 0 or not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(variation)
    return tensor * (0.5 + torch.rand(tensor.shape, generator=generator).to(tensor))
