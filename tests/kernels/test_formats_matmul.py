"""Products with matrices of few bits that are no plain integers: against definitions, and exact where integers are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.kernels import available_implementations
from zoo.kernels.binary_matmul import binary_matmul, pack_planes, unpack_planes
from zoo.kernels.binary_matmul import dequantise as from_signs
from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.integer_matmul import (
    bit_serial_products,
    bit_serial_sums,
    group_sums,
    integer_products,
    product_cost,
    quantised_rows,
    scaled_sums,
)
from zoo.kernels.integer_matmul import groups as in_groups
from zoo.kernels.lowbit_matmul import pack
from zoo.kernels.minifloat_matmul import dequantise, minifloat_matmul

E2M1, E4M3, E5M2, E3M0 = Minifloat(2, 1, 6.0), Minifloat(4, 3, 448.0), Minifloat(5, 2), Minifloat(3, 0, 16.0)


def integers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def implementations(name: str) -> list[str]:
    return [*available_implementations(name), "auto"]


@pytest.mark.parametrize("kind", [E2M1, E4M3, E5M2, E3M0, Minifloat(3, 2), Minifloat(1, 6)], ids=str)
def test_every_code_of_a_float_is_its_number(kind):
    """A matrix of all codes times the unit matrix, by every implementation; scales of powers of two round nothing."""
    count = 2**kind.bits
    codes = torch.arange(count)
    codes = codes[codes % (count // 2) < len(kind.numbers())]
    codes = torch.nn.functional.pad(codes, (0, -len(codes) % 2)).view(2, -1)
    scale = torch.tensor([[0.5], [4.0]])
    w = dequantise(pack(codes, kind.bits), scale, kind, columns=codes.shape[1])
    found = kind.numbers()[codes % (count // 2)] * torch.where(codes < count // 2, 1, -1) * scale
    assert torch.equal(w.double(), found)
    for impl in implementations("minifloat_matmul"):
        for dtype in (torch.float32, torch.float64):
            eye = torch.eye(codes.shape[1], dtype=dtype)
            assert torch.equal(minifloat_matmul(eye, pack(codes, kind.bits), scale, kind, impl=impl).mT, w.to(dtype))


@pytest.mark.parametrize("columns", [7, 48, 300])
@pytest.mark.parametrize("rows", [1, 8, 9])
def test_products_with_floats(rows, columns):
    """Integers within them are summed exactly, whatever the implementation and the dtype of the scales."""
    codes, x = integers(0, 14, 5, columns), integers(-8, 9, rows, columns).float()
    scale, bias = 2.0 ** integers(-2, 3, 5, 1), integers(-3, 4, 5).float()
    expected = x.double() @ dequantise(pack(codes, 4), scale, E2M1, columns=columns).double().mT + bias.double()
    for impl in implementations("minifloat_matmul"):
        for given in (scale, scale.bfloat16()):
            found = minifloat_matmul(x, pack(codes, 4), given, E2M1, bias=bias, impl=impl)
            assert torch.equal(found.double(), expected), impl


def test_planes_hold_eight_columns_a_byte():
    bits = integers(0, 2, 3, 2, 21)
    packed = pack_planes(bits)
    assert packed.shape == (3, 2, 3) and torch.equal(unpack_planes(packed, 21).long(), bits)
    assert packed[0, 0, 1].item() == sum(int(bits[0, 0, 8 + k]) << k for k in range(8))


@pytest.mark.parametrize(
    "shape", [(1, 5, 2, 64, 4), (3, 16, 3, 400, 1), (4, 33, 1, 304, 19), (5, 4, 8, 24, 3), (11, 9, 3, 96, 3)], ids=str
)
@pytest.mark.parametrize("shifted", [True, False])
def test_sums_of_signs_are_exact(shape, shifted):
    """Scales of powers of two and small integers leave nothing to round; rows and bytes are no whole tiles."""
    rows, outputs, planes, columns, groups = shape
    signs, x = integers(0, 2, outputs, planes, columns), integers(-4, 5, rows, columns).float()
    alpha = 2.0 ** integers(-2, 3, outputs, groups, planes)
    offset = integers(-2, 3, outputs, groups).float() if shifted else None
    w = from_signs(pack_planes(signs), alpha, offset, columns=columns)
    spread = alpha.repeat_interleave(columns // groups, 1).permute(0, 2, 1)
    expected = ((2 * signs - 1) * spread).sum(1)
    expected = expected if offset is None else expected + offset.repeat_interleave(columns // groups, 1)
    assert torch.equal(w, expected)
    for impl in implementations("binary_matmul"):
        found = binary_matmul(x, pack_planes(signs), alpha, offset, impl=impl)
        assert torch.equal(found, x @ expected.mT), impl


def test_integers_are_sums_of_signs():
    """LUT-GEMM's identity: alpha_i = 2^i s / 2 and an offset make any affine grid."""
    q, s, z = integers(0, 16, 3, 16), 0.25, 5
    planes = pack_planes(q[:, None] >> torch.arange(4)[:, None] & 1)
    alpha = (s / 2 * 2.0 ** torch.arange(4)).expand(3, 1, 4)
    offset = torch.full((3, 1), s / 2 * 15 - s * z)
    assert torch.equal(from_signs(planes, alpha, offset, columns=16), s * (q - z))


@pytest.mark.parametrize(("columns", "groups"), [(64, 2), (24, 1), (21, 1), (304, 19), (1024, 8)])
@pytest.mark.parametrize(("x_bits", "w_bits"), [(1, 1), (8, 2), (3, 3), (8, 8)])
@pytest.mark.parametrize("masked", [True, False])
def test_bit_by_bit_is_the_integer_product(x_bits, w_bits, columns, groups, masked, monkeypatch):
    x, w = integers(0, 2**x_bits, 3, columns), integers(0, 2**w_bits, 5, columns)
    mask = integers(0, 2, 5, columns) if masked else torch.ones(5, columns, dtype=torch.int64)
    planes = [pack_planes(q[:, None] >> torch.arange(b)[:, None] & 1) for q, b in ((x, x_bits), (w, w_bits))]
    odd = [2 * q - (2**b - 1) for q, b in ((x, x_bits), (w, w_bits))]
    expected = (odd[0][:, None] * (odd[1] * mask)).unflatten(-1, (groups, -1)).sum(-1)
    held = pack_planes(mask) if masked else None
    for impl in implementations("bit_serial_sums"):
        found = bit_serial_sums(*planes, held, columns=columns, groups=groups, impl=impl)
        assert found.dtype == torch.int32 and torch.equal(found.long(), expected), impl
    scale, step = 2.0 ** integers(-2, 3, 5, groups), 2.0 ** integers(-3, 2, 3, 1)
    wanted = (expected * scale).sum(-1) * step
    monkeypatch.setattr(in_groups, "SUMS", 2 * len(x) * groups)  # two rows of the matrix at a time
    for impl in implementations("bit_serial_products"):
        found = bit_serial_products(planes[0], step, planes[1], scale.bfloat16(), held, columns=columns, impl=impl)
        assert torch.equal(found, wanted), impl


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8])
@pytest.mark.parametrize(("rows", "outputs", "columns", "groups"), [
    (1, 5, 64, 2), (3, 4, 96, 1), (2, 9, 192, 2), (7, 6, 40, 5), (2, 3, 288, 9), (19, 33, 64, 2), (9, 17, 1200, 1),
    (8, 16, 210, 21),
])  # fmt: skip
def test_integer_products_are_exact(impl, bits, rows, outputs, columns, groups):
    """With scales of powers of two every number is a float."""
    v = torch.randint(-127, 128, (rows, columns), dtype=torch.int16)
    q = torch.randint(0, 2**bits, (outputs, columns), dtype=torch.uint8)
    zero = torch.randint(0, 2**bits, (outputs, groups), dtype=torch.uint8)
    scale = 2.0 ** torch.randint(-2, 3, (outputs, groups))
    step = 2.0 ** torch.randint(-3, 2, (rows, 1))
    for given, centre in ((zero, zero.double()), (None, torch.full((outputs, groups), 2.0 ** (bits - 1)).double())):
        w = (q.unflatten(-1, (groups, -1)).double() - centre[..., None]) * scale[..., None].double()
        wanted = v.double() @ w.flatten(1).mT * step
        found = integer_products(v, step, pack(q, bits), scale.bfloat16(), given, bits=bits, impl=impl)
        assert torch.equal(found.double(), wanted)


def test_integer_products_are_traced():
    """Exported, and under transforms: by torch, which reads no memory of tensors that have none."""

    class Product(torch.nn.Module):
        def forward(self, v, step, codes, scale):
            return integer_products(v, step, codes, scale, bits=4)

    given = (
        torch.randint(-127, 128, (2, 32)),
        torch.ones(2, 1),
        pack(torch.randint(0, 16, (3, 32)), 4),
        torch.ones(3, 2),
    )
    wanted = Product()(*given)
    assert torch.equal(torch.export.export(Product(), given).module()(*given), wanted)
    mapped = torch.func.vmap(Product(), (0, 0, None, None))(given[0][:, None], given[1][:, None], *given[2:])
    assert torch.equal(mapped[:, 0], wanted)


@pytest.mark.parametrize(("columns", "groups"), [(64, 4), (2000, 1), (12, 4)])
def test_groups_are_summed_in_integers(columns, groups):
    """Extreme codes as well: a float32 holds no sum of 2,000 of them."""
    x, q = integers(-127, 128, 3, columns), integers(0, 256, 4, columns)
    x[0], q[0] = 127, 255
    expected = (x[:, None] * q).unflatten(-1, (groups, -1)).sum(-1)
    assert torch.equal(group_sums(x, q, groups).long(), expected)
    scale, zero, s = torch.rand(4, groups).double(), integers(0, 256, 4, groups), torch.rand(3, 1).double()
    w = (scale[..., None] * (q.unflatten(-1, (groups, -1)) - zero[..., None])).flatten(1)
    found = scaled_sums(group_sums(x, q, groups), x, s, scale, zero)
    torch.testing.assert_close(found, s * (x.double() @ w.mT), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("bits", "odd"), [(2, False), (8, False), (1, True), (3, True), (8, True)])
def test_activations_as_integers(bits, odd):
    x = torch.cat([torch.randn(3, 20), torch.zeros(1, 20)])
    v, scale = quantised_rows(x, bits, odd=odd)
    top = 2**bits - 1 if odd else 2 ** (bits - 1) - 1
    assert v[:3].abs().amax(1).tolist() == [top] * 3 and not (odd and (v % 2 == 0).any())
    assert ((v * scale - x)[:3].abs() <= (1.001 if odd else 0.501) * scale[:3]).all()
    alone = [quantised_rows(row[None], bits, odd=odd).values for row in x]
    assert torch.equal(torch.cat(alone), v)  # whatever else is in the batch


def test_the_cost_of_a_product_by_hand():
    """2 tokens of 8 numbers, 3 outputs, groups of 4."""
    before, after = (product_cost(2, 3, 8, 4, after=after) for after in (False, True))
    assert before == (48, 2 * 3 * 7, 3 * 8, None)
    assert after == (48, 2 * 3 * 2 * 3 + 2 * 2 * 3 + 2 * 3 * 1, 2 * 3 * 2, None)  # in groups, of x, of the groups
    prices = {"wide": 1.0, "narrow": 0.25, "add": 0.5, "dequantise": 2.0}
    assert product_cost(2, 3, 8, 4, after=False, prices=prices).energy == 48 + 21 + 48
    assert product_cost(2, 3, 8, 4, after=True, prices=prices).energy == 12 + 27 + 24
    one = product_cost(1, 64, 4096, 128, after=True).dequantisations
    assert product_cost(1, 64, 4096, 128, after=False).dequantisations == 128 * one  # K to K / g
    with pytest.raises(ValueError, match="group_size must divide the columns, got group_size 3 for 8 columns"):
        product_cost(2, 3, 8, 3, after=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, c: minifloat_matmul(x, c, torch.ones(4, 3), E2M1), "the 3 groups of a row must divide its 16"),
        (lambda x, c: minifloat_matmul(x, c, torch.ones(4, 2), E4M3), r"codes must have shape .* got \(4, 8\)"),
        (lambda x, c: minifloat_matmul(x, c.long(), torch.ones(4, 2), E2M1), "codes must be uint8, got torch.int64"),
        (lambda x, c: minifloat_matmul(x, c, torch.ones(4, 2), Minifloat(6, 1)), "up to 8 bits and 5 of exponent"),
        (lambda x, c: binary_matmul(x, c.view(4, 4, 2), torch.ones(4, 3, 4)), "the 3 groups of a row must divide"),
        (lambda x, c: binary_matmul(x, c.view(4, 4, 2), torch.ones(4, 2, 3)), "alpha must have shape"),
        (lambda x, c: binary_matmul(x.double(), c.view(4, 4, 2), torch.ones(4, 2, 4), impl="native"), "takes float32"),
        (lambda x, c: integer_products(x, x[:, :1], c, torch.ones(4, 2), c[:, :2].float(), bits=4), "must be uint8"),
        (lambda x, c: bit_serial_sums(c.view(4, 4, 2), c.view(4, 4, 2), columns=12, groups=2), "must be whole bytes"),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(1, 16), torch.zeros(4, 8, dtype=torch.uint8))
