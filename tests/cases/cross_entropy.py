from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.cross_entropy import linear_cross_entropy


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    rows = batch * length
    generator = torch.Generator().manual_seed(rows)
    randn = partial(torch.randn, generator=generator)
    labels = torch.randint(0, 35, (rows,), generator=generator)
    labels[3::7] = -100
    return {"hidden": randn(rows, 9).to(dtype), "weight": randn(35, 9).to(dtype), "labels": labels}


def inputs_with_bias(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return inputs(batch, length, dtype) | {
        "bias": torch.randn(35, generator=torch.Generator().manual_seed(0)).to(dtype)
    }


every_option = partial(linear_cross_entropy, z_loss=0.1, softcap=3.0, label_smoothing=0.1, chunk_size=16)

CASES = [
    Case("linear_cross_entropy", "linear_cross_entropy", linear_cross_entropy, inputs),
    Case("linear_cross_entropy", "linear_cross_entropy_options", every_option, inputs_with_bias),
]
