"""What is special to a layout: bits by hand, the nearest level, activations as integers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.kernels.integer_matmul import groups as in_groups
from zoo.kernels.integer_matmul import quantised_rows
from zoo.layers.quant import LAYOUTS, Format, Record


def matrix(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("form", "by_hand"),
    [
        (Format(layout="binary", bits=4, group_size=128), 4 + 16 * 4 / 128 + 16 / 128),  # LUT-GEMM's 4.625
        (Format(layout="dual_binary", bits=2, group_size=64), 2 + 2 * 16 / 64),  # DB-LLM's 2.5
        (Format(layout="bipolar", bits=3, group_size=64), 3 + 16 / 64),
        (Format(layout="bipolar", bits=3, group_size=64, masked=True), 4 + 16 / 64),
        (Format(layout="e2m1", bits=4, group_size=32), 4 + 16 / 32),
        (Format(layout="e4m3", bits=8, group_size=128, group_rows=4), 8 + 16 / 512),
        (Format(layout="e5m2", bits=8, group_size=None, scale_dtype="float32"), 8 + 32 / 128),
    ],
    ids=lambda given: given.layout if isinstance(given, Format) else "",
)
def test_stored_bits_are_those_of_the_formula(form, by_hand):
    assert Record((3, 8, 128), form).nbytes * 8 == form.nbytes((3, 8, 128)) * 8 == 3 * 8 * 128 * by_hand


def every_level(record: Record) -> Tensor:
    """All numbers that a group of the layout can hold, (..., N, G, levels), from its scales alone."""
    form = record.format
    if form.layout == "bipolar":
        top = 2**form.bits - 1
        return record.scale.float()[..., None] * torch.arange(-top, top + 1, 2)
    if form.layout == "dual_binary":
        a, b = record.alpha.float().unbind(-1)  # type: ignore[union-attr]
        return torch.stack([0 * a, a, b, a + b], -1)
    positive = LAYOUTS[form.layout].kind.numbers().float()  # type: ignore[attr-defined]
    return record.scale.float()[..., None] * torch.cat([-positive, positive])


@pytest.mark.parametrize("name", ["bipolar", "dual_binary", "e4m3", "e5m2", "e2m1", "e3m0"])
def test_every_number_goes_to_the_nearest_level(name):
    w = matrix(5, 64)
    record = Record.nearest(w, Format(layout=name, bits=LAYOUTS[name].default, group_size=16))
    distance = (every_level(record)[..., None, :] - w.unflatten(-1, (4, 16))[..., None]).abs()
    found = (record.dequantise() - w).abs().unflatten(-1, (4, 16))
    torch.testing.assert_close(found, distance.amin(-1), rtol=1e-5, atol=1e-6)


def test_two_planes_make_the_asymmetric_grid_of_two_bits():
    """-s, 0, s, 2 s, of which each bit says nothing alone; most bits of normal weights are 0."""
    record = Record.nearest(torch.tensor([[-4.0, -1.9, 0.9, 1.1, 2.9, 4.0]]), Format(
        layout="dual_binary", bits=2, group_size=None))  # fmt: skip
    assert record.dequantise().tolist() == [[-2.0, -2.0, 0.0, 2.0, 2.0, 4.0]]
    planes = Record.nearest(matrix(1, 200_000), Format(layout="dual_binary", bits=2, group_size=None)).planes
    ones = (planes[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).float().mean((0, 2, 3))
    torch.testing.assert_close(ones, torch.tensor([0.12, 0.24]), atol=0.02, rtol=0)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_binary_codes_are_no_worse_than_even_steps(bits):
    """In every group, and better on the whole."""
    w, form = matrix(16, 64), Format(layout="binary", bits=bits, group_size=32, scale_dtype="float32")
    groups = w.unflatten(-1, (2, 32))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    even = low + step * ((groups - low) / step).round()
    found = Record.nearest(w, form).dequantise().unflatten(-1, (2, 32))
    errors = [(levels - groups).square().sum(-1) for levels in (found, even)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all() and errors[0].sum() < 0.95 * errors[1].sum()


def test_a_mask_keeps_zeros():
    w = matrix(4, 32) * (matrix(4, 32) > 0)
    form = Format(layout="bipolar", bits=2, group_size=16, masked=True)
    record = Record.nearest(w, form)
    assert torch.equal(record.dequantise() == 0, w == 0)
    plain = Record.nearest(w, Format(layout="bipolar", bits=2, group_size=16)).dequantise()
    assert torch.equal(record.dequantise(), plain * (w != 0)) and (plain != 0).all()


ROUNDED = [
    Format(bits=4, group_size=16, activation_bits=8),
    Format(bits=8, group_size=16, symmetric=True, activation_bits=4),
    Format(layout="bipolar", bits=2, group_size=16, activation_bits=8),
    Format(layout="bipolar", bits=3, group_size=12, activation_bits=1),
    Format(layout="bipolar", bits=3, group_size=16, masked=True, activation_bits=3),
]


@pytest.mark.parametrize("form", ROUNDED, ids=lambda form: f"{form.layout}-{form.bits}-{form.activation_bits}")
def test_rounded_activations(form, monkeypatch):
    """The integer product is that of the rounded numbers, in parts as at once; the gradient is that of the product."""
    record, x, bias = Record.nearest(matrix(7, 48), form), matrix(2, 3, 48), matrix(7)
    v, s = quantised_rows(x.flatten(0, 1), form.activation_bits, odd=form.layout == "bipolar")
    expected = ((v * s).double() @ record.dequantise().double().mT + bias).view(2, 3, 7)
    with torch.no_grad():
        found = record.matmul(x, bias)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        monkeypatch.setattr(in_groups, "SUMS", 40)
        assert torch.equal(record.matmul(x, bias), found)
        assert record.matmul(x.bfloat16()).dtype == torch.bfloat16
    leaf = x.clone().requires_grad_()
    y = record.matmul(leaf, bias)
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-4)
    (dx,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close(dx, record.dequantise().sum(0).expand(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "e4m3", "bits": 4}, "layout 'e4m3' has 8 bits, got bits 4"),
        ({"layout": "dual_binary", "bits": 3}, "layout 'dual_binary' has 2 bits, got bits 3"),
        ({"layout": "bipolar", "symmetric": True}, "layout 'bipolar' has no symmetric, got True"),
        ({"layout": "bipolar", "outliers": 2}, "layout 'bipolar' has no outliers, got 2"),
        ({"layout": "binary", "group_rows": 2}, "layout 'binary' has no group_rows, got 2"),
        ({"masked": True}, "layout 'int' has no masked, got True"),
        ({"activation_bits": 9}, "layout 'int' takes activations of 2 to 8 bits, got activation_bits 9"),
        ({"layout": "e2m1", "activation_bits": 8}, "takes activations of no few bits, got activation_bits 8"),
    ],
)
def test_what_a_layout_does_not_have(options, message):
    with pytest.raises(ValueError, match=message):
        Format(**options)


def test_sums_of_bits_are_traced():
    """Exported, and under transforms, by a record whose activations are rounded."""
    form = Format(layout="bipolar", bits=2, group_size=16, activation_bits=4)
    record, x = Record.nearest(torch.randn(3, 32), form), torch.randn(2, 32)

    class Product(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.record = record

        def forward(self, x):
            return self.record.matmul(x)

    wanted = Product()(x)
    assert torch.equal(torch.export.export(Product(), (x,)).module()(x), wanted)
    assert torch.equal(torch.func.vmap(record.matmul)(x[:, None])[:, 0], wanted)
