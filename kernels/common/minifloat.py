"""Floating-point formats of a few bits: their numbers, and rounding to them in six ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDINGS = ("nearest", "up", "down", "zero", "stochastic", "coin")
_INWARD, _UPWARD = ("down", "zero"), ("up", "zero")  # that keep what is too large, and what is too small
EXPONENTS, MANTISSAS = range(1, 9), range(24)  # nothing that float32 does not hold


@dataclass(frozen=True)
class Minifloat:
    r"""A sign, E bits of exponent and M of mantissa; bias :math:`2^{E-1} - 1`, subnormal numbers below
    :math:`2^{e_{min}}, e_{min} = 2 - 2^{E-1}`.

    Args:
        exponent_bits: E, 1 to 8; the numbers of 1 are evenly spaced.
        mantissa_bits: M, 0 to 23.
        largest: the largest number; None for that of an IEEE format, which gives the highest exponent to infinity and
            not-a-number, or of E = 1, which has neither.

    Raises:
        ValueError: for other E or M.
    """

    exponent_bits: int
    mantissa_bits: int
    largest: float = None  # type: ignore[assignment]

    def __post_init__(self):
        if self.exponent_bits not in EXPONENTS or self.mantissa_bits not in MANTISSAS:
            raise ValueError(
                "a format has 1 to 8 bits of exponent and 0 to 23 of mantissa, got "
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
        return found[found <= self.largest]

    def round(
        self, x: Tensor, rounding: str = "nearest", *, saturate: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """The numbers of the format that x rounds to, in the dtype of x; not-a-number stays.

        Args:
            x: of any shape and floating dtype that holds the format.
            rounding: "nearest" (ties to the even significand, without mantissa to the larger), "up", "down", "zero"
                (towards it), "stochastic" (the nearer of both neighbours the likelier, so that the mean is x) or "coin"
                (either as likely).
            saturate: what is too large becomes the largest number; else infinity, or what the direction says.
            generator: of the draws.

        Raises:
            ValueError: for an unknown rounding.
        """
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {list(ROUNDINGS)}, got {rounding!r}")
        wide = x.double()
        exponent = torch.frexp(wide).exponent.long().clamp(min=self.lowest + 1) - 1
        step = (exponent - self.mantissa_bits + 1023 << 52).view(torch.float64)  # exactly a power of two
        found = _whole(wide / step, rounding, generator) * step
        above, below = (self.largest if saturate or rounding in kept else torch.inf for kept in (_INWARD, _UPWARD))
        found = torch.where(found > self.largest, above, torch.where(found < -self.largest, -below, found))
        return (found if saturate else torch.where(wide.isinf(), wide, found)).to(x.dtype)


def _whole(v: Tensor, rounding: str, generator: torch.Generator | None) -> Tensor:
    if rounding in ("stochastic", "coin"):
        below = v.floor()
        drawn = torch.rand(v.shape, generator=generator, device=v.device, dtype=v.dtype)
        chance = v - below if rounding == "stochastic" else 0.5 * (v > below)
        return below + (drawn < chance)
    return {"nearest": torch.round, "up": torch.ceil, "down": torch.floor, "zero": torch.trunc}[rounding](v)
