"""Small floating-point formats: rounding of everything there is against exact fractions, and against torch's dtypes."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from zoo.kernels.common.minifloat import ROUNDINGS, BlockScaled, FixedPoint, Minifloat

SMALL = [Minifloat(1, 2), Minifloat(2, 1), Minifloat(3, 0), Minifloat(2, 3), Minifloat(4, 3, 448.0), Minifloat(5, 2)]
KNOWN = [
    (Minifloat(5, 10), torch.float16),
    (Minifloat(8, 7), torch.bfloat16),
    (Minifloat(8, 23), torch.float32),
    (Minifloat(5, 2), torch.float8_e5m2),
]
BLOCKS = [
    BlockScaled(Minifloat(2, 1, 6.0), 4), BlockScaled(Minifloat(3, 2, 28.0)), BlockScaled(Minifloat(4, 3, 448.0), 5),
    BlockScaled(FixedPoint(2, 6), 32), BlockScaled(Minifloat(2, 3, 7.5, subnormal=False), 3),
]  # fmt: skip


def numbers(kind: Minifloat) -> list[Fraction]:
    """All finite numbers that are not negative, by the definition of the format's codes."""
    found = []
    bias = 2 ** (kind.exponent_bits - 1) - 1
    for code in range(2 ** (kind.bits - 1)):
        exponent, fraction = divmod(code, 2**kind.mantissa_bits)
        significand = Fraction(fraction, 2**kind.mantissa_bits) + (exponent > 0)
        found.append(significand * Fraction(2) ** (max(exponent, 1) - bias))
    return [value for value in found if value <= Fraction(kind.largest)]


def neighbours(x: Fraction, kind: Minifloat) -> tuple[Fraction, Fraction, int]:
    """The number next to |x| below, the one above, as if there were no largest, and the code of the first."""
    held = numbers(kind)
    held.append(2 * held[-1] - (held[-2] if kind.mantissa_bits else 0))  # what the next code would be
    index = max(i for i, value in enumerate(held[:-1]) if value <= x)
    return held[index], held[index + 1], index


def slowly(x: float, kind: Minifloat, rounding: str) -> float:
    """One number of a format in the ways that draw nothing."""
    exact, sign = Fraction(abs(x)), -1 if x < 0 else 1
    if exact > 2 * Fraction(kind.largest):  # far beyond: as the first number that is
        exact = 2 * Fraction(kind.largest)
    below, above, code = neighbours(exact, kind)
    middle, odd = (below + above) / 2, code % 2 == 1 if kind.mantissa_bits else code > 0
    outward = {
        "up": sign > 0, "down": sign < 0, "zero": False, "nearest": exact > middle or (exact == middle and odd),
        "ties_away": exact >= middle, "ties_zero": exact > middle,
        "odd": (significand_is_even(code, kind)) and below < Fraction(kind.largest),
    }[rounding]  # fmt: skip
    found = above if outward and exact > below else below
    return sign * (float("inf") if found > Fraction(kind.largest) else float(found))


def significand_is_even(code: int, kind: Minifloat) -> bool:
    """Of the number of a code; without a mantissa those above 0 have the significand 1."""
    return code % 2 == 0 if kind.mantissa_bits else code == 0


def everything(kind: Minifloat) -> Tensor:
    """Every number, every quarter between two, what lies beyond, and the other sign of all."""
    held = torch.tensor([float(value) for value in numbers(kind)], dtype=torch.float64)
    held = torch.cat([held, 2 * held[-1:] - held[-2], 3 * held[-1:]])
    between = [held[:-1] + (held[1:] - held[:-1]) * part for part in (0.25, 0.5, 0.75)]
    found = torch.cat([held, *between])
    return torch.cat([found, -found])


@pytest.mark.parametrize("rounding", ROUNDINGS[:-2])
@pytest.mark.parametrize("kind", SMALL, ids=str)
def test_rounding_against_exact_fractions(kind, rounding):
    x = everything(kind)
    expected = torch.tensor([slowly(value, kind, rounding) for value in x.tolist()], dtype=torch.float64)
    assert torch.equal(kind.round(x, rounding), expected)
    assert torch.equal(kind.round(x, rounding, saturate=True), expected.clamp(-kind.largest, kind.largest))
    held = expected[expected.isfinite()]
    for again in ROUNDINGS:
        assert torch.equal(kind.round(held, again), held)  # what is a number of the format stays


@pytest.mark.parametrize("kind", SMALL, ids=str)
def test_draws_give_neighbours_with_the_right_chances(kind):
    x, generator = everything(kind), torch.Generator().manual_seed(0)
    x = x[x.abs() <= kind.largest]
    below, above = kind.round(x, "down"), kind.round(x, "up")
    draws = {way: torch.stack([kind.round(x, way, generator=generator) for _ in range(400)]) for way in ROUNDINGS[-2:]}
    for way, found in draws.items():
        assert ((found == below) | (found == above)).all()
        gap = torch.where(above > below, above - below, torch.ones_like(x))
        chance = ((x - below) / gap).clamp(0, 1) if way == "stochastic" else 0.5 * (above > below)
        error = ((found > below).double().mean(0) - chance).abs()
        assert (error <= 5 * (chance * (1 - chance) / 400).sqrt()).all()


@pytest.mark.parametrize(("kind", "dtype"), KNOWN, ids=lambda given: str(given))
def test_the_formats_of_torch(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, generator=generator) * torch.exp(15 * torch.randn(20000, generator=generator))
    x = torch.cat([x, torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65519.0, 65520.0, 1e-45])])
    torch.testing.assert_close(kind.round(x), x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_eight_bits_as_torch_has_them():
    kind = Minifloat(4, 3, 448.0)
    x = torch.cat([torch.linspace(-448, 448, 9999), 2.0**-9 * torch.linspace(-20, 20, 999)])
    assert torch.equal(kind.round(x), x.to(torch.float8_e4m3fn).float())
    codes = torch.arange(127, dtype=torch.uint8)
    assert torch.equal(kind.numbers().float(), codes.view(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("kind", [Minifloat(9, 1), Minifloat(10, 0), Minifloat(11, 1)], ids=str)
def test_more_exponents_than_float32_has(kind):
    """All numbers, and what lies between and beyond, in float64, in every way; only there."""
    x = everything(kind)
    x = x[x.isfinite()]
    assert x.abs().max() > 1e70 and (x[x > 0].min() < 1e-70)
    held = kind.numbers()
    index = torch.searchsorted(held, x.abs(), right=True).clamp(1, len(held))
    below, above = held[index - 1], torch.cat([held, torch.tensor([torch.inf]).double()])[index]
    inner, outer = torch.copysign(below, x), torch.copysign(torch.where(x.abs() > below, above, below), x)
    assert torch.equal(kind.round(x, "zero"), inner)
    assert torch.equal(kind.round(x, "up"), torch.maximum(inner, outer))
    assert torch.equal(kind.round(x, "down"), torch.minimum(inner, outer))
    step = torch.where(above.isinf(), below - held[-2], above - below)
    for way, exact in (("nearest", 0.5), ("ties_zero", 0.5), ("ties_away", 0.5)):
        off = (kind.round(x, way, saturate=True) - x.clamp(-kind.largest, kind.largest)).abs() / step
        assert (off <= exact).all(), way
    with pytest.raises(ValueError, match=r"are rounded to in float64, got torch\.float32: model\.double"):
        kind.round(x.float())


def test_doubles_are_themselves():
    """The numbers of eleven and 52 bits are those of float64, subnormal ones and the largest too."""
    x = torch.randint(-(2**63), 2**63 - 1, (20000,), generator=torch.Generator().manual_seed(0)).view(torch.float64)
    x = torch.cat([x, torch.tensor([5e-324, -1e-310, 1.7976931348623157e308, math.inf, -0.0]).double()])
    for way in ROUNDINGS:
        torch.testing.assert_close(Minifloat(11, 52).round(x, way), x, rtol=0, atol=0, equal_nan=True)
    single = Minifloat(8, 23).round(x.clamp(-3e38, 3e38))
    torch.testing.assert_close(single, x.clamp(-3e38, 3e38).float().double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", SMALL[1:], ids=str)
def test_without_subnormal_numbers(kind):
    """What would be one is 0 and keeps its sign; everything else stays, in every way."""
    bare = Minifloat(kind.exponent_bits, kind.mantissa_bits, kind.largest, subnormal=False)
    x, least = everything(kind), 2.0**kind.lowest
    for way in ROUNDINGS[:-2]:
        found, whole = bare.round(x, way), kind.round(x, way)
        assert torch.equal(found, torch.where(whole.abs() < least, 0.0, whole)), way
        assert torch.equal(found.signbit(), whole.signbit())
    assert torch.equal(bare.numbers(), torch.cat([torch.zeros(1).double(), kind.numbers()[kind.numbers() >= least]]))


@pytest.mark.parametrize("kind", BLOCKS, ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS[:-2])
def test_blocks_against_exact_fractions(kind, rounding):
    """Each block by itself: its power of two from its largest number, then number by number."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2 * kind.block + 1, generator=generator).double() * 2.0 ** torch.randint(
        -140, 140, (6, 1), generator=generator
    )
    x[0] = torch.arange(x.shape[1]) * 0.25
    x[1, 0], x[2] = 2.0**60, 0.0
    found = kind.round(x, rounding)
    top = math.floor(math.log2(kind.kind.largest))
    for row, rounded in zip(x.tolist(), found.tolist(), strict=True):
        for start in range(0, len(row), kind.block):
            block = row[start : start + kind.block]
            most = max(map(abs, block))
            shared = math.frexp(most)[1] - 1 - top if most else 0
            scale = Fraction(2) ** min(max(shared, -127), 127)
            inside = torch.tensor([float(Fraction(value) / scale) for value in block], dtype=torch.float64)
            expected = [float(Fraction(v) * scale) for v in kind.kind.round(inside, rounding, saturate=True).tolist()]
            assert rounded[start : start + kind.block] == expected
    assert torch.equal(kind.round(found, rounding), found)


def test_blocks_by_hand():
    """1.7 is scaled by 2^(0 - 2), 6.8 is beyond the largest number; what is no number stays in its block."""
    kind = BlockScaled(Minifloat(2, 1, 6.0), 4)
    x = torch.tensor([1.7, -0.4, 0.1, 0.06, 1e-3, 0.0, torch.nan, 3.0, 5.0])
    found = kind.round(x)
    assert found[:4].tolist() == [1.5, -0.375, 0.125, 0.0] and found[4:8].isnan().all() and found[8] == 4.0
    assert kind.bits == 6.0 and BlockScaled(Minifloat(2, 1, 6.0)).bits == 4.25
    assert kind.round(torch.tensor(5.5)) == 6.0 and kind.round(torch.zeros(3, 0)).shape == (3, 0)
    with pytest.raises(ValueError, match="block must be a number of neighbours, got 0"):
        BlockScaled(FixedPoint(2, 6), 0)


def test_the_numbers_of_four_bits():
    assert Minifloat(2, 1, 6.0).numbers().tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert Minifloat(3, 0, 16.0).numbers().tolist() == [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    assert Minifloat(1, 2).numbers().tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]


@pytest.mark.parametrize("sizes", [(1, 0), (1, 3), (4, 0), (3, 2)])
def test_fixed_point_numbers(sizes):
    """All there are and all between and beyond, in every way, against exact fractions."""
    kind, (before, after) = FixedPoint(*sizes), sizes
    low, high = -(2 ** (before - 1 + after)), 2 ** (before - 1 + after) - 1
    eighths = range(8 * (low - 2), 8 * (high + 2) + 1)
    x = torch.tensor([float(Fraction(n, 8 * 2**after)) for n in eighths], dtype=torch.float64)
    ways = {
        "nearest": round, "up": math.ceil, "down": math.floor, "zero": math.trunc,
        "ties_away": lambda v: int(math.copysign(math.floor(abs(v) + Fraction(1, 2)), v)),
        "ties_zero": lambda v: int(math.copysign(math.ceil(abs(v) - Fraction(1, 2)), v)),
        "odd": lambda v: v if v.denominator == 1 else math.floor(v) | 1,
    }  # fmt: skip
    for way, whole in ways.items():
        held = [min(max(Fraction(n, 8), low), high) for n in eighths]
        expected = torch.tensor([float(whole(v) * Fraction(1, 2**after)) for v in held], dtype=torch.float64)
        assert torch.equal(kind.round(x, way), expected), way
    drawn = kind.round(x, "stochastic", generator=torch.Generator().manual_seed(0))
    assert ((drawn == kind.round(x, "down")) | (drawn == kind.round(x, "up"))).all() and kind.bits == sum(sizes)


@pytest.mark.parametrize("sizes", [(0, 3), (25, 0), (20, 5), (4, -1), (2.0, 1.5)])
def test_fixed_point_formats_that_are_none(sizes):
    with pytest.raises(ValueError, match="at least 1 bit before the point and at most 24 in all"):
        FixedPoint(*sizes)


@pytest.mark.parametrize("sizes", [(0, 3), (12, 3), (4, -1), (4, 53), (2.0, 1.5)])
def test_formats_that_are_none(sizes):
    with pytest.raises(ValueError, match="a format has 1 to 11 bits of exponent and 0 to 52 of mantissa"):
        Minifloat(*sizes)
    with pytest.raises(ValueError, match=r"rounding must be one of .*'coin'.*, got 'even'"):
        Minifloat(4, 3).round(torch.ones(1), "even")
