"""Token ids that are outside a vocabulary, told apart before anything is looked up."""

from __future__ import annotations

import torch
from torch import Tensor


def check_ids(name: str, ids: Tensor, low: int, high: int, ignore: int | None = None) -> None:
    """Raise a ValueError unless ``ids`` is an int64 tensor with values in [low, high) or equal to ``ignore``.

    On CUDA the range is checked on the device, without waiting for it. A traced program has no range check.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be an int64 tensor of token ids, got {ids.dtype}; use {name}.long()")
    if torch.compiler.is_compiling() or ids.device.type == "meta":
        return
    inside = (ids >= low) & (ids < high)
    if ignore is not None:
        inside |= ids == ignore
    message = f"{name} must be in [{low}, {high})" + (f" or {ignore}" if ignore is not None else "")
    if ids.device.type == "cuda":
        torch._assert_async(inside.all(), message)
    elif not inside.all():
        wrong = ids[~inside][0].item()
        raise ValueError(f"{message}, got {wrong}: does the tokenizer belong to this model (vocab_size {high})?")
