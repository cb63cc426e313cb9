"""MemoryFormer's layer against loops over tokens and tables, and what its weights promise."""

from __future__ import annotations

from itertools import product
from math import exp, prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.kernels.hashed_lookup.codes import weights
from zoo.layers.memory import MemoryLayer


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("weight", "temperature"), [("probability", 1.0), ("probability", 0.3), ("scaled", 1.0)])
def test_the_layer_is_its_definition(weight, temperature):
    layer, x = MemoryLayer(12, 5, 4, weight, temperature).double(), torch.randn(2, 3, 12, dtype=torch.float64)
    y = layer(x)
    for token, found in zip(x.flatten(0, 1).tolist(), y.flatten(0, 1), strict=True):
        expected = layer.bias.clone()
        for k in range(3):
            z = [value / temperature for value in token[4 * k : 4 * k + 4]]
            code = sum(2 ** (3 - i) for i, value in enumerate(z) if value >= 0)
            p = prod(1 / (1 + exp(-2 * abs(value))) for value in z)
            p *= sum(map(abs, z)) if weight == "scaled" else 1
            expected = expected + p * layer.tables[k, code]
        close(found, expected)


def probability(z: Tensor) -> Tensor:
    return weights(z, 1.0, False)


def test_the_probabilities_of_all_signs_sum_to_one():
    z = torch.randn(7, 5, dtype=torch.float64)
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    softmax = (z @ signs.T).softmax(-1)
    close(probability(z), softmax.max(-1).values)
    close(softmax.sum(-1), torch.ones(7).double())
    close(probability(torch.zeros(3, 5).double()), torch.full((3,), 2.0**-5).double())
    assert (probability(1e3 * z) > 1 - 1e-9).all() and torch.equal(weights(0 * z, 1.0, True), torch.zeros(7).double())


def test_a_sign_changes_one_row_and_no_weight():
    layer, x = MemoryLayer(12, 6, 4).double(), torch.randn(12, dtype=torch.float64)
    other = x.clone()
    other[5] = -other[5]
    code = ((x[4:8] >= 0) * torch.tensor([8, 4, 2, 1])).sum()
    p = probability(x[4:8])
    bit = 4 if x[5] < 0 else -4
    close(layer(other) - layer(x), p * (layer.tables[1, code + bit] - layer.tables[1, code]))


def test_gradients_reach_the_used_rows_and_the_input_through_its_weights():
    layer, x = MemoryLayer(8, 3, 4).double(), torch.randn(1, 8, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(1, 3, dtype=torch.float64)
    dx, dtables = torch.autograd.grad(layer(x), [x, layer.tables], dy)
    assert dtables.any(-1).sum() == 2
    z = x.detach()[0]
    for k in range(2):
        part = z[4 * k : 4 * k + 4]
        code = ((part >= 0) * torch.tensor([8, 4, 2, 1])).sum()
        slope = 2 * torch.sigmoid(-2 * part.abs()) * part.sign()  # of the logarithm of p
        close(dx[0, 4 * k : 4 * k + 4], probability(part) * (layer.tables[k, code] @ dy[0]) * slope)
        close(dtables[k, code], probability(part) * dy[0])


def test_wrong_options_say_the_rule():
    for options, message in (
        ({"bits": 5}, "bits must divide dim, got bits 5 and dim 12"),
        ({"bits": 4, "weight": "cosine"}, r"weight must be one of \('probability', 'scaled'\), got 'cosine'"),
        ({"bits": 4, "temperature": 0.0}, "temperature must be"),
    ):
        with pytest.raises(ValueError, match=message):
            MemoryLayer(12, 3, **options)


def test_a_model_has_no_matrix_but_the_heads_and_tables_of_the_papers_size():
    model = zoo.create_model("memoryformer_tiny", device="meta")
    assert [name for name, module in model.named_modules() if isinstance(module, nn.Linear)] == ["head"]
    block: Any = model.blocks[0]  # pyright: ignore[reportIndexIssue]
    assert block.mixer.qkv_memory.tables.numel() == 3 * 32 * 512**2
    assert block.mlp.fc2.tables.numel() == 128 * 512**2 and block.mlp.fc1.tables.shape == (64, 256, 640)
    with pytest.raises(ValueError, match=r"rotary_fraction must be in \(0, 1\], got 0"):
        zoo.create_model("memoryformer_nano", rotary_fraction=0.0)
