"""Linear attention with the Taylor feature map of BASED."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.taylor_attention import taylor_attention
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.options import require_at_least
from zoo.layers.state import State, keep_rows


@dataclass
class TaylorAttentionState(State):
    """memory (B, H, D, V + 1), float32: the sums of phi(k) (v, 1) over the past."""

    wide: ClassVar[tuple[str, ...]] = ("memory",)

    memory: Tensor


class TaylorAttention(Mixer):
    r"""Causal attention with the weights 1 + s + s^2 / 2, s = q . k / sqrt(feature_dim), in place of exp(s).

    .. math::
        q, k, v = W_q x, W_k x, W_v x, \quad
        y_t = W_o \frac{\phi(q_t)^\top S_t}{\phi(q_t)^\top z_t}, \quad
        S_t = \sum_{j \le t} \phi(k_j) v_j^\top, \; z_t = \sum_{j \le t} \phi(k_j)

    phi has D = (feature_dim + 1)(feature_dim + 2) / 2 features, so the state does not grow with the sequence. There are
    no biases, no position information and no norms of q and k.

    Args:
        dim: model width.
        num_heads: heads H of width V = dim / num_heads.
        feature_dim: width of a head's queries and keys; the state grows with its square.
        eps: added to the sum of the weights.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.

    Raises:
        ValueError: when num_heads does not divide dim, or feature_dim is below 1.

    Paper: Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff", arXiv
    2402.18668, section 4.
    """

    def __init__(self, dim: int, num_heads: int, feature_dim: int = 16, eps: float = 1e-12, chunk_size: int = 64):
        super().__init__()
        require_at_least(1, num_heads=num_heads, chunk_size=chunk_size)
        require_at_least(0, eps=eps)
        if dim % num_heads or feature_dim < 1:
            raise ValueError(
                "num_heads must divide dim and feature_dim must be at least 1: "
                f"got dim {dim}, num_heads {num_heads}, feature_dim {feature_dim}"
            )
        self.num_heads, self.feature_dim, self.head_dim = num_heads, feature_dim, dim // num_heads
        self.eps, self.chunk_size = eps, chunk_size
        self.q_proj = nn.Linear(dim, num_heads * feature_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_heads * feature_dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    @skips_padding
    def forward(self, x: Tensor, state: TaylorAttentionState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        q, k, v = (proj(x).unflatten(-1, (self.num_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        past = None if state is None else keep_rows(state.memory, state.advance_sequence(seq_idx))
        y, memory = taylor_attention(
            q, k, v, eps=self.eps, initial_state=past, seq_idx=seq_idx, chunk_size=self.chunk_size
        )
        if state is not None:
            state.memory = memory
        return self.out_proj(y.flatten(2))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> TaylorAttentionState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        shape = (batch_size, self.num_heads, self.num_features, self.head_dim + 1)
        wide = compute_dtype(dtype)
        return TaylorAttentionState(torch.zeros(shape, device=device, dtype=wide))

    @property
    def num_features(self) -> int:
        """D: 1, the feature_dim entries of a key, and their distinct products."""
        return (self.feature_dim + 1) * (self.feature_dim + 2) // 2

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.num_heads * self.num_features * (self.head_dim + 1)
