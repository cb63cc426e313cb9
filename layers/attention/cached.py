"""Attention to the keys and values that another attention has cached."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import Keys, Place, Placed
from zoo.layers.cache.call import Attention
from zoo.layers.state import State


class CachedAttention(nn.Module):
    """Queries of one's own to the cache of a ``CausalAttention``, in the way that this attends to it.

    Args:
        dim: model width.
        attention: whose cache it will read; only its sizes are taken.
    """

    def __init__(self, dim: int, attention: CausalAttention):
        super().__init__()
        self.num_heads, width = attention.num_heads, attention.num_heads * attention.head_dim
        self.q_proj, self.out_proj = nn.Linear(dim, width), nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor, position: Tensor, held: Keys, mask: Tensor, attention: CausalAttention) -> Tensor:
        """x (B, T, dim) -> (B, T, dim).

        Args:
            x: (B, T, dim).
            position: (T,) or (B, T), of x.
            held: keys and values as the attention keeps them, turned to their positions.
            mask: (B, T, S), which of them are seen; what sees nothing gets zeros.
            attention: whose they are: its norm, positions and scale are those of the queries.
        """
        q = self.q_proj(x).unflatten(-1, (self.num_heads, -1))
        (q,) = attention.rotated(position, attention.q_norm(q))
        something = mask.any(-1, keepdim=True)
        y = attention.attend(q.transpose(1, 2), held.key, held.value, (mask | ~something)[:, None])
        return self.out_proj(y.transpose(1, 2).flatten(2)) * something


@dataclass
class AnchoredState(State):
    """Keeps the keys and values (B, H, T, d) of a whole text in one call, whose first ``anchors`` tokens stand where
    they are, and all others ``offset`` positions later.

    Short texts so show a layer the positions of long ones. Papers: the anchors, which attention rests on, are those of
    Xiao et al., arXiv 2309.17453; Yang et al., "LongSpec", arXiv 2502.17421, section 3.2.
    """

    key: Tensor
    value: Tensor
    position: Tensor | None = None
    anchors: int = field(kw_only=True)
    offset: int = field(kw_only=True)

    def place(self, length: int, seq_idx: Tensor | None = None) -> Place:
        """Where the tokens stand."""
        position = torch.arange(length, device=self.key.device)
        return Place(position + self.offset * (position >= self.anchors), seq_idx, seq_idx is not None)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, place: Placed, attention: Attention, *, noted: bool = False
    ) -> Tensor:
        """See ``CacheState.attend``; windows count positions."""
        self.key, self.value, self.position = k, v, place.position
        self.seen += q.shape[2]
        keys = Keys(k, v, place.position, place.ids)
        return attention.attend(q, k, v, keys.mask(place, getattr(attention, "window", None)))
