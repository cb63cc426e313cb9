"""Factors between layers: the outputs stay, wherever they are tied as they must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.layers.attention import Rotary
from zoo.quantize import Calibration
from zoo.quantize.equivalences import Equivalence, equivalences, of_queries, of_values

TOKENS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


def change(model: Any, one: Equivalence) -> float:
    """Of the outputs, relative, by random factors."""
    c = torch.empty(one.size, dtype=torch.float64).uniform_(0.3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(TOKENS)
        one.apply(model, c)
        return ((model(TOKENS) - before).abs().max() / before.abs().max()).item()


def linears(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is nn.Linear and "blocks." in name]


@pytest.mark.parametrize(("name", "options", "count"), [
    ("transformer_nano", {}, 4), ("transformer_nano", {"qk_norm": "head", "qkv_bias": True}, 3),
    ("falcon_h1_nano", {}, 3), ("mamba2_nano", {}, 2), ("moe_nano", {}, 3),
])  # fmt: skip
def test_equivalences_change_no_output(name, options, count):
    """``count`` in a block; norms of queries and keys undo factors before them, which are then not offered."""
    model = zoo.create_model(name, dtype=torch.float64, **options).eval()
    found = equivalences(model, linears(model), Calibration([TOKENS]))
    assert len([one for one in found if one.inside("blocks.0")]) == count
    assert max(change(model, one) for one in found) < 1e-12


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_part_of_a_head_turns_and_queries_share_keys(interleaved):
    model = zoo.create_model("transformer_nano", dtype=torch.float64, num_kv_heads=1, num_heads=4, depth=1).eval()
    attention: Any = model.blocks[0].mixer
    attention.rotary = Rotary(attention.head_dim // 2, interleaved=interleaved).double()
    queries = of_queries(model, "blocks.0.mixer")
    assert queries.size == attention.head_dim * 3 // 4
    assert change(model, queries) < 1e-12
    assert change(model, of_values(model, "blocks.0.mixer")) < 1e-12


def test_untied_factors_of_queries_do_change_the_outputs():
    """As in the published code: channels that turn together would have factors of their own."""
    model: Any = zoo.create_model("transformer_nano", dtype=torch.float64).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.q_proj.weight *= 4  # attention at first is nearly even
    tied = of_queries(model, "blocks.0.mixer")
    size = len(tied.parts[-1].place)
    untied = Equivalence(size, tuple(part._replace(place=torch.arange(len(part.place)) % size) for part in tied.parts))
    assert change(model, untied) > 1e-4
