"""Attention in orders of a grid's axes: the same with all blocks, few blocks where heads look along one axis."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.generative import reorder_attention
from zoo.generative.reordering import best_order, self_attentions, watched
from zoo.layers.attention.reordered import (
    ReorderedProduct,
    axis_orders,
    block_rounded,
    block_sums,
    kept_blocks,
    placed,
    unevenness,
)
from zoo.quantize import Calibration

GRID = (4, 8, 8)  # frames, rows, columns


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def along(axis: int) -> Tensor:
    """Weights (T, T) of a head whose tokens see those that differ from them along one axis of the grid alone."""
    places = torch.stack(torch.meshgrid(*map(torch.arange, GRID), indexing="ij"), -1).flatten(0, 2)
    others = [other for other in range(3) if other != axis]
    same = (places[:, None, others] == places[None, :, others]).all(-1).double()
    return same / same.sum(-1, keepdim=True)


@pytest.mark.parametrize("length", [24, 22])
def test_any_order_is_the_same_attention(length):
    """With all blocks, also where the last is shorter."""
    q, k, v = numbers(3, 2, 4, length, 8).unbind(0)
    product = ReorderedProduct(4, length, 8)
    for head in range(4):
        product.order[head] = torch.randperm(length, generator=torch.Generator().manual_seed(head))
    torch.testing.assert_close(product(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-12, rtol=0)
    assert torch.equal(placed(placed(v, product.order), product.order.argsort(-1)), v)
    assert product.density.tolist() == [1.0] * 4


def test_skipped_blocks_are_not_seen():
    q, k, v = numbers(3, 1, 1, 12, 4).unbind(0)
    product = ReorderedProduct(1, 12, 4)
    product.order[0] = torch.arange(12).flip(0)
    product.seen[0] = torch.tensor([[True, False, True], [False, True, False], [True, True, False]])
    seen = product.seen[0].repeat_interleave(4, 0).repeat_interleave(4, 1).flip(0, 1)  # in the given order
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(product(q, k, v), wanted, atol=1e-12, rtol=0)
    assert product.density.item() == pytest.approx(5 / 9)


def test_rounded_blocks_by_hand():
    x = torch.tensor([[1.0, -7.0, 0.26, 0.1], [3.4, 2.0, 0.0, 0.7]])
    assert block_rounded(x, (2, 2), 4).tolist() == [
        [1.0, -7.0, pytest.approx(0.3), pytest.approx(0.1)], [3.0, 2.0, 0.0, pytest.approx(0.7)]
    ]  # fmt: skip
    assert block_rounded(torch.tensor([[0.0, 1.5, 0.4]]), (1, 3), 2, positive=True).tolist() == [[0.0, 1.5, 0.5]]
    assert block_rounded(numbers(5, 7), (2, 4), 8).shape == (5, 7)
    q, k, v = numbers(3, 1, 2, 12, 4).unbind(0)
    plain = F.scaled_dot_product_attention(q, k, v)
    product = ReorderedProduct(2, 12, 4, bits=8)
    assert 0 < (product(q, k, v) - plain).norm() < 0.02 * plain.norm()
    product.seen[:, 0, 1:] = False
    assert torch.equal(product(q, k, v)[:, :, 4:], ReorderedProduct(2, 12, 4, bits=8)(q, k, v)[:, :, 4:])


def test_blocks_of_heads_that_look_along_an_axis():
    """Of 16 x 16 blocks of 16 tokens: half in the worst order, 1 / 16 in the best."""
    found = {
        (axis, order): (block_sums(along(axis)[tokens][:, tokens], 16) > 0).double().mean().item()
        for axis in range(3)
        for order, tokens in axis_orders(GRID).items()
    }
    assert len(axis_orders(GRID)) == 6 and axis_orders(GRID)[0, 1, 2].tolist() == list(range(256))
    assert [found[axis, (0, 1, 2)] for axis in range(3)] == [0.25, 0.25, 0.0625]
    assert min(found.values()) == 0.0625 and max(found.values()) == 0.5
    for axis in range(3):
        order = best_order(along(axis), GRID, 16, 1.0, 0.0)
        assert (block_sums(along(axis)[order][:, order], 16) > 0).double().mean() == 0.0625


def test_kept_blocks_are_the_fewest_that_hold_the_mass():
    weights = torch.tensor([[0.6, 0.0, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]]).repeat_interleave(2, 0) / 2
    weights = weights.repeat_interleave(2, 1)
    assert kept_blocks(weights, 2, 0.9).tolist() == [[True, False, True, False], [True] * 4]
    assert kept_blocks(weights, 2, 0.5).tolist() == [[True, False, False, False], [True, True, False, False]]
    assert kept_blocks(weights, 2, 1.0).tolist() == [[True, False, True, True], [True] * 4]
    rows = numbers(64, 64).mul(3).softmax(-1)
    for mass in (0.5, 0.9, 0.99):
        seen = kept_blocks(rows, 8, mass).repeat_interleave(8, 0).repeat_interleave(8, 1)
        held = (rows * seen).unflatten(0, (8, 8)).sum((1, 2)) / 8
        assert held.min() >= mass - 1e-6
    even, spiked = torch.full((8, 8), 0.1), torch.full((8, 8), 0.1)
    spiked[0, 0] = 10.0
    assert unevenness(even, 4).item() == pytest.approx(1.0) and unevenness(spiked, 4) > 3


def small(name: str) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "dit_nano": {"depth": 1, "dim": 16, "num_heads": 2},
        "unet_nano": {"dims": (8, 16), "depths": (0, 1), "norm_groups": 4, "head_dim": 8, "context_dim": 8},
    }
    model = zoo.create_model(name, **sizes[name])
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("name", ["dit_nano", "unet_nano"])
def test_a_model_keeps_its_orders_and_blocks(name, tmp_path):
    model = small(name)
    seen = Calibration.of_samples(model, count=6, steps=3)
    with torch.no_grad():
        plain = torch.cat(list(seen.outputs(model)))
        whole, part = (
            reorder_attention(copy.deepcopy(model), calibration=seen, block_size=4, mass=mass) for mass in (1.0, 0.6)
        )
        torch.testing.assert_close(torch.cat(list(seen.outputs(whole))), plain, atol=1e-5, rtol=1e-5)
        found = torch.cat(list(seen.outputs(part)))
        assert 0 < (found - plain).norm() < plain.norm()
        zoo.save_model(part, tmp_path)
        again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
        assert torch.equal(torch.cat(list(seen.outputs(again))), found)
        quantised = zoo.quantize(copy.deepcopy(part), bits=8)
        assert (torch.cat(list(seen.outputs(quantised))) - found).norm() < 0.1 * found.norm()
    products = [module for module in part.modules() if isinstance(module, ReorderedProduct)]
    assert len(products) == len(self_attentions(model)) and all(0.25 <= p.density.min() < 1 for p in products)
    assert {p.order.shape[1] for p in products} == {16}
    with pytest.raises(ValueError, match="the attention is reordered already"):
        reorder_attention(part, calibration=seen)


def test_watched_weights_are_those_of_attention():
    model = small("dit_nano")
    with watched({"a": model.blocks[0].attn}) as seen, torch.no_grad():
        model(torch.randn(3, 1, 8, 8))
    weights = seen["a"].mean()
    assert weights.shape == (2, 16, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 16))
    assert type(model.blocks[0].attn.product).__name__ == "DenseProduct"
    assert math.isclose(seen["a"].count, 3)


@pytest.mark.parametrize(("options", "message"), [
    ({"block_size": 0}, "block_size must be at least 1 and bits from 2 to 8"),
    ({"bits": 1}, "block_size must be at least 1 and bits from 2 to 8"),
    ({"mass": 0.0}, r"mass must lie in \(0, 1\]"),
    ({"evenness": 2.0}, r"mass must lie in \(0, 1\]"),
])  # fmt: skip
def test_what_is_refused(options, message):
    model = small("dit_nano")
    with pytest.raises(ValueError, match=message):
        reorder_attention(model, calibration=Calibration.of_samples(model, count=1, steps=1), **options)
    assert not hasattr(model, "changes")
    with pytest.raises(ValueError, match="takes a DiT or a U-Net with self-attention, got Transformer"):
        reorder_attention(zoo.create_model("transformer_nano"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is over 4 tokens without a mask, got 5 queries"):
        ReorderedProduct(1, 4, 2)(*torch.zeros(3, 1, 1, 5, 2))
