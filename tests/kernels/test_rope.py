from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from zoo.kernels import available_implementations
from zoo.kernels.rope import rope

FAST = ["native", "halves", "triton"]
ALL = ["reference", *FAST]


def make_tables(*shape: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    angle = torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]), dtype=torch.float64) * 3
    return angle.cos().to(dtype), angle.sin().to(dtype)


@pytest.mark.parametrize("impl", [*ALL, "auto"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_is_the_definition(impl, interleaved, packed):
    x, positions = torch.randn(2, 3, 2, 7, dtype=torch.float64), torch.tensor([[5, 0, 1], [2, 3, 9]])
    if not packed:
        positions = positions[:1].expand(2, 3)
    angle = positions[..., None] * torch.tensor([1.0, 0.1], dtype=torch.float64)
    cos, sin = (t if packed else t[0] for t in (angle.cos(), angle.sin()))
    y, expected = rope(x, cos, sin, interleaved=interleaved, impl=impl), x.clone()
    for b in range(2):
        for t in range(3):
            for pair in range(2):
                i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 2)
                c, s = math.cos(angle[b, t, pair]), math.sin(angle[b, t, pair])
                expected[b, t, :, i] = c * x[b, t, :, i] - s * x[b, t, :, j]
                expected[b, t, :, j] = s * x[b, t, :, i] + c * x[b, t, :, j]
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("interleaved", [False, True])
def test_accuracy_over_dtypes(impl, dtype, interleaved, assert_accurate):
    cos, sin = make_tables(2, 5, 3)
    call = partial(rope, cos=cos, sin=sin, interleaved=interleaved)
    assert_accurate(call, {"x": torch.randn(2, 5, 3, 8).to(dtype)}, impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 1, 3, 3), (1, 70, 2, 64), (3, 5, 7, 18)], ids=str)
@pytest.mark.parametrize("pairs", ["one", "all"])
def test_accuracy_over_sizes(impl, shape, pairs, assert_accurate):
    cos, sin = make_tables(shape[1], 1 if pairs == "one" else shape[3] // 2)
    assert_accurate(partial(rope, cos=cos, sin=sin), {"x": torch.randn(shape)}, impl)


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("interleaved", [False, True])
def test_gradcheck_also_of_the_gradient(impl, interleaved):
    cos, sin = make_tables(2, 2, dtype=torch.float64)
    x = torch.randn(1, 2, 1, 5, dtype=torch.float64, requires_grad=True)
    call = partial(rope, cos=cos, sin=sin, interleaved=interleaved, impl=impl)
    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("impl", ALL)
def test_strided_inputs_give_the_same(impl):
    """A part of a projection, heads before steps, tables broadcast over the batch."""
    projected, (cos, sin) = torch.randn(2, 6, 60), make_tables(6, 4)
    x = projected[..., 12:].unflatten(-1, (4, 12))
    expected = rope(x.contiguous(), cos, sin, impl=impl)
    heads_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    broadcast = (t.T.contiguous().T.expand(2, 6, 4) for t in (cos, sin))
    assert torch.equal(rope(x, cos, sin, impl=impl), expected)
    assert torch.equal(rope(heads_first, *broadcast, impl=impl), expected)


@pytest.mark.parametrize("impl", ALL)
def test_products_depend_on_the_distance_alone(impl):
    """What rotary embedding is for: q at position i and k at position j meet at the angle i - j."""
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    angle = torch.arange(12, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    q, k = (rope(t.expand(1, 12, 1, 8), angle.cos(), angle.sin(), impl=impl)[0, :, 0] for t in (q, k))
    products = q @ k.T
    torch.testing.assert_close(products[:-1, :-1], products[1:, 1:])


def test_large_and_small_inputs_agree():
    """Below and above the size at which the operator takes over."""
    x, (cos, sin) = torch.randn(1, 1200, 2, 64), make_tables(1200, 20)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        typed = x.to(dtype)
        parts = [rope(a, b, c) for a, b, c in zip(typed.split(100, 1), cos.split(100), sin.split(100), strict=True)]
        torch.testing.assert_close(rope(typed, cos, sin), torch.cat(parts, dim=1))


def test_native_is_preferred():
    assert available_implementations("rope")[0] == "native"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 3, 8)}, "rope: x must have shape"),
        ({"x": torch.ones(2, 3, 4, 8, dtype=torch.int64)}, "rope: x must be a floating-point tensor"),
        ({"cos": torch.randn(4, 2)}, "rope: cos must have shape"),
        ({"cos": torch.randn(1, 3, 2)}, "rope: cos must have shape"),
        ({"sin": torch.randn(3, 1)}, "rope: sin must have shape"),
        ({"sin": torch.randn(3, 2, device="meta")}, "rope: all tensors must be on one device, got .*sin on meta"),
        ({"cos": torch.randn(3, 5), "sin": torch.randn(3, 5)}, "from 1 to K / 2 pairs, got 5 for K 8"),
        ({"cos": torch.randn(3, 0), "sin": torch.randn(3, 0)}, "from 1 to K / 2 pairs"),
        ({"sin": torch.randn(3, 2, requires_grad=True)}, "cos and sin must be constants"),
    ],
    ids=range(9),
)
def test_wrong_input_names_the_argument(change, message):
    inputs = {"x": torch.randn(2, 3, 4, 8), "cos": torch.randn(3, 2), "sin": torch.randn(3, 2)} | change
    with pytest.raises(ValueError, match=message):
        rope(**inputs)
