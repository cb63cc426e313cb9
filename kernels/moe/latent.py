"""Matrices of experts as products of one that a group of them shares and a small one of each."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import check_device, check_shape
from zoo.kernels.moe.op import grouped_matmul
from zoo.kernels.moe.order import gather, sort_by_expert


class Latent(NamedTuple):
    r"""The matrices of E experts in G groups of neighbours, g = floor(e G / E).

    Into an expert :math:`W_e = B_g A_e` with ``shared`` B (G, D, r) and ``each`` A (E, r, F); out of it
    :math:`W_e = A_e B_g` with A (E, F, r) and B (G, r, D).

    Paper: Liu et al., "MoLAE", arXiv 2503.23100.
    """

    shared: Tensor
    each: Tensor

    @property
    def group_size(self) -> int:
        """Experts of a group."""
        return len(self.each) // len(self.shared)


def into_latents(x: Tensor, experts: Tensor, weight: Latent, impl: str = "auto") -> Tensor:
    """x_m B_g for each of a token's experts, computed once for those of one group.

    Args:
        x: tokens (M, D).
        experts: (M, k) int64; E itself stands for no expert, of which the result means nothing.
        weight: B and A.
        impl: implementation of ``grouped_matmul``.

    Returns:
        (M k, r), a row for each assignment m k + j.
    """
    top_k, num_groups = experts.shape[1], len(weight.shared)
    if num_groups == 1:
        bounds = torch.arange(2, device=x.device) * x.shape[0]
        latents = grouped_matmul(x, weight.shared, bounds, impl=impl)
        return latents[:, None].expand(-1, top_k, -1).flatten(0, 1)
    groups = experts // weight.group_size  # (M, k)
    first = (groups[:, :, None] == groups[:, None, :]).to(torch.uint8).argmax(-1)  # the choice that has it computed
    once = groups.masked_fill(first != torch.arange(top_k, device=x.device), num_groups)
    order = sort_by_expert(once, num_groups)
    rows = grouped_matmul(gather(x, order.order, order.inverse, top_k), weight.shared, order.offsets, impl=impl)
    latents = gather(rows, order.inverse, order.order, 1).unflatten(0, experts.shape)  # (M, k, r), 0 but at the first
    chosen = F.one_hot(first, top_k).to(latents.dtype)  # (M, k, k)
    return torch.bmm(chosen, latents).flatten(0, 1)


def check_latent(name: str, weight: Latent, x: Tensor, inputs: int | None, into: bool) -> None:
    """Raise a ValueError unless the factors fit together and take ``inputs`` channels, where those are known."""
    first, last = weight if into else weight[::-1]
    shapes = ("(G, D, r)", "(E, r, F)") if into else ("(E, F, r)", "(G, r, D)")
    check_shape("moe", f"the first factor of {name}", first, shapes[0], None, inputs, None)
    check_shape("moe", f"the last factor of {name}", last, shapes[1], None, first.shape[2], None)
    if len(weight.each) % len(weight.shared):
        raise ValueError(
            f"moe: the groups of {name} must divide the experts, got {len(weight.shared)} groups of "
            f"{len(weight.each)} experts"
        )
    check_device("moe", x=x, first=first, last=last)
