"""Records of every layout over one contract: bytes, nearest codes, rows, products, gradients, outliers, blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.layers.quant import LAYOUTS, Format, Record, compressible, install, matrices
from zoo.layers.quant.layers import Conv


def widths(name: str) -> list[int]:
    held = LAYOUTS[name].widths
    return sorted({held[0], held[len(held) // 2], held[-1]})


EVERY = [Format(layout=name, bits=bits, group_size=16) for name in LAYOUTS for bits in widths(name)]
ONE = [Format(layout=name, bits=LAYOUTS[name].default, group_size=16) for name in LAYOUTS]


def layout(form: Format) -> str:
    return f"{form.layout}-{form.bits}"


def matrix(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", EVERY, ids=layout)
def test_a_record_is_its_tensors(form):
    """Bytes as counted, the same numbers from a state dict, and rows as of the whole."""
    w = matrix(7, 48)
    w[2] = 0
    record = Record.nearest(w, form)
    found = record.dequantise()
    assert record.nbytes == form.nbytes(w.shape) and found.shape == w.shape and found.dtype == torch.float32
    assert found.isfinite().all()
    assert not LAYOUTS[form.layout].has_zero or not found[2].any()
    again = Record(w.shape, form)
    again.load_state_dict(record.state_dict())
    assert torch.equal(again.dequantise(), found)
    index = torch.tensor([3, 0, 3])
    assert torch.equal(record.dequantise(index), found[index]) and torch.equal(record.dequantise(2), found[2])
    assert not any(p.requires_grad for p in record.parameters())


@pytest.mark.parametrize("form", EVERY, ids=layout)
@pytest.mark.parametrize("rows", [1, 13])
def test_a_product_is_that_with_the_numbers(form, rows):
    record, x, bias = Record.nearest(matrix(7, 48), form), matrix(rows, 48), matrix(7)
    w = record.dequantise()
    with torch.no_grad():
        for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            expected = x.double() @ w.double().mT + bias.double()
            found = record.matmul(x.to(dtype), bias.to(dtype))
            assert found.dtype == dtype and (found - expected).abs().max() < bound * expected.abs().max()
        assert record.matmul(x.bfloat16()).dtype == torch.bfloat16
    x.requires_grad_()
    (dx,) = torch.autograd.grad(record.matmul(x).square().sum(), x)
    torch.testing.assert_close(dx, 2 * x @ w.mT @ w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ONE, ids=layout)
def test_stacks_of_matrices(form):
    """Each as it is alone, by its index."""
    w, x = matrix(3, 5, 32), matrix(2, 32)
    record, alone = Record.nearest(w, form), Record.nearest(w[1], form)
    assert torch.equal(record.dequantise()[1], alone.dequantise()) and torch.equal(
        record.dequantise(1), alone.dequantise()
    )
    with torch.no_grad():
        assert torch.equal(record.matmul(x, index=1), alone.matmul(x))


@pytest.mark.parametrize("form", [f for f in ONE if "group_rows" in LAYOUTS[f.layout].options], ids=layout)
def test_rows_share_scales(form):
    """Blocks of 3 rows, the last of one: as a matrix whose rows all have the largest range of their block."""
    shared = Format(layout=form.layout, bits=form.bits, group_size=16, group_rows=3)
    w = matrix(7, 32)
    record = Record.nearest(w, shared)
    assert record.scale.shape[:2] == (3, 2) and record.nbytes == shared.nbytes(w.shape) < form.nbytes(w.shape)
    found = record.dequantise()
    block = Record.nearest(w[:3].unflatten(1, (2, 16)).transpose(0, 1).flatten(1), Format(
        layout=form.layout, bits=form.bits, group_size=48))  # fmt: skip
    torch.testing.assert_close(found[:3].unflatten(1, (2, 16)).transpose(0, 1).flatten(1), block.dequantise())
    assert torch.equal(record.dequantise(torch.tensor([6, 1])), found[[6, 1]])
    torch.testing.assert_close(record.matmul(matrix(2, 32)), matrix(2, 32) @ found.mT)


@pytest.mark.parametrize("form", [f for f in ONE if "outliers" in LAYOUTS[f.layout].options], ids=layout)
@pytest.mark.parametrize("shape", [(6, 32), (2, 6, 32)])
def test_outliers_are_kept_as_they_are(form, shape):
    beside = Format(layout=form.layout, bits=form.bits, group_size=16, outliers=5, scale_dtype="float32")
    w = matrix(*shape)
    record, flat = Record.nearest(w, beside), w.flatten(-2)
    found, largest = record.dequantise(), flat.abs().topk(5).indices
    assert torch.equal(found.flatten(-2).gather(-1, largest), flat.gather(-1, largest))
    plain = Format(layout=form.layout, bits=form.bits, group_size=16, scale_dtype="float32")
    rest = Record.nearest(flat.scatter(-1, largest, 0.0).view(shape), plain).dequantise()
    assert torch.equal(found.flatten(-2).scatter(-1, largest, 0.0).view(shape), rest)  # ranges without them
    assert record.nbytes == plain.nbytes(shape) + 5 * 8 * (len(w) if w.dim() > 2 else 1)
    x, index = matrix(3, 32), 1 if w.dim() > 2 else None
    with torch.no_grad():
        y = record.matmul(x, index=index)
    torch.testing.assert_close(y, x @ (found if index is None else found[index]).mT)
    rows = torch.tensor([[1, 1], [0, 1]])
    assert torch.equal(record.dequantise(rows), found[rows])


def test_outliers_of_a_method():
    """Codes of zero where numbers are kept; a matrix of a stack with fewer is filled up."""
    q, scale, zero = torch.full((2, 3, 8), 3), torch.ones(2, 3, 1), torch.full((2, 3, 1), 3)
    kept = torch.zeros(2, 3, 8)
    kept[0, 1, 2], kept[0, 2, 7], kept[1, 0, 0] = 5.0, -6.0, 7.0
    record = Record.of(q, scale, zero, Format(group_size=None), outliers=kept)
    assert record.format.outliers == 2 and torch.equal(record.dequantise(), kept)
    assert Record.of(q, scale, zero, Format(group_size=None), outliers=0 * kept).format.outliers == 0


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
        (nn.Conv2d(6, 4, (3, 2), padding=(1, 0), dilation=2, groups=2, bias=False), (2, 6, 8, 7)),
        (nn.Conv2d(3, 4, 3, padding="same"), (1, 3, 5, 5)),
        (nn.Conv3d(2, 4, 2), (2, 2, 3, 4, 5)),
    ],
    ids=lambda given: type(given).__name__,
)
def test_convolutions(conv, shape):
    model, x = nn.Sequential(conv), matrix(*shape)
    form = Format(bits=8, group_size=None, scale_dtype="float32")
    expected = model(x)
    install(model, {"0.weight": Record.nearest(matrices(model, "0.weight").float(), form)})
    held: Any = model[0]
    assert type(held) is Conv and held.weight.shape == (conv.out_channels, conv.weight[0].numel())
    assert (model(x) - expected).norm() < 0.01 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def test_what_stays_a_convolution():
    depthwise, reflecting = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    model = nn.Sequential(depthwise, reflecting, nn.Conv2d(1, 4, 3))
    assert list(compressible(model)) == ["2.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "e9m9"}, "layout must be one of"),
        ({"group_rows": 0}, "group_rows must be a positive integer, got 0"),
        ({"outliers": -1}, "outliers must be a number of weights, got -1"),
    ],
)
def test_formats_that_are_none(change, message):
    with pytest.raises(ValueError, match=message):
        Format(**change)


def test_tensors_of_another_format():
    record = Record.nearest(matrix(4, 32), Format())
    held = dict(record.named_parameters())
    for form in (Format(bits=5), Format(symmetric=True), Format(group_size=16), Format(outliers=1)):
        with pytest.raises(ValueError, match="must be"):
            Record.holding((4, 32), form, held)
    with pytest.raises(ValueError, match="at most the 128 numbers of a matrix, got 200"):
        Format(outliers=200).tensors((4, 32))
