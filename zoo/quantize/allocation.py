"""Bits of each matrix within a budget, by an integer programme."""

from __future__ import annotations

from collections.abc import Mapping


def allocated(
    scores: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], budget: float
) -> dict[str, int] | None:
    r"""The bits of each part with the largest sum of scores among all whose mean is no more than the budget.

    .. math::
        \max \sum_{i, b} s_{ib} c_{ib}, \quad \sum_b c_{ib} = 1, \quad \sum_{i, b} b n_i c_{ib} \le B \sum_i n_i

    Args:
        scores: name of a part -> bits -> score, finite.
        sizes: numbers of each part.
        budget: B.

    Returns:
        Bits by name; None where no choice is within the budget.

    Paper: Zhao et al., "MixDQ", arXiv 2405.17873, which keeps the mean within 2 % of the budget on both sides; here it
    is a bound, which few parts can meet too.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    pairs = [(name, bits) for name, found in scores.items() for bits in found]
    if not pairs:
        return {}
    names = list(scores)
    one = np.zeros((len(names), len(pairs)))
    for column, (name, _) in enumerate(pairs):
        one[names.index(name), column] = 1
    total = sum(sizes[name] for name in names)
    spent = np.array([[bits * sizes[name] / total for name, bits in pairs]])
    found = milp(
        np.array([-scores[name][bits] for name, bits in pairs]), integrality=np.ones(len(pairs)), bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(spent, -np.inf, budget * (1 + 1e-9))],
    )  # fmt: skip
    if found.x is None:
        return None
    return {name: bits for (name, bits), chosen in zip(pairs, found.x, strict=True) if chosen > 0.5}


def group_budgets(content: int, quality: int, budget: float, ratio: float) -> tuple[float, float]:
    r"""Mean bits of two groups of so many numbers, :math:`B_c = k B_q`, with a mean of the budget over both."""
    if not content or not quality:
        return budget, budget
    share = content / quality
    own = budget * (1 + share) / (ratio * share + 1)
    return ratio * own, own
