"""Choosing claims and running them in processes, so that a failure does not take others with it.

As many run at once as there are cores, two at most, with a thread each; what is measured runs last, alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from zoo.benchmarks.claims.declare import Claim, declared
from zoo.benchmarks.claims.results import Results, read
from zoo.benchmarks.runner import Step, run_steps
from zoo.registry import list_families, nearest

SEED = 0
PROCESSES = min(2, os.cpu_count() or 1)


@dataclass(frozen=True)
class Options:
    """What `zoo claims` was asked for.

    Attributes:
        names: patterns of names; all where empty.
        family: of which only.
        quick: leave out what takes more than seconds.
        fresh: run again what the file holds.
        path: of the file of results; None: keep nothing.
        command: as it was typed.
    """

    names: Sequence[str] = ()
    family: str | None = None
    quick: bool = False
    fresh: bool = False
    path: Path | None = None
    command: str = "zoo claims"


def chosen(options: Options) -> list[Claim]:
    """Those asked for, in the order of declaration.

    Raises:
        ValueError: for a pattern that no claim fits, or an unknown family.
    """
    known, families = declared(), list_families()
    if options.family not in (None, *families):
        raise ValueError(f"unknown family {options.family!r}{nearest(options.family, families)}; families: {families}")
    for pattern in options.names:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(
                f"unknown claim {pattern!r}{nearest(pattern, known)}; `zoo claims --list` shows all {len(known)}"
            )
    return [
        claim
        for name, claim in known.items()
        if (not options.names or any(fnmatchcase(name, pattern) for pattern in options.names))
        and options.family in (None, *claim.families)
        and (claim.quick or not options.quick)
    ]


def run(options: Options, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure what is not known; the records of the claims asked for.

    Raises:
        ValueError: see ``chosen`` and ``results.read``.
    """
    claims = chosen(options)
    known = {} if options.path is None else read(options.path)
    if options.fresh:
        known = {name: record for name, record in known.items() if name not in {claim.name for claim in claims}}
    results = Results(options.path, known, options.command)
    for claim in claims:
        if claim.run is None:
            results.add(claim, claim.verdict(None))
    steps = [step_of(group) for group in grouped(claims)]
    steps.sort(key=lambda step: step.alone)
    run_steps(steps, results, seconds=math.inf, processes=PROCESSES, say=say)
    if options.path is not None:
        results.page()
    return [results.records[claim.name] for claim in claims]


def grouped(claims: Sequence[Claim]) -> list[list[Claim]]:
    """Those that can be run, with those that share what they measure together."""
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.run is not None:
            groups.setdefault(f"shares {claim.shares}" if claim.shares else claim.name, []).append(claim)
    return list(groups.values())


def step_of(claims: Sequence[Claim]) -> Step:
    """That measures them, one after another."""
    names, limit = tuple(claim.name for claim in claims), sum(claim.limit for claim in claims)
    arguments = (names, torch.get_num_threads())
    return Step(", ".join(names), measure, arguments, limit, any(claim.alone for claim in claims))


def measure(names: Sequence[str], threads: int) -> Iterator[dict[str, Any]]:
    """What claims find, each from a fixed seed; in the process of a step, with so many threads where it is alone."""
    for name in names:
        began = time.monotonic()
        torch.manual_seed(SEED)
        claim = declared()[name]
        torch.set_num_threads(claim.threads(threads))
        assert claim.run is not None
        found = claim.run()
        content = {"found": float(found.value), "details": dict(found.details)}
        yield {name: content | {"seconds": time.monotonic() - began}}
