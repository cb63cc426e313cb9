"""Candidates of a search that compute the same, told by a hash of what they compute, however they are written.

Paper: Gillard et al., "Unified Functional Hashing in Automatic Machine Learning", arXiv 2302.05433; numbers as its
authors' code has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from zoo.layers.options import require_at_least

Candidate = TypeVar("Candidate", bound=Hashable)


def functional_hash(outputs: Tensor, mantissa: int = 24) -> str:
    """Of the outputs of a candidate for fixed inputs, any shape: sign, exponent and the first bits of the mantissa of
    each number count; zeros have no sign, and all that is no number is alike.

    Values near to each other on both sides of a border have different hashes: compute the same bit for bit, in eval
    mode, from fixed seeds.

    Raises:
        ValueError: for a mantissa of other than 0 to 52 bits.
    """
    if not 0 <= mantissa <= 52:
        raise ValueError(f"mantissa must be 0 to 52 bits, got {mantissa}")
    numbers = outputs.detach().double().cpu().contiguous().flatten().numpy()
    numbers = np.where(np.isnan(numbers), np.nan, numbers) + 0.0  # one nan, one zero
    kept = numbers.view(np.uint64) & ~np.uint64(2 ** (52 - mantissa) - 1)
    return hashlib.sha256(repr(tuple(outputs.shape)).encode() + kept.tobytes()).hexdigest()


class FunctionalCache(Generic[Candidate]):
    """What candidates are worth, evaluated once for all that compute the same: a search calls it in place of
    ``evaluate``, takes the same way where that is deterministic, and evaluates less.

    Args:
        evaluate: what a candidate is worth, which takes long.
        outputs: of a candidate for a few fixed inputs, which does not.
        most: evaluations of one hash, whose mean is its value; more where they are noisy.
        forget: chance that a hash is forgotten when it is found, so that a lucky value does not stay.
        mantissa: see ``functional_hash``.
        seed: of what is forgotten.

    Attributes:
        asked, evaluated: how often; the difference was skipped.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(
        self,
        evaluate: Callable[[Candidate], Sequence[float]],
        outputs: Callable[[Candidate], Tensor],
        *,
        most: int = 1,
        forget: float = 0.0,
        mantissa: int = 24,
        seed: int = 0,
    ):
        require_at_least(1, most=most)
        if not 0 <= forget <= 1:
            raise ValueError(f"forget must be in [0, 1], got {forget}")
        functional_hash(torch.zeros(1), mantissa)
        self.evaluate, self.outputs = evaluate, outputs
        self.most, self.forget, self.mantissa = most, forget, mantissa
        self.source = np.random.default_rng(seed)
        self.known: dict[str, list[Sequence[float]]] = {}
        self.asked = self.evaluated = 0

    @property
    def skipped(self) -> float:
        """Share of the candidates that were not evaluated."""
        return 1 - self.evaluated / max(1, self.asked)

    def __call__(self, candidate: Candidate) -> tuple[float, ...]:
        self.asked += 1
        key = functional_hash(self.outputs(candidate), self.mantissa)
        found = self.known.setdefault(key, [])
        if len(found) < self.most:
            found.append(self.evaluate(candidate))
            self.evaluated += 1
        elif self.forget and self.source.random() < self.forget:
            del self.known[key]
        return tuple(np.mean(found, axis=0).tolist())
