from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.lowbit_matmul import lowbit_matmul, row_bytes

COLUMNS, ROWS = 160, 5  # a whole block of codes and a shorter one


def inputs(batch: int, length: int, dtype: torch.dtype, bits: int, groups: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return {
        "x": torch.randn(batch, length, COLUMNS, generator=generator).to(dtype),
        "codes": torch.randint(0, 256, (ROWS, row_bytes(COLUMNS, bits)), dtype=torch.uint8, generator=generator),
        "scale": (0.5 + torch.rand(ROWS, groups, generator=generator)).to(dtype),
        "zero": torch.randint(0, 2**bits, (ROWS, groups), dtype=torch.uint8, generator=generator),
    }


def centred(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    found = inputs(batch, length, dtype, 8, 1)
    del found["zero"]
    return found


CASES = [
    Case("lowbit_matmul", "lowbit_matmul_3", partial(lowbit_matmul, bits=3), partial(inputs, bits=3, groups=5)),
    Case("lowbit_matmul", "lowbit_matmul_8", partial(lowbit_matmul, bits=8), centred),
]
