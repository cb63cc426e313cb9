"""In what dtypes a Triton kernel multiplies."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype

TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def precision(x: Tensor, weight: Tensor) -> tuple[int, dict[str, Any]]:
    """Bytes of a factor of x times the weight, and the arguments FACTOR, TOTAL (of the sums) and PRECISION of a kernel.

    Factors are as narrow as both tensors are on a GPU, where float32 is split into three of fewer bits.
    """
    total = compute_dtype(x, weight)
    factor = x.dtype if x.is_cuda and x.dtype == weight.dtype else total
    split = factor == torch.float32 and x.is_cuda and torch.version.hip is None
    return factor.itemsize, {
        "FACTOR": TRITON_DTYPES[factor],
        "TOTAL": TRITON_DTYPES[total],
        "PRECISION": "tf32x3" if split else "ieee",
        "enable_fp_fusion": True,
    }
