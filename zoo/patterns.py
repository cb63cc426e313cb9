"""Names chosen by patterns, such as "blocks.0.*"."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any


def patterns_of(skip: Any) -> tuple[str, ...]:
    """One pattern or several as a tuple.

    Raises:
        TypeError: for anything else.
    """
    found = (skip,) if isinstance(skip, str) or not isinstance(skip, Iterable) else tuple(skip)
    if not all(isinstance(pattern, str) for pattern in found):
        raise TypeError(f"skip must be a pattern of names or several, got {skip!r}")
    return found


def matched(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern takes the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_used(patterns: Iterable[str], names: Iterable[str], what: str = "weight") -> None:
    """Every pattern takes a name of these, of weights or what else they are names of.

    Raises:
        ValueError: naming those that do not.
    """
    names = list(names)
    if unused := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]:
        known = f"names are as {names[0]!r}" if names else "there is none"
        raise ValueError(f"skip names no {what} by {', '.join(map(repr, unused))}; {known}")
