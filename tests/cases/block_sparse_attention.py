from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.block_sparse_attention import block_sparse_attention

SIZE = 16


def inputs(batch: int, length: int, dtype: torch.dtype, masks: tuple[int, int] = (1, 1)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    blocks = -(-length // SIZE)
    return {
        "q": randn(batch, length, 4, 8).to(dtype),
        "k": randn(batch, length, 2, 8).to(dtype),
        "v": randn(batch, length, 2, 6).to(dtype),
        "block_mask": torch.rand(batch if masks[0] > 1 else 1, masks[1], blocks, blocks, generator=generator) < 0.5,
    }


def case(name: str, masks: tuple[int, int], **options) -> Case:
    call = partial(block_sparse_attention, block_size=SIZE, **options)
    return Case("block_sparse_attention", f"block_sparse_attention-{name}", call, partial(inputs, masks=masks))


CASES = [case("shared_mask", (1, 1)), case("causal_mask_a_head", (2, 4), causal=True)]
