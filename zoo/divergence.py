"""How far predictions are from a teacher's: the teacher's likeliest classes by one measure, all others by another."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

KINDS = ("forward", "reverse")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
    r"""TopKLD: of the K likeliest classes of the teacher p what it says explicitly, of the others what it implies.

    .. math::
        \mathcal L(p, q) = \sum_{i \in \mathrm{top}_K(p)} d_i + \lambda \sum_{i \notin \mathrm{top}_K(p)} d_i, \quad
        d_i = p_i \ln \frac{p_i}{q_i} - p_i + q_i \;\text{(forward)} \;\text{or}\;
        q_i \ln \frac{q_i}{p_i} - q_i + p_i \;\text{(reverse)}

    Every term is at least 0, and 0 only where both agree: nothing is normalised anew within the K or outside. With K
    the number of classes the sum is a Kullback-Leibler divergence, and so it is with both kinds alike and a weight of
    1. No gradient goes to the teacher. Of a class that the teacher rules out, of log-probability -inf, d is q of either
    kind: what "forward" tends to, in place of the infinity of the other.

    Raises:
        ValueError: for an unknown kind, a negative K or a negative weight.

    Paper: "Dissecting Bit-Level Scaling Laws in Quantizing Vision Generative Models", arXiv 2501.06218. Which kind goes
    where, K and the weight are not known to us: they are options, and what is left out of each sum by its masses, so
    that both agree where the student is the teacher, is ours.
    """

    top_k: int = 16
    """K; at most as many as there are classes count."""
    head: str = "forward"
    """Of the K classes: "forward" or "reverse"."""
    tail: str = "reverse"
    """Of all others."""
    tail_weight: float = 1.0
    """Of the others' sum."""

    def __post_init__(self):
        if self.top_k < 0 or not self.tail_weight >= 0:
            raise ValueError(
                f"top_k and tail_weight must be at least 0, got top_k {self.top_k} and tail_weight {self.tail_weight}"
            )
        for name in ("head", "tail"):
            if getattr(self, name) not in KINDS:
                raise ValueError(f"{name} must be one of {list(KINDS)}, got {getattr(self, name)!r}")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Log-probabilities (..., V) of both -> (...)."""
        teacher = teacher.detach()
        p, q, out = teacher.exp(), student.exp(), teacher.isneginf()
        ratio = (teacher - student).masked_fill(out, 0.0)
        terms = {
            "forward": lambda: p * ratio - p + q,
            "reverse": lambda: torch.where(out, q, q * -ratio - q + p),
        }
        found = {kind: terms[kind]() for kind in {self.head, self.tail}}
        best = teacher.topk(min(self.top_k, teacher.shape[-1]), dim=-1).indices
        inside = torch.zeros_like(teacher, dtype=torch.bool).scatter(-1, best, True)
        return torch.where(inside, found[self.head], self.tail_weight * found[self.tail]).sum(-1)
