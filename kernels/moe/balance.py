"""How evenly tokens spread over experts: training losses and what to report."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.dispatch import check_shape, compute_dtype


class Utilisation(NamedTuple):
    """Share of the assignments that each expert (E,) takes; entropy () of the shares in nats, log E when even; the
    assignments themselves (E,) int64."""

    shares: Tensor
    entropy: Tensor
    counts: Tensor


def load_balance_loss(scores: Tensor, experts: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Auxiliary loss of Switch Transformers (equations 4-6), for any number of experts a token.

    .. math::
        L = E \sum_e f_e P_e

    with :math:`f_e` the assignments of expert e over the tokens and :math:`P_e` its mean score; k when balanced. For a
    loss over several layers concatenate their tokens. DeepSeek-V3's has scores that are normalised to sum to 1 over
    the experts, one sequence at a time, and is divided by k.

    Args:
        scores: (M, E), of ``top_k_routing``: the probabilities of all experts.
        experts: (M, k), before any capacity.
        mask: (M,), True for tokens that count; all when None.

    Returns:
        () float32 (float64 for float64 scores), to be multiplied by a coefficient such as 0.01.

    Paper: Fedus et al., arXiv 2101.03961.
    """
    check_shape("load_balance_loss", "scores", scores, "(M, E)", None, None)
    check_shape("load_balance_loss", "experts", experts, "(M, k)", scores.shape[0], None)
    check_shape("load_balance_loss", "mask", mask, "(M,)", scores.shape[0])
    probability = _token_mean(scores.to(compute_dtype(scores)), mask)
    counts = _counts(experts, scores.shape[1], mask).to(probability.dtype)
    frequency = counts / _tokens(scores, mask)
    return scores.shape[1] * (frequency * probability).sum()


def router_z_loss(logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Mean over tokens of :math:`(\log \sum_e \exp \mathrm{logits}_e)^2`: keeps the logits small.

    Args:
        logits: (M, E), before softmax or sigmoid.
        mask: (M,), True for tokens that count; all when None.

    Returns:
        () float32 (float64 for float64 logits), to be multiplied by a coefficient such as 0.001.

    Paper: Zoph et al., "ST-MoE", arXiv 2202.08906, equation 5.
    """
    check_shape("router_z_loss", "logits", logits, "(M, E)", None, None)
    check_shape("router_z_loss", "mask", mask, "(M,)", logits.shape[0])
    return _token_mean(logits.to(compute_dtype(logits)).logsumexp(-1).square(), mask)


def expert_utilisation(experts: Tensor, num_experts: int, *, mask: Tensor | None = None) -> Utilisation:
    """How much of the load each expert carries.

    Args:
        experts: (M, k); ``num_experts`` itself stands for no expert and is not counted.
        mask: (M,), True for tokens that count; all when None.
    """
    check_shape("expert_utilisation", "experts", experts, "(M, k)", None, None)
    check_shape("expert_utilisation", "mask", mask, "(M,)", experts.shape[0])
    counts = _counts(experts, num_experts, mask)
    shares = counts / counts.sum().clamp(min=1)
    return Utilisation(shares, torch.special.entr(shares).sum(), counts)


def _counts(experts: Tensor, num_experts: int, mask: Tensor | None) -> Tensor:
    """Assignments of each expert (E,), integers: their sum does not depend on its order."""
    one = experts.new_ones(experts.shape) if mask is None else mask.long()[:, None].expand_as(experts)
    counts = experts.new_zeros(num_experts + 1).scatter_add(0, experts.flatten(), one.flatten())
    return counts[:num_experts]


def _tokens(values: Tensor, mask: Tensor | None) -> Tensor | int:
    return max(values.shape[0], 1) if mask is None else mask.sum().clamp(min=1)


def _token_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens that count, 0 when there are none; what a masked token holds does not matter."""
    if mask is not None:
        values = values.where(mask.bool().view(-1, *[1] * (values.dim() - 1)), 0.0)
    return values.sum(0) / _tokens(values, mask)
