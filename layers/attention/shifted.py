"""Attention in groups, half of the heads' groups shifted, for tuning on sequences longer than a model knows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import Place
from zoo.layers.options import require_at_least
from zoo.layers.recast import recast


class ShiftedAttention(CausalAttention):
    r"""In training, each token attends to the past within its group of ceil(T / ``groups``) tokens and to ``sinks``
    first tokens; in eval mode, and from a state, to the whole past: a ``CausalAttention``.

    The groups of the last heads begin half a group later: of half of the heads, less the share ``returned`` of these.
    The group that wraps around holds the last and the first tokens, and there as everywhere no token sees a later one,
    by the places that they have in the sequence. (The mask of the published code goes by those in the group, where
    first tokens see last ones.) One group is whole attention; no sinks and nothing returned is LongLoRA's.

    Args:
        options: of ``CausalAttention``, without learned sinks.

    Papers: Zhang, "SinkLoRA", arXiv 2406.05678, whose share of returned heads is not in its published code; Chen et
    al., "LongLoRA", arXiv 2309.12307.
    """

    groups: int
    sink_tokens: int
    returned: float

    @classmethod
    def of(cls, attention: CausalAttention, groups: int, sink_tokens: int, returned: float) -> ShiftedAttention:
        """The same attention, of the same parts, that attends in groups.

        Raises:
            ValueError: for numbers out of range.
        """
        require_at_least(1, groups=groups)
        require_at_least(0, sinks=sink_tokens)
        if not 0 <= returned <= 1:
            raise ValueError(f"returned must be in [0, 1], got {returned}")
        made = recast(attention, cls)
        made.groups, made.sink_tokens, made.returned = groups, sink_tokens, returned
        return made

    def plain(self) -> CausalAttention:
        """The attention that it was made of."""
        made = recast(self, CausalAttention)
        for name in ("groups", "sink_tokens", "returned"):
            delattr(made, name)
        return made

    @property
    def whole_in_training(self) -> bool:
        """Groups are parts of the whole sequence."""
        return self.groups > 1

    @property
    def shifted_heads(self) -> int:
        """How many of the heads have shifted groups."""
        return round((self.num_heads - self.num_heads // 2) * (1 - self.returned))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, place: Place, state=None) -> Tensor:
        """Queries, keys and values (B, H, T, d) of the tokens at ``place`` to their outputs (B, H, T, d)."""
        if state is not None or not self.training or self.groups == 1:
            return super().mix(q, k, v, place, state)
        k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], 1) for heads in (k, v))
        size, plain = -(-q.shape[2] // self.groups), self.num_heads - self.shifted_heads
        y = self.in_groups(q[:, :plain], k[:, :plain], v[:, :plain], place, size, 0)
        if not self.shifted_heads:
            return y
        late = self.in_groups(q[:, plain:], k[:, plain:], v[:, plain:], place, size, size // 2)
        return torch.cat([y, late], 1)

    def in_groups(self, q: Tensor, k: Tensor, v: Tensor, place: Place, size: int, shift: int) -> Tensor:
        """Heads (B, H, T, d) whose groups of ``size`` tokens begin ``shift`` tokens later -> (B, H, T, d)."""
        length, first = q.shape[2], min(self.sink_tokens, q.shape[2])
        count = -(-length // size)
        order = torch.arange(count * size, device=q.device).roll(-shift)  # places in the sequence, some past its end
        token = order.clamp(max=length - 1).view(count, size)  # (N, G)

        def grouped(x: Tensor) -> Tensor:
            return x[:, :, token].transpose(1, 2).flatten(0, 1)  # (B, H, T, d) -> (B N, H, G, d)

        def with_sinks(x: Tensor) -> Tensor:
            sinks = x[:, None, :, :first].expand(-1, count, -1, -1, -1).flatten(0, 1)
            return torch.cat([sinks, grouped(x)], 2)

        order = order.view(count, size)
        sinks = torch.arange(first, device=q.device).expand(count, -1)
        inside = (order[:, :, None] == sinks[:, None]).any(1, keepdim=True)  # (N, 1, S): there among the group's own
        seen = torch.cat([(sinks[:, None] <= order[..., None]) & ~inside, order[:, None] <= order[..., None]], 2)
        mask = seen[None]  # (1, N, G, S + G)
        if place.ids is not None:
            ids, theirs = place.ids[:, token], place.ids[:, torch.cat([sinks, token], 1)]
            mask = mask & (ids[..., None] == theirs[:, :, None])
        mask = mask.expand(len(q), -1, -1, -1).flatten(0, 1)[:, None]
        y = F.scaled_dot_product_attention(grouped(q), with_sinks(k), with_sinks(v), attn_mask=mask, scale=self.scale)
        y = y.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)  # (B, H, N G, d)
        return y.roll(shift, 2)[:, :, :length]
