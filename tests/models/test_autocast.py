"""Mixed precision costs what the projections lose, whatever the length: nothing inside a recurrence is rounded."""

from __future__ import annotations

import pytest
import torch

import zoo

PROMPT = b"First Citizen: Before we proceed any further, hear me speak. All: Speak, speak. "
CONTINUOUS = [  # no choice of an expert
    "based", "falcon_h1", "lfm2", "longconv", "mamba", "mamba2", "recurrent_gemma", "s4", "s4d", "transformer",
    "xlstm",
]  # fmt: skip


def inputs(name: str) -> torch.Tensor:
    if name == "s4_pixel_nano":
        return torch.randn(2, 1, 8, 8)
    if name == "s4_text_nano":
        return torch.randint(0, 15, (2, 300))
    return torch.tensor(list(PROMPT * 5))[None]


@pytest.mark.parametrize("name", [f"{family}_nano" for family in (*CONTINUOUS, "s4_pixel", "s4_text")])
@torch.no_grad()
def test_autocast_stays_close_to_float32(name):
    model, x = zoo.create_model(name, pretrained=True).eval(), inputs(name)
    expected = model(x)
    for dtype, allowed in ((torch.bfloat16, 0.02), (torch.float16, 0.0025)):
        with torch.autocast("cpu", dtype=dtype):
            found = model(x).float()
        assert (found - expected).norm() < allowed * expected.norm(), dtype
