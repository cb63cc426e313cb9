"""What several layers made of earlier tokens, woven into what a layer makes of later ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.layers.attention.cross import CrossAttention
from zoo.layers.options import require_at_least


@dataclass
class LatentStates:
    """States (B, n, layers, dim) of earlier tokens, in their order, as so many layers left them."""

    states: Tensor

    @property
    def nbytes(self) -> int:
        """Memory, in bytes."""
        return self.states.nbytes


class ContextReweaving(nn.Module):
    r"""Inspired by Contextual Memory Reweaving: latent states of earlier chunks of a text are kept, made one vector a
    token of, and attended to.

    .. math:: r_i = \sum_l s_l \, \sigma(w_l \cdot h_i^l), \quad R_i = r_i \sum_l s_l W_l h_i^l, \quad
        y_t = h_t + \tanh(g) \, \mathrm{attention}(h_t, R), \quad s = \mathrm{softmax}(a)

    over the captured layers l. The ``keep`` tokens with the largest r stay, in their order; g is 0 at first, and then y
    is h bit for bit. States are kept without their history: r learns by what it multiplies.

    Only the abstract of the paper is known to us, which has no equation: these are ours, and no figure of the paper is
    about them.

    Args:
        dim: of the states.
        captured: layers whose states are kept.
        keep: tokens that are kept at most; 0 for none.
        num_heads: of the attention.

    Raises:
        ValueError: for a number below 1, a negative keep, or heads that do not divide dim.

    Paper: "Contextual Memory Reweaving in Large Language Models Using Layered Latent State Reconstruction", arXiv
    2502.02046.
    """

    def __init__(self, dim: int, captured: int = 1, keep: int = 64, num_heads: int = 4):
        super().__init__()
        require_at_least(1, captured=captured)
        require_at_least(0, keep=keep)
        self.captured, self.keep = captured, keep
        self.scores = nn.ModuleList(nn.Linear(dim, 1, bias=False) for _ in range(captured))
        self.maps = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(captured))
        self.shares = nn.Parameter(torch.zeros(captured))
        self.attention = CrossAttention(dim, num_heads)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor, memory: LatentStates | None) -> Tensor:
        """h (B, T, dim), of tokens after all that are remembered -> (B, T, dim)."""
        if memory is None or not memory.states.shape[1]:
            return h
        past = self.reconstructed(memory.states)
        woven = self.attention(h.to(past.dtype), past, past)
        return h + (self.gate.tanh() * woven).to(h.dtype)

    def relevance(self, states: Tensor) -> Tensor:
        """r (B, n) of states (B, n, captured, dim)."""
        each = torch.cat([score(states[:, :, index]) for index, score in enumerate(self.scores)], -1).sigmoid()
        return each @ self.shares.softmax(0)

    def reconstructed(self, states: Tensor) -> Tensor:
        """R (B, n, dim) of states (B, n, captured, dim)."""
        each = torch.stack([mapped(states[:, :, index]) for index, mapped in enumerate(self.maps)], -1)
        return self.relevance(states)[..., None] * (each @ self.shares.softmax(0))

    @torch.no_grad()
    def remember(self, memory: LatentStates | None, states: Sequence[Tensor]) -> LatentStates:
        """The memory after further tokens, whose states (B, T, dim) are given a captured layer each.

        Raises:
            ValueError: for states of another number of layers.
        """
        if len(states) != self.captured:
            raise ValueError(f"the states of {self.captured} layers are kept, got those of {len(states)}")
        found = torch.stack(list(states), 2).detach().to(self.shares.dtype)  # (B, T, captured, dim)
        if memory is not None:
            found = torch.cat([memory.states, found], 1)
        if found.shape[1] > self.keep:
            best = self.relevance(found).topk(self.keep, dim=1).indices.sort(dim=1).values
            found = found.take_along_dim(best[..., None, None], 1)
        return LatentStates(found)
