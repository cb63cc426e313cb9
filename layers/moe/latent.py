"""Matrices of experts through a latent space that a group of them shares (MoLAE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.kernels.moe import Latent


class LatentMatrix(nn.Module):
    r"""The matrices of E experts as products of one that a group shares and a small one of each.

    .. math::
        W_e = B_g A_e \;\text{into the experts}, \quad W_e = A_e B_g \;\text{out of them},
        \quad g = \lfloor e G / E \rfloor

    In a ``RoutedExperts`` it stands for w1 and w3, of which a token's B_g x is computed once for all its experts of a
    group, or for w2. Of E matrices of D times F numbers G D r + E r F are left.

    Attributes:
        shared: B (G, D, r), or (G, r, D) out of the experts.
        each: A (E, r, F), or (E, F, r).

    Args:
        num_experts: E.
        num_groups: G groups of neighbours, which divides E.
        inputs, outputs: the sides of a matrix: D and F, or F and D out of the experts.
        rank: r, the width of the latent space.
        out: the matrices lead out of the experts.

    Raises:
        ValueError: for a rank outside [1, min(D, E F / G)], which loses nothing.

    Paper: Liu et al., "MoLAE: Mixture of Latent Experts for Parameter-Efficient Language Models", arXiv 2503.23100;
    there of the matrices into the experts. Out of them: this library's own, symmetrical.
    """

    def __init__(self, num_experts: int, num_groups: int, inputs: int, outputs: int, rank: int, out: bool = False):
        super().__init__()
        inner, dim = (inputs, outputs) if out else (outputs, inputs)
        full = min(dim, num_experts // num_groups * inner)
        if not 1 <= rank <= full:
            raise ValueError(f"rank must lie in [1, {full}], which loses nothing, got {rank}")
        self.out = out
        self.shared = nn.Parameter(torch.empty((num_groups, rank, dim) if out else (num_groups, dim, rank)))
        self.each = nn.Parameter(torch.empty((num_experts, inner, rank) if out else (num_experts, rank, inner)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform factors, whose product varies as nn.Linear's weights do."""
        first, last = (self.each, self.shared) if self.out else (self.shared, self.each)
        nn.init.uniform_(first, -(first.shape[1] ** -0.5), first.shape[1] ** -0.5)
        nn.init.uniform_(last, -((3 / last.shape[1]) ** 0.5), (3 / last.shape[1]) ** 0.5)

    @property
    def rank(self) -> int:
        """r."""
        return self.shared.shape[1 if self.out else 2]

    def num_idle(self, top_k: int) -> int:
        """Parameters that a token of ``top_k`` experts leaves alone, however they spread over the groups."""
        groups, experts = len(self.shared), len(self.each)
        idle = max(0, groups - top_k) * (self.shared.numel() // groups)
        return idle + (experts - top_k) * (self.each.numel() // experts)

    def operand(self, dtype: torch.dtype | None = None) -> Latent:
        """The factors, as ``kernels.moe`` takes them, in another dtype where one is given."""
        return Latent(*(factor if dtype is None else factor.to(dtype) for factor in (self.shared, self.each)))

    def product(self) -> Tensor:
        """The matrices written out: (E, D, F), or (E, F, D) out of the experts."""
        shared = self.shared.repeat_interleave(len(self.each) // len(self.shared), dim=0)
        return self.each @ shared if self.out else shared @ self.each

    @torch.no_grad()
    def solve(self, matrices: Tensor, expert_rank: int | None = None) -> None:
        r"""The nearest factors of matrices (E, D, F), or (E, F, D) out of the experts.

        B are the r leading singular vectors, on the side of D, of a group's matrices side by side; A_e is what they
        make of W_e. What is lost, summed squares over the group, are the squares of the other singular values.

        Args:
            expert_rank: each matrix is cut to this rank first, for what the experts have each for themselves to be
                left out of the common space; None: not.
        """
        if matrices.is_meta:
            return
        wide = matrices.double()
        if expert_rank is not None:
            left, values, right = torch.linalg.svd(wide, full_matrices=False)
            wide = left[..., :expert_rank] * values[:, None, :expert_rank] @ right[:, :expert_rank]
        grouped = wide.unflatten(0, (len(self.shared), -1))  # (G, E / G, D, F)
        grouped = grouped.mT if self.out else grouped
        stacks = grouped.transpose(1, 2).flatten(2)  # (G, D, E / G F)
        for group, stack in enumerate(stacks):
            basis = torch.linalg.svd(stack, full_matrices=False).U[:, : self.rank]
            small = (basis.mT @ grouped[group]).contiguous()  # (E / G, r, F)
            self.shared[group] = basis.mT if self.out else basis
            self.each.view(len(self.shared), -1, *self.each.shape[1:])[group] = small.mT if self.out else small
