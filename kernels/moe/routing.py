"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.dispatch import check_floating, check_shape, compute_dtype

SCORES = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid}


class Routing(NamedTuple):
    """The k experts of each token, the preferred first.

    ``weights`` (M, k) and ``scores`` (M, E) of all experts are differentiable and float32 (float64 for float64
    logits); ``experts`` (M, k) is int64.
    """

    weights: Tensor
    experts: Tensor
    scores: Tensor


def top_k_routing(
    logits: Tensor,
    top_k: int,
    *,
    score: str = "softmax",
    normalize: bool = False,
    scale: float = 1.0,
    bias: Tensor | None = None,
    num_groups: int = 1,
    top_groups: int = 1,
    group_top: int = 2,
) -> Routing:
    r"""Send each token to the ``top_k`` experts of the largest scores.

    .. math::
        s = \mathrm{score}(\mathrm{logits}), \quad \mathcal{E} = \mathrm{top}_k(s + b), \quad
        w_e = \mathrm{scale} \cdot s_e \, [\, / \textstyle\sum_{j \in \mathcal{E}} s_j ]

    With ``num_groups`` > 1 the experts are ranked within the ``top_groups`` best groups of neighbouring experts, a
    group by the sum of its ``group_top`` largest :math:`s + b`.

    - Switch: ``top_k=1``. Mixtral: ``top_k=2, normalize=True``.
    - DeepSeek-V2: ``num_groups=8, top_groups=3, group_top=1``, scale 16.
    - DeepSeek-V3: ``score="sigmoid", normalize=True``, a bias, ``num_groups=8, top_groups=4``, scale 2.5.

    Args:
        logits: (M, E), any floating dtype; the scores are float32 (float64 for float64 logits).
        top_k: experts a token, 1 <= top_k <= top_groups * E / num_groups.
        score: "softmax" over the experts or "sigmoid" of each.
        normalize: weights of a token sum to ``scale``.
        bias: (E,), added for the selection only: it balances the load and has no gradient.
        num_groups: divides E.
        top_groups: at most num_groups.

    Returns:
        Routing(weights, experts, scores); gradients flow through the scores of the chosen experts.

    Raises:
        ValueError: for an unknown score, or sizes that do not fit together.

    Papers: Fedus et al., arXiv 2101.03961; Jiang et al., arXiv 2401.04088; DeepSeek-AI, arXiv 2412.19437.
    """
    _check(logits, top_k, score, bias, num_groups, top_groups, group_top)
    scores = SCORES[score](logits.to(compute_dtype(logits)))
    ranked = scores.detach() if bias is None else scores.detach() + bias.detach()
    if top_groups < num_groups:
        ranked = _within_best_groups(ranked, num_groups, top_groups, group_top)
    experts = ranked.topk(top_k, dim=-1).indices
    weights = scores.gather(-1, experts)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(weights * scale, experts, scores)


def _within_best_groups(ranked: Tensor, num_groups: int, top_groups: int, group_top: int) -> Tensor:
    """The scores, -inf outside the best groups of each token."""
    grouped = ranked.unflatten(-1, (num_groups, -1))  # (M, G, E / G)
    best = grouped.topk(group_top, dim=-1).values.sum(-1).topk(top_groups, dim=-1).indices
    outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    return grouped.masked_fill(outside[..., None], -torch.inf).flatten(-2)


def _check(logits, top_k, score, bias, num_groups, top_groups, group_top) -> None:
    check_shape("top_k_routing", "logits", logits, "(M, E)", None, None)
    check_shape("top_k_routing", "bias", bias, "(E,)", logits.shape[1])
    check_floating("top_k_routing", logits=logits, bias=bias)
    if score not in SCORES:
        raise ValueError(f"top_k_routing: score must be one of {list(SCORES)}, got {score!r}")
    experts = logits.shape[1]
    if num_groups < 1 or experts % num_groups or not 1 <= top_groups <= num_groups:
        raise ValueError(
            "top_k_routing: num_groups must divide the experts and top_groups lie in [1, num_groups], got "
            f"{experts} experts, num_groups {num_groups}, top_groups {top_groups}"
        )
    size = experts // num_groups
    if not 1 <= top_k <= top_groups * size or (top_groups < num_groups and not 1 <= group_top <= size):
        raise ValueError(
            f"top_k_routing: top_k must lie in [1, {top_groups * size}] (the experts of {top_groups} groups of {size})"
            f" and group_top in [1, {size}], got top_k {top_k}, group_top {group_top}"
        )
