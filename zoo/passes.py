"""How often a cascade of Einsums has to go through its input."""

from __future__ import annotations

import re
from collections.abc import Sequence

TENSOR = re.compile(r"([A-Za-z_]\w*)\[([^\]]*)\]")


def count_passes(cascade: str | Sequence[str], rank: str) -> int:
    """Passes over a rank: traversals of a whole fiber that must end before any of its elements is visited again.

    A kernel of one pass keeps a state that does not grow with the rank; one of N passes keeps all of it, or reads it N
    times. What is reduced over the rank is known at the end of the pass that its inputs are made in; whoever reads
    that beside something along the rank comes in the pass after. A tensor that is read before it is written, as in a
    recurrence, was written at the step before, in the same pass. Ranks that are tiled count by the tiles: what stays
    within one is no pass.

    >>> softmax = '''
    ... max[p]    = QK[m, p]            # over m
    ... exp[m, p] = QK[m, p] max[p]
    ... sum[p]    = exp[m, p]
    ... out[m, p] = exp[m, p] sum[p]
    ... '''
    >>> count_passes(softmax, "m")
    3

    Args:
        cascade: a line an Einsum, in the order of their dependencies: the tensor it makes, "=", and those it reads,
            each with its ranks in brackets. What is done with them does not matter and may be written or not; "m + 1"
            is the next place along m. What follows "#" is a comment.
        rank: whose passes are counted.

    Raises:
        ValueError: for a line without "=" or without a tensor on one of its sides, or a rank that no tensor has.

    Paper: Nayak et al., "FuseMax", arXiv 2406.10491, section III.
    """
    lines = cascade.splitlines() if isinstance(cascade, str) else list(cascade)
    einsums = [_parsed(line) for text in lines if (line := text.partition("#")[0].strip())]
    if not any(rank in ranks for made, read in einsums for _, ranks in (made, *read)):
        raise ValueError(f"no tensor of the cascade has the rank {rank!r}")
    along: dict[str, int] = {}  # tensors along the rank -> the pass that makes them
    known: dict[str, int] = {}  # all others -> passes that have ended when they are known
    passes = 0
    for (name, ranks), read in einsums:
        together = [along.get(other, 1) for other, theirs in read if rank in theirs]
        before = max([known.get(other, 0) for other, theirs in read if rank not in theirs], default=0)
        walks = bool(together) or rank in ranks
        now = max([before + 1, *together]) if walks else before
        passes = max(passes, now)
        (along if rank in ranks else known)[name] = now
    return passes


Tensor = tuple[str, frozenset[str]]


def _parsed(line: str) -> tuple[Tensor, list[Tensor]]:
    left, equals, right = line.partition("=")
    made, read = ([(name, _ranks(inner)) for name, inner in TENSOR.findall(side)] for side in (left, right))
    if not equals or len(made) != 1 or not read:
        raise ValueError(f"an Einsum is written as 'made[ranks] = read[ranks] read[ranks]', got {line!r}")
    return made[0], read


def _ranks(inner: str) -> frozenset[str]:
    """Of "m + 1, p": m and p. A number, or a name in capitals such as M, is a place and no rank."""
    return frozenset(
        found for part in inner.split(",") if (found := part.partition("+")[0].strip()) and found.islower()
    )
