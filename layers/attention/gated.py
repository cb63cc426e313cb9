"""Causal attention whose output is gated by its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.layers.attention.causal import CausalAttention


class GatedAttention(CausalAttention):
    r"""Attention whose heads' outputs are multiplied by gates before they are mixed.

    .. math:: y = W_o \big( \mathrm{attention}(x) \odot \sigma(W_g x) \big)

    Args and errors: those of ``CausalAttention``; ``bias`` is of the gates too.

    Paper: Qiu et al., "Gated Attention for Large Language Models", arXiv 2505.06708; as in Qwen3-Next.
    """

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int | None = None, *, bias: bool = False, **options: Any
    ):
        super().__init__(dim, num_heads, num_kv_heads, bias=bias, **options)
        self.gate_proj = nn.Linear(dim, num_heads * self.head_dim, bias)

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """The heads' outputs y (B, T, H d), by the gates of x (B, T, dim) -> (B, T, dim)."""
        return self.out_proj(y * self.gate_proj(x).sigmoid())
