"""How figures are written."""

from __future__ import annotations

from collections.abc import Sequence

THOUSANDS = ("", " k", " M", " G", " T", " P")
DECIMAL = ("", " k", " M", " B", " T")  # of parameters, as papers count them
BINARY = (" B", " KiB", " MiB", " GiB", " TiB")


def scaled(value: float | None, units: Sequence[str] = THOUSANDS, base: float = 1000.0) -> str:
    """Three digits and a unit; nothing for None."""
    if value is None:
        return ""
    place = 0
    while abs(value) >= 0.9995 * base and place + 1 < len(units):
        value, place = value / base, place + 1
    digits = f"{value:.0f}" if abs(value) >= 99.95 or (place == 0 and value == int(value)) else f"{value:.3g}"
    return digits + units[place]


def count(value: float | None) -> str:
    """Parameters."""
    return scaled(value, DECIMAL)


def size(value: float | None) -> str:
    """Bytes."""
    return scaled(value, BINARY, 1024.0)


def seconds(value: float | None) -> str:
    """A time in the unit that suits it."""
    if value is None:
        return ""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
