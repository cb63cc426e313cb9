"""In which order the planes of experts are loaded, and how long that and computing with them takes."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Plane = tuple[int, int]  # expert and level: 0 for its fewest bits, and one more for each plane beyond


def needs(tokens: Mapping[Plane, int], levels: int) -> dict[int, list[int]]:
    """Expert -> how many of its tokens need each level: those whose last is it, or one beyond.

    Args:
        tokens: plane -> how many tokens need it and none beyond.
        levels: of an expert.
    """
    found = {e: [0] * levels for e, _ in tokens}
    for (e, last), count in tokens.items():
        for level in range(last + 1):
            found[e][level] += count
    return found


def hottest_first(needs: Mapping[int, Sequence[int]]) -> list[Plane]:
    """Of the next planes of all experts always the one that most tokens need (HEBF, hottest expert's bits first).

    Args:
        needs: expert -> how many of its tokens need each level, falling as levels rise; one that none needs is not
            loaded.

    Paper: "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving", arXiv 2504.15299.
    """
    heads = [(-counts[0], e, 0) for e, counts in needs.items() if counts and counts[0]]
    heapq.heapify(heads)
    found = []
    while heads:
        _, e, level = heapq.heappop(heads)
        found.append((e, level))
        if level + 1 < len(needs[e]) and needs[e][level + 1]:
            heapq.heappush(heads, (-needs[e][level + 1], e, level + 1))
    return found


def one_by_one(needs: Mapping[int, Sequence[int]]) -> list[Plane]:
    """All that an expert needs, then what the next one does."""
    return [(e, level) for e in sorted(needs) for level, count in enumerate(needs[e]) if count]


ORDERS = {"hottest_first": hottest_first, "one_by_one": one_by_one}


class Timeline(NamedTuple):
    """When all is computed, and how long the processor waited before that."""

    end: float
    idle: float


def timeline(
    order: Sequence[Plane], tokens: Mapping[Plane, int], load: Sequence[float], compute: float, held: int = 0
) -> Timeline:
    """Planes are loaded one after another; the tokens whose last plane is there are computed, as it came.

    Args:
        order: of the planes.
        tokens: plane -> how many tokens need it and none beyond.
        load: time of a plane of each level.
        compute: time of a token.
        held: the first so many planes are there already.
    """
    there = free = idle = 0.0
    for place, plane in enumerate(order):
        there += load[plane[1]] if place >= held else 0.0
        if count := tokens.get(plane, 0):
            idle += max(0.0, there - free)
            free = max(free, there) + count * compute
    return Timeline(free, idle)
