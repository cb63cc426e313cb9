from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.sparse_matmul import compress, row_starts, sparse_matmul

COLUMNS, ROWS = 43, 5  # no whole byte, and no whole vector


def inputs(batch: int, length: int, dtype: torch.dtype, even: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    x, w, order = (torch.randn(s, COLUMNS, generator=generator) for s in (batch * length, ROWS, ROWS))
    mask, values = compress(w, order.argsort(1) < 13 if even else order > order.flatten().sort().values[130])
    found = {"x": x.view(batch, length, COLUMNS).to(dtype), "values": values.to(dtype), "mask": mask}
    return found if even else found | {"start": row_starts(mask, COLUMNS)}


CASES = [
    Case("sparse_matmul", "sparse_matmul", sparse_matmul, partial(inputs, even=False)),
    Case("sparse_matmul", "sparse_matmul_even", sparse_matmul, partial(inputs, even=True)),
]
