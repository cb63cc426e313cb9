"""Between which two places of a line a coordinate lies, and how near to each."""

from __future__ import annotations

import torch
from torch import Tensor


def ends(x: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Of coordinates that are 0 and 1 at the outer edges of the first and the last of ``size`` places: both neighbours.

    Returns:
        Twice (index, share): int64 in 0 .. size - 1, and the share that linear interpolation gives it; zero for a place
        that lies outside, and for a coordinate that is no number.
    """
    x = (x * size - 0.5).clamp(-2, size + 1)  # further away nothing is read either
    first = x.detach().floor()
    found = []
    for place, share in ((first, first + 1 - x), (first + 1, x - first)):
        inside = (place >= 0) & (place < size)
        found.append((torch.where(inside, place, 0.0).long(), torch.where(inside, share, 0.0)))
    return found
