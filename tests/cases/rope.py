from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from cases import Case
from zoo.kernels.rope import rope


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return {"x": torch.randn(batch, length, 3, 10, generator=generator).to(dtype)}


def call(x: Tensor, interleaved: bool, impl: str = "auto") -> Tensor:
    """Four pairs of the ten channels; the angles are constants of the operation."""
    angle = torch.arange(x.shape[1], device=x.device)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.01], device=x.device)
    return rope(x, angle.cos(), angle.sin(), interleaved=interleaved, impl=impl)


CASES = [
    Case("rope", "rope", partial(call, interleaved=False), inputs, over_time=("x",)),
    Case("rope", "rope_interleaved", partial(call, interleaved=True), inputs, over_time=("x",)),
]
