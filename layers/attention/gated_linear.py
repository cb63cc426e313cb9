"""Linear attention with decay: a gate a key channel (GLA), or one constant a head and rotary positions (retention)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.attention.memory import MemoryMixer, MemoryState
from zoo.layers.attention.rotary import Rotary
from zoo.layers.mixer import skips_padding
from zoo.layers.norm import RMSNorm, gated
from zoo.layers.options import require_at_least


@dataclass
class RetentionState(MemoryState):
    """memory as in ``MemoryState``; position (B,), of each row's next token."""

    position: Tensor


class GatedLinearAttention(MemoryMixer):
    r"""Linear attention whose memory decays by a gate a key channel, and whose output is gated.

    .. math::
        q, k, v = W_q x, W_k x, W_v x, \quad g = \log \sigma(W_2 W_1 x + b) / \mathrm{gate\_temperature}, \quad
        y = W_o \big( \mathrm{RMSNorm}(\mathrm{linear\_attention}(q, k, v, g)) \odot \mathrm{silu}(W_g x) \big)

    with the norm over each head.

    Args:
        dim: model width.
        num_heads: heads H.
        expand_k: width of all queries over dim.
        expand_v: width of all values over dim.
        gate_rank: rows of W_1.
        gate_temperature: the larger, the slower memory decays.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.
        norm_eps: of the norm over the outputs.

    Raises:
        ValueError: where num_heads does not divide expand_k dim and expand_v dim.

    Paper: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635; as in
    flash-linear-attention's GatedLinearAttention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        require_at_least(1, dim=dim, num_heads=num_heads, gate_rank=gate_rank, chunk_size=chunk_size)
        self.num_heads, self.gate_temperature, self.chunk_size = num_heads, gate_temperature, chunk_size
        self.key_dim = head_width(dim, num_heads, "expand_k", expand_k)
        self.value_dim = head_width(dim, num_heads, "expand_v", expand_v)
        keys, values = num_heads * self.key_dim, num_heads * self.value_dim
        self.q_proj, self.k_proj = nn.Linear(dim, keys, bias=False), nn.Linear(dim, keys, bias=False)
        self.v_proj, self.g_proj = nn.Linear(dim, values, bias=False), nn.Linear(dim, values, bias=False)
        self.build_decay(dim, gate_rank)
        self.o_norm = RMSNorm(self.value_dim, norm_eps)
        self.out_proj = nn.Linear(values, dim, bias=False)

    def build_decay(self, dim: int, rank: int) -> None:
        """What ``log_decay`` needs."""
        keys = self.num_heads * self.key_dim
        self.gk_proj = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, keys))

    @skips_padding
    def forward(self, x: Tensor, state: MemoryState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        q, k, v, gate = (
            proj(x).unflatten(-1, (self.num_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        )  # (B, T, H, K or V)
        q, k = self.placed(q, k, state)
        o = self.recall(q, k, v, self.log_decay(x), state, seq_idx)
        return self.out_proj(gated(self.o_norm, o, gate).flatten(-2))

    def log_decay(self, x: Tensor) -> Tensor:
        """Of the memory at each step and head, (B, T, H) or (B, T, H, K)."""
        logits = self.gk_proj(x).unflatten(-1, (self.num_heads, -1))
        return F.logsigmoid(logits.to(compute_dtype(logits))) / self.gate_temperature

    def placed(self, q: Tensor, k: Tensor, state: MemoryState | None) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, T, H, K) where their positions count."""
        return q, k


class Retention(GatedLinearAttention):
    r"""Multi-scale retention: linear attention of rotated queries and keys, with a constant decay a head.

    .. math::
        g_h = \log(1 - 2^{-5 - h}), \quad y = W_o \big( \mathrm{RMSNorm}(\mathrm{linear\_attention}(R q, R k, v, g))
        \odot \mathrm{silu}(W_g x) \big)

    for head h = 0, 1, ...; R turns channel pairs (i, i + K/2) by position rope_base^(-2i/K).

    Args:
        dim: model width.
        num_heads: heads H.
        expand_k: width of all queries over dim.
        expand_v: width of all values over dim.
        rope_base: wavelength base of the rotary positions.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.
        norm_eps: of the norm over the outputs.

    Raises:
        ValueError: where num_heads does not divide expand_k dim into heads of even width, or expand_v dim.

    Paper: Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", arXiv 2307.08621; as
    in flash-linear-attention's MultiScaleRetention, with an RMSNorm that has weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        rope_base: float = 10000.0,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
    ):
        super().__init__(dim, num_heads, expand_k, expand_v, chunk_size=chunk_size, norm_eps=norm_eps)
        self.rotary = Rotary(self.key_dim, rope_base)

    def build_decay(self, dim: int, rank: int) -> None:
        """Nothing: the decay has no parameters."""

    def log_decay(self, x: Tensor) -> Tensor:
        """The same at every step, (B, T, H)."""
        head = torch.arange(self.num_heads, device=x.device, dtype=compute_dtype(x))
        return torch.log1p(-(2.0 ** (-5 - head))).expand(*x.shape[:2], -1)

    def placed(self, q: Tensor, k: Tensor, state: MemoryState | None) -> tuple[Tensor, Tensor]:
        """Turned by their positions."""
        position = torch.arange(q.shape[1], device=q.device)
        if isinstance(state, RetentionState):
            position = state.position[:, None] + position
            state.position = state.position + q.shape[1]
        q, k = self.rotary(position, q, k)
        return q, k

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> RetentionState:
        """Zeros; the size does not depend on ``max_length``."""
        memory = super().init_state(batch_size, max_length, device, dtype).memory
        return RetentionState(memory, torch.zeros(batch_size, dtype=torch.int64, device=memory.device))

    def state_size(self, length: int) -> int:
        """Constant in ``length``: the memory and a position."""
        return super().state_size(length) + 1


def head_width(dim: int, num_heads: int, name: str, expand: float) -> int:
    """Channels of a head where all are ``expand`` dim wide."""
    if (width := expand * dim / num_heads) != int(width) or width < 1:
        raise ValueError(f"num_heads must divide {name} * dim: got {name} {expand}, dim {dim}, num_heads {num_heads}")
    return int(width)
