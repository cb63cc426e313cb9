"""Packed integers: how they lie, and what the product with them makes of few and many rows."""

from __future__ import annotations

import pytest
import torch

from zoo.kernels import available_implementations, lowbit_matmul
from zoo.kernels.common import tiles
from zoo.kernels.lowbit_matmul import dequantise, native, pack, reference, row_bytes, unpack

IMPLS = [name for name in available_implementations("lowbit_matmul") if name != "triton"]
WIDTHS = range(1, 9)


@pytest.mark.parametrize("columns", [1, 7, 8, 24, 128, 136, 300, 512])
@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_codes_come_back(bits, columns):
    codes = torch.randint(0, 2**bits, (2, 3, columns), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (2, 3, row_bytes(columns, bits)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits, columns), codes)
    assert columns % 8 or packed.nbytes * 8 == codes.numel() * bits


@pytest.mark.parametrize(("columns", "groups"), [(256, 8), (96, 1), (40, 5)])
def test_what_is_no_number_is_told(columns, groups):
    """Wherever it stands in its group, and in no other row."""
    codes, scale = pack(torch.randint(0, 16, (3, columns)), 4), torch.rand(3, groups)
    for place in (0, 15, 16, 31, columns - 1):
        x = torch.randn(2, columns)
        x[1, place] = torch.nan
        for impl in IMPLS:
            found = lowbit_matmul(x, codes, scale, bits=4, impl=impl)
            assert found[0].isfinite().all() and found[1].isnan().all(), (impl, place)


def test_the_layout_of_three_bits():
    """A part of two bits, whose byte i holds columns i, i + 2, ..., then one of the third bits."""
    (packed,) = pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]]), 3).tolist()
    low, high = (1, 2, 3, 0, 1, 2, 3, 0), (0, 0, 0, 1, 1, 1, 1, 0)
    assert packed[0] == low[0] | low[2] << 2 | low[4] << 4 | low[6] << 6
    assert packed[1] == low[1] | low[3] << 2 | low[5] << 4 | low[7] << 6
    assert packed[2] == sum(bit << place for place, bit in enumerate(high))


@pytest.mark.parametrize("rows", [1, 2, native.FEW, native.FEW + 1])
@pytest.mark.parametrize("bits", WIDTHS)
def test_integers_are_summed_exactly(bits, rows):
    """x of small integers and scales of powers of two leave nothing to round: every implementation gives the same."""
    columns, groups = 272, 17
    codes = torch.randint(0, 2**bits, (9, columns), dtype=torch.uint8)
    scale, zero = 2.0 ** torch.randint(-3, 3, (9, groups)), torch.randint(0, 2**bits, (9, groups), dtype=torch.uint8)
    x = torch.randint(-8, 9, (rows, columns)).float()
    steps = codes.long().unflatten(1, (groups, -1)) - zero.long()[..., None]
    expected = x.double() @ (scale.double()[..., None] * steps).flatten(1).mT
    for impl in (*IMPLS, "auto"):
        for given in (scale, scale.bfloat16()):
            found = lowbit_matmul(x, pack(codes, bits), given, zero, bits=bits, impl=impl)
            assert torch.equal(found.double(), expected), impl


@pytest.mark.parametrize("bits", [1, 3, pytest.param(6, marks=pytest.mark.slow), 8])
def test_triton_unpacks_every_width(bits):
    """Whole blocks and a rest, in the product and in the numbers of its backward; nothing is rounded."""
    codes = torch.randint(0, 2**bits, (5, 168), dtype=torch.uint8)
    scale, zero = 2.0 ** torch.randint(-3, 3, (5, 3)), torch.randint(0, 2**bits, (5, 3), dtype=torch.uint8)
    x = torch.randint(-8, 9, (3, 168)).float()
    for held in (zero, None):
        found = []
        for impl in ("reference", "triton"):
            leaf = x.clone().requires_grad_()
            y = lowbit_matmul(leaf, pack(codes, bits), scale, held, bits=bits, impl=impl)
            found.append((y.detach(), *torch.autograd.grad(y.sum(), leaf)))
        assert all(map(torch.equal, *found))


def test_large_matrices_are_taken_in_tiles(monkeypatch):
    """A matrix of several tiles, the last one short, gives what one tile gives, forward and backward."""
    x, scale = (torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in ((11, 40), (13, 2)))
    codes = pack(torch.randint(0, 8, (13, 40)), 3)
    found = []
    monkeypatch.setattr(tiles, "ROWS", 4)
    for whole in (tiles.WHOLE, 200):
        monkeypatch.setattr(tiles, "WHOLE", whole)
        monkeypatch.setattr(tiles, "TILE", whole)
        y = lowbit_matmul(x, codes, scale, bits=3, impl="tiled")
        found.append([y, *torch.autograd.grad(y.square().sum(), (x, scale))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(native.obstacle(torch.device("cpu")) is not None, reason="needs a C compiler")
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_rows_that_are_looked_up_are_those_of_the_definition(bits, dtype, monkeypatch):
    codes, scale = pack(torch.randint(0, 2**bits, (5, 44)), bits), torch.randn(5, 4).to(dtype)
    for zero in (None, torch.randint(0, 2**bits, (5, 4), dtype=torch.uint8)):
        expected = reference.dequantise(codes, scale, zero, bits=bits, columns=44)
        monkeypatch.setattr(reference, "dequantise", None)
        assert torch.equal(dequantise(codes, scale, zero, bits=bits, columns=44), expected)
        monkeypatch.undo()


@pytest.mark.skipif(native.obstacle(torch.device("cpu")) is not None, reason="needs a C compiler")
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("rows", [1, 3])
def test_whole_blocks_in_groups_that_processors_multiply_by_digits(bits, rows):
    x, scale = torch.randn(rows, 320), torch.rand(7, 10) + 0.5
    codes = pack(torch.randint(0, 2**bits, (7, 320)), bits)
    expected = x.double() @ reference.dequantise(codes, scale.double(), bits=bits, columns=320).mT
    found = lowbit_matmul(x, codes, scale, bits=bits, impl="native")
    assert (found - expected).abs().max() < 4e-6 * expected.abs().max()


@pytest.mark.parametrize("learns", ["x", "scale"])
def test_the_scale_alone_or_the_input_alone_learns(learns):
    given = {"x": torch.rand(3, 16).double(), "scale": torch.rand(4, 2).double()}
    leaf, codes = given[learns].requires_grad_(), pack(torch.randint(0, 16, (4, 16)), 4)
    (found,) = torch.autograd.grad(lowbit_matmul(codes=codes, bits=4, **given).square().sum(), leaf)
    product = given["x"] @ dequantise(codes, given["scale"], bits=4, columns=16).mT
    torch.testing.assert_close(found, *torch.autograd.grad(product.square().sum(), leaf))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, r"bits must be in \[1, 8\], got 9"),
        ({"bits": 3}, r"codes must have shape \(N, bytes of C codes\) = \('any', 6\), got \(4, 8\)"),
        ({"scale": torch.ones(4, 3)}, "the 3 groups of a row must divide its 16 columns"),
        ({"codes": torch.zeros(4, 8)}, "codes and zero must be uint8, got .*float32"),
        ({"zero": torch.zeros(4, 1)}, r"zero must have shape \(N, G\) = \(4, 2\)"),
        ({"bias": torch.zeros(3)}, r"bias must have shape \(N,\)"),
    ],
)
def test_what_does_not_fit(change, message):
    given = {"x": torch.randn(1, 16), "codes": torch.zeros(4, 8, dtype=torch.uint8), "scale": torch.ones(4, 2)}
    with pytest.raises(ValueError, match=f"lowbit_matmul: {message}"):
        lowbit_matmul(**given | {"bits": 4} | change)
