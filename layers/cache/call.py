"""The newest tokens, as a policy is shown them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from zoo.layers.attention.keys import EMPTY


class Attention(Protocol):
    """What a state asks of the attention that it belongs to, with keys and values in the form that it keeps them."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, /) -> Tensor:
        """q (B, H, T, d) over k and v (B, G, S, d), by a mask as in ``Attended``: (B, H, T, d)."""
        ...

    def logits(self, q: Tensor, k: Tensor, v: Tensor, /) -> Tensor:
        """Of q (B, H, T, d) with all of k and v (B, G, S, d): (B, G, H / G, T, S), float32 or wider."""
        ...

    def bounded(self, dots: Tensor) -> Tensor:
        """Logits of products q k^T."""
        ...

    def weights(self, logits: Tensor) -> Tensor:
        """Of logits (B, G, H / G, T, S), -inf where nothing is seen."""
        ...

    def mixed(self, weights: Tensor, v: Tensor, /) -> Tensor:
        """The values v (B, G, S, d) by weights (B, G, H / G, T, S): (B, H, T, d)."""
        ...

    def turned(self, heads: Tensor, by: Tensor) -> Tensor:
        """Queries or keys (B, H, T, d) as if they stood ``by`` (B, 1 or H, T) positions later."""
        ...


@dataclass(frozen=True)
class Call:
    """Queries (B, H, T, d) at positions (T,) or (B, T), ``EMPTY`` at padding, and the attention that they are of."""

    q: Tensor
    position: Tensor
    attention: Attention

    @property
    def length(self) -> int:
        """T."""
        return self.q.shape[2]

    def part(self, start: int, stop: int) -> Call:
        """The tokens from ``start`` up to ``stop``."""
        return Call(self.q[:, :, start:stop], self.position[..., start:stop], self.attention)

    def newest(self, count: int) -> Call:
        """The last ``count`` tokens."""
        return self.part(max(0, self.length - count), self.length)

    @property
    def positions(self) -> Tensor:
        """(B, T)."""
        return self.position.expand(self.q.shape[0], self.length)

    @property
    def real(self) -> Tensor:
        """(B, T), False at padding."""
        return self.positions != EMPTY
