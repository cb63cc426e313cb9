"""Prompts of several lengths in full rows, instead of one padded row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where a prompt lies."""

    row: int
    start: int
    length: int


class Packed(NamedTuple):
    """Prompts side by side, for ``model(packed.tokens, seq_idx=packed.seq_idx)``.

    Attributes:
        tokens: (R, C) int64; 0 behind a row's last prompt.
        seq_idx: (R, C) int64, which of its row's prompts a token is of; -1 behind the last.
        places: of the prompts, in the order in which they were given.
    """

    tokens: Tensor
    seq_idx: Tensor
    places: tuple[Place, ...]

    def unpack(self, outputs: Tensor) -> list[Tensor]:
        """Outputs (R, C, ...) -> those of each prompt, (T_i, ...)."""
        return [outputs[row, start : start + length] for row, start, length in self.places]


def prepack(prompts: Sequence[Tensor] | Sequence[Sequence[int]], capacity: int | None = None) -> Packed:
    """Pack prompts into as few rows as first fit in order of length finds: the longest first, each into the first row
    with room for it.

    The model computes R C tokens, where padding computes B times the longest. Prompts do not see each other, and their
    positions begin anew, so the outputs are those of each prompt alone, to rounding.

    Args:
        prompts: ids (T_i,) of at least one token each.
        capacity: C, tokens a row; None for the longest prompt's.

    Raises:
        ValueError: for no prompt, an empty one, or one longer than ``capacity``.

    Paper: Zhao et al., "Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language
    Models", arXiv 2404.09529.
    """
    rows = [torch.as_tensor(prompt) for prompt in prompts]
    if not rows or any(row.dim() != 1 or len(row) == 0 or row.is_floating_point() for row in rows):
        shapes = [tuple(row.shape) for row in rows][:5]
        raise ValueError(f"prompts must be at least one, each the ids of at least one token, got shapes {shapes}")
    longest = max(map(len, rows))
    capacity = longest if capacity is None else capacity
    if capacity < longest:
        raise ValueError(f"capacity must be at least the longest prompt's {longest} tokens, got {capacity}")
    used: list[int] = []
    held: list[int] = []  # prompts a row
    tokens = rows[0].new_zeros(len(rows), capacity, dtype=torch.int64)
    seq_idx = torch.full_like(tokens, -1)
    places: dict[int, Place] = {}
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index])):
        prompt = rows[index]
        row = next((row for row, taken in enumerate(used) if taken + len(prompt) <= capacity), len(used))
        if row == len(used):
            used.append(0)
            held.append(0)
        places[index] = place = Place(row, used[row], len(prompt))
        span = slice(place.start, place.start + place.length)
        tokens[row, span], seq_idx[row, span] = prompt, held[row]
        used[row] += len(prompt)
        held[row] += 1
    return Packed(tokens[: len(used)], seq_idx[: len(used)], tuple(places[index] for index in range(len(rows))))
