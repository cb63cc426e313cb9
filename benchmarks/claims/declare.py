"""How a claim is declared: what a paper says and where, what is measured, and from when on that counts as met."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

Verdict = Literal["met", "missed", "out of reach"]
# kinds of evidence
EVIDENCE = {
    "count": "parameters or bytes of published sizes, counted without memory",
    "cost": "operations, or numbers kept, counted",
    "identity": "an equation that holds, to rounding",
    "measured": "time or memory on this machine",
    "trained": "small models trained here on the same data from fixed seeds",
    "published": "the paper's figure: nothing was run here",
}


@dataclass(frozen=True)
class Bound:
    """From where to where a value counts as the claim met; both ends do."""

    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        low, high = self.at_least, self.at_most
        return (low is None or value >= low) and (high is None or value <= high)  # nan is a miss

    def __str__(self) -> str:
        low, high = (f"{end:,.4g}" if end is not None else None for end in (self.at_least, self.at_most))
        if low is not None and high is not None:
            return f"= {low}" if low == high else f"{low} to {high}"
        return f"≥ {low}" if high is None else f"≤ {high}"


@dataclass(frozen=True)
class Found:
    """What was measured: the value that is compared with the bound, and what it comes from."""

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of a paper.

    Attributes:
        name: of the claim.
        families: architectures of ``zoo.list_families()`` that it is about.
        paper: arXiv number.
        source: where the paper says so, and its own figure.
        says: the claim, in our words.
        evidence: one of ``EVIDENCE``.
        measured: how; why it cannot be, where it is out of reach.
        value: what the value is, with its unit.
        bound: of the value. None: out of reach.
        quick: whether it takes seconds.
        limit: seconds after which it is given up.
        shares: a word; claims of the same word are run one after another in one process, where what they share is kept.
        run: measures it.
    """

    name: str
    families: tuple[str, ...]
    paper: str
    source: str
    says: str
    evidence: str
    measured: str
    value: str = ""
    bound: Bound | None = None
    quick: bool = True
    limit: float = 120.0
    shares: str = ""
    run: Callable[[], Found] | None = field(default=None, compare=False, repr=False)

    @property
    def alone(self) -> bool:
        """Whether nothing else may run beside it, because it measures."""
        return self.evidence == "measured"

    def threads(self, most: int) -> int:
        """That it is run with."""
        return most if self.alone else 1

    def verdict(self, value: float | None) -> Verdict:
        """Of a measured value; None where nothing can be."""
        if self.bound is None or value is None:
            return "out of reach"
        return "met" if self.bound.holds(value) else "missed"


CLAIMS: dict[str, Claim] = {}


def _register(found: Claim) -> None:
    if found.name in CLAIMS:
        raise ValueError(f"a claim named {found.name!r} is already declared")
    if found.evidence not in EVIDENCE:
        raise ValueError(f"evidence must be one of {', '.join(EVIDENCE)}, got {found.evidence!r}")
    if not found.families or not all((found.paper, found.source, found.says, found.measured)):
        raise ValueError(
            f"a claim needs a family, paper, source, what it says and how it is measured: {found.name} does not say all"
        )
    CLAIMS[found.name] = found


def claim(
    families: str,
    paper: str,
    *,
    says: str,
    source: str,
    evidence: str,
    value: str,
    at_least: float | None = None,
    at_most: float | None = None,
    quick: bool = True,
    limit: float = 120.0,
    shares: str = "",
) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    """Decorator: the function's name is the claim's, its docstring how it is measured, and it returns what was found.

    Args:
        families: names separated by spaces.
        at_least, at_most: the bound; one at least.
        others: see ``Claim``.

    Raises:
        ValueError: for a name already taken, an unknown kind of evidence, or something left unsaid.
    """
    if at_least is None and at_most is None:
        raise ValueError("a claim needs a bound: at_least, at_most or both; what cannot be measured is `beyond` reach")

    def declare(run: Callable[[], Found]) -> Callable[[], Found]:
        _register(
            Claim(
                name=run.__name__, families=tuple(families.split()), paper=paper, source=source, says=says,
                evidence=evidence, measured=_line(inspect.getdoc(run) or ""), value=value,
                bound=Bound(at_least, at_most), quick=quick, limit=limit, shares=shares, run=run,
            )
        )  # fmt: skip
        return run

    return declare


def beyond(name: str, families: str, paper: str, *, says: str, source: str, why: str) -> None:
    """Declare a claim that cannot be tested here: the verdict is "out of reach", with the paper's figure in ``source``.

    Args:
        why: what it would take.
        others: see ``claim``.
    """
    _register(
        Claim(
            name=name, families=tuple(families.split()), paper=paper, source=source, says=says, evidence="published",
            measured=why,
        )
    )  # fmt: skip


def declared() -> dict[str, Claim]:
    """All claims, by name, those of every file of this folder included."""
    import zoo.benchmarks.claims as package

    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return CLAIMS


def _line(text: str) -> str:
    return " ".join(text.split())
