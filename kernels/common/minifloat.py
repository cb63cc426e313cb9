"""Number formats, floating-point, fixed-point and with a scale a block: their numbers, and rounding in nine ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDINGS = ("nearest", "ties_away", "ties_zero", "odd", "up", "down", "zero", "stochastic", "coin")
_INWARD = "down", "zero", "odd"  # that keep what is too large
_UPWARD = "up", "zero", "odd"  # and what is too small
EXPONENTS, MANTISSAS = range(1, 12), range(53)  # nothing that float64 does not hold
SHARED = 127  # the largest power of two that a block is scaled by, up or down


@dataclass(frozen=True)
class Minifloat:
    r"""A sign, E bits of exponent and M of mantissa; bias :math:`2^{E-1} - 1`, subnormal numbers below
    :math:`2^{e_{min}}, e_{min} = 2 - 2^{E-1}`.

    Args:
        exponent_bits: E, 1 to 11; the numbers of 1 are evenly spaced.
        mantissa_bits: M, 0 to 52. More than 8 and 23 bits are no numbers of float32: they are rounded to in float64.
        largest: the largest number; None for that of an IEEE format, which gives the highest exponent to infinity and
            not-a-number, or of E = 1, which has neither.
        subnormal: whether there are numbers below :math:`2^{e_{min}}`; without, what would be one is 0.

    Raises:
        ValueError: for other E or M.
    """

    exponent_bits: int
    mantissa_bits: int
    largest: float = None  # type: ignore[assignment]
    subnormal: bool = True

    def __post_init__(self):
        if self.exponent_bits not in EXPONENTS or self.mantissa_bits not in MANTISSAS:
            raise ValueError(
                "a format has 1 to 11 bits of exponent and 0 to 52 of mantissa, got "
                f"{self.exponent_bits!r} and {self.mantissa_bits!r}"
            )
        if self.largest is None:
            top = 2 ** (self.exponent_bits - 1) - 1 if self.exponent_bits > 1 else 1
            object.__setattr__(self, "largest", (2 - 2.0**-self.mantissa_bits) * 2.0**top)

    @property
    def bits(self) -> int:
        """Of a number."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def lowest(self) -> int:
        """The exponent below which the step no longer shrinks."""
        return 2 - 2 ** (self.exponent_bits - 1)

    def numbers(self) -> Tensor:
        """Its finite numbers that are not negative, in rising order, as are their codes 0, 1, ...; float64."""
        whole = 2**self.mantissa_bits
        code = torch.arange(2 ** (self.bits - 1), dtype=torch.float64)
        exponent, fraction = code // whole, code % whole / whole
        found = torch.where(exponent > 0, 1 + fraction, fraction) * 2.0 ** (exponent.clamp(min=1) + self.lowest - 1)
        found = found[found <= self.largest]
        return found if self.subnormal else found[(found == 0) | (found >= 2.0**self.lowest)]

    def round(
        self, x: Tensor, rounding: str = "nearest", *, saturate: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """The numbers of the format that x rounds to, in the dtype of x; not-a-number stays.

        Args:
            x: of any shape and floating dtype that holds the format.
            rounding: "nearest" (ties to the even significand, without mantissa to the larger), "ties_away" and
                "ties_zero" (from and to it), "odd" (what lies between to the odd significand), "up", "down", "zero"
                (towards it), "stochastic" (the nearer of both neighbours the likelier, so that the mean is x) or "coin"
                (either as likely).
            saturate: what is too large becomes the largest number; else infinity, or what the direction says.
            generator: of the draws.

        Raises:
            ValueError: for an unknown rounding, or a format of more bits than the dtype of x has.
        """
        check_rounding(rounding)
        if x.dtype != torch.float64 and (self.exponent_bits > 8 or self.mantissa_bits > 23):
            raise ValueError(
                f"{self.exponent_bits} bits of exponent and {self.mantissa_bits} of mantissa are rounded to in "
                f"float64, got {x.dtype}: model.double() computes in it"
            )
        wide = x.double()
        step = torch.frexp(wide).exponent.long().clamp(min=self.lowest + 1) - 1 - self.mantissa_bits
        found = _scaled(_whole(_scaled(wide, -step), rounding, generator), step)
        if not self.subnormal:
            found = torch.where(found.abs() < 2.0**self.lowest, torch.copysign(torch.zeros_like(found), found), found)
        above, below = (self.largest if saturate or rounding in kept else torch.inf for kept in (_INWARD, _UPWARD))
        found = torch.where(found > self.largest, above, torch.where(found < -self.largest, -below, found))
        return (found if saturate else torch.where(wide.isinf(), wide, found)).to(x.dtype)


@dataclass(frozen=True)
class FixedPoint:
    r"""Multiples of :math:`2^{-f}` in :math:`[-2^{i-1}, 2^{i-1} - 2^{-f}]`, of i + f bits.

    Args:
        integer_bits: i, 1 to 24, the sign among them.
        fraction_bits: f, 0 to 24 - i, so that float32 holds them.

    Raises:
        ValueError: for others.
    """

    integer_bits: int
    fraction_bits: int

    def __post_init__(self):
        given = self.integer_bits, self.fraction_bits
        if given[0] not in range(1, 25) or given[1] not in range(24) or sum(given) > 24:
            raise ValueError(
                "fixed-point numbers have at least 1 bit before the point and at most 24 in all, got "
                f"{self.integer_bits!r} and {self.fraction_bits!r}"
            )

    @property
    def bits(self) -> int:
        """Of a number."""
        return self.integer_bits + self.fraction_bits

    @property
    def largest(self) -> float:
        """The largest number."""
        return 2.0 ** (self.integer_bits - 1) - 2.0**-self.fraction_bits

    def round(
        self, x: Tensor, rounding: str = "nearest", *, saturate: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """As ``Minifloat.round``; what is out of range becomes the number at its end, whatever ``saturate`` says."""
        check_rounding(rounding)
        step, end = 2.0**-self.fraction_bits, 2.0 ** (self.integer_bits - 1)
        wide = (x.double() / step).clamp(-end / step, end / step - 1)
        return (_whole(wide, rounding, generator) * step).to(x.dtype)


@dataclass(frozen=True)
class BlockScaled:
    r"""Numbers of a format times a power of two that neighbours share, 8 bits a block (OCP's MX formats).

    .. math::
        s = 2^{\lfloor \log_2 \max |x| \rfloor - \lfloor \log_2 \mathrm{largest} \rfloor}, \quad
        \hat x = s \, \mathrm{round}(x / s)

    MXFP4 are blocks of 32 of ``Minifloat(2, 1, 6.0)``, MXFP6 of ``(3, 2, 28.0)`` or ``(2, 3, 7.5)``, MXFP8 of
    ``(4, 3, 448.0)`` or ``(5, 2)``, MXINT8 of ``FixedPoint(2, 6)``.

    Args:
        kind: of the numbers.
        block: neighbours along the last axis that share a scale; the last block may have fewer.

    Raises:
        ValueError: for a block below 1.

    Specification: "OCP Microscaling Formats (MX)", version 1.0, section 6.3.
    """

    kind: Minifloat | FixedPoint
    block: int = 32

    def __post_init__(self):
        if type(self.block) is not int or self.block < 1:
            raise ValueError(f"block must be a number of neighbours, got {self.block!r}")

    @property
    def bits(self) -> float:
        """Of a number, with its part of the scale."""
        return self.kind.bits + 8 / self.block

    def round(
        self, x: Tensor, rounding: str = "nearest", *, saturate: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """As ``Minifloat.round``, along the last axis; what is too large for its block becomes the largest number,
        whatever ``saturate`` says, and a block with an infinity or what is no number is no number all over."""
        row = torch.atleast_1d(x.double())
        count = row.shape[-1]
        wide = torch.nn.functional.pad(row, (0, -count % self.block)).unflatten(-1, (-1, self.block))
        most = wide.abs().amax(-1, keepdim=True)
        own = math.frexp(self.kind.largest)[1]
        shared = (torch.frexp(most).exponent.long() - own).clamp(-SHARED, SHARED)
        found = _scaled(self.kind.round(_scaled(wide, -shared), rounding, saturate=True, generator=generator), shared)
        found = torch.where(most.isfinite(), found, torch.nan)
        return found.flatten(-2)[..., :count].reshape(x.shape).to(x.dtype)


def _scaled(x: Tensor, power: Tensor) -> Tensor:
    """x times powers of two, in float64: in two steps, each of which has a factor that is a number."""
    half = power >> 1
    return x * _power(half) * _power(power - half)


def _power(exponent: Tensor) -> Tensor:
    return (exponent + 1023 << 52).view(torch.float64)


def check_rounding(rounding: str) -> None:
    """Raise a ValueError for an unknown one."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {list(ROUNDINGS)}, got {rounding!r}")


def _whole(v: Tensor, rounding: str, generator: torch.Generator | None) -> Tensor:
    if rounding in ("stochastic", "coin"):
        below = v.floor()
        drawn = torch.rand(v.shape, generator=generator, device=v.device, dtype=v.dtype)
        chance = v - below if rounding == "stochastic" else 0.5 * (v > below)
        return below + (drawn < chance)
    return _WAYS[rounding](v)


def _outward(when: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Away from zero where ``when`` says so, of the integer towards zero and what is left, else to that integer."""

    def rounded(v: Tensor) -> Tensor:
        inner = v.abs().floor()
        return torch.copysign(inner + when(inner, v.abs() - inner), v)

    return rounded


_WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "nearest": torch.round,
    "ties_away": _outward(lambda inner, rest: rest >= 0.5),
    "ties_zero": _outward(lambda inner, rest: rest > 0.5),
    "odd": _outward(lambda inner, rest: (rest > 0) & (inner % 2 == 0)),
    "up": torch.ceil,
    "down": torch.floor,
    "zero": torch.trunc,
}
