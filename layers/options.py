"""Checks of what a layer is made with, so that what cannot work fails where it is written."""

from __future__ import annotations


def require_at_least(least: float, **options: float | None) -> None:
    """Raise a ValueError for an option that is below ``least`` or no number; None, for a default, passes."""
    for name, value in options.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def require_limits(name: str, limits: tuple[float, ...]) -> None:
    """Raise a ValueError unless these are a smallest and a largest step size, the largest above 0."""
    if len(limits) != 2 or not 0 <= limits[0] <= limits[1] or limits[1] == 0:
        raise ValueError(f"{name} must be (smallest, largest) with 0 <= smallest <= largest > 0, got {limits}")


def require_above(least: float, **options: float | None) -> None:
    """Raise a ValueError for an option that is not above ``least``; None, for none, passes."""
    for name, value in options.items():
        if value is not None and not value > least:
            raise ValueError(f"{name} must be above {least}, got {value}")
