"""A block of RWKV-7: time mix by the generalised delta rule, and channel mix, both of a token and the one before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import generalized_delta_rule
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.norm import HeadNorm, LayerNorm
from zoo.layers.options import require_at_least
from zoo.layers.ssm.state_space import wide
from zoo.layers.state import State, keep_rows


@dataclass
class RWKV7State(State):
    """time, channel (B, dim): inputs of the newest token to both mixes; memory (B, H, K, K), float32."""

    wide: ClassVar[tuple[str, ...]] = ("memory",)

    time: Tensor
    channel: Tensor
    memory: Tensor


class RWKV7Block(Mixer):
    r"""Both sublayers of RWKV-7 with their norms and residual sums, which hand the first block's values on.

    .. math::
        x' = x + \mathrm{TimeMix}(\mathrm{LN}(x)), \quad y = x' + \mathrm{ChannelMix}(\mathrm{LN}(x')), \quad
        \mathrm{ChannelMix}(x) = W_v \, \mathrm{relu}(W_k (x + \mu (x_{-} - x)))^2

    with :math:`x_{-}` the token before. Every later block mixes the values of the first one into its own, so they
    travel beside the residual stream as channels of their own.

    Args:
        dim: half the width of the block's input and output: the residual stream, then the first block's values.
        head_dim: K, channels of a head.
        mlp_dim: hidden width of the channel mix.
        ranks: of the low-rank maps that make the decay, the step sizes, the mix of values and the gate.
        index: of the block in the model; the first has no values to mix in, and a norm of the embedding.
        depth: blocks of the model, for initial values.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.
        norm_eps: of the layer norms; those of the heads have head_dim times as much.

    Raises:
        ValueError: where head_dim does not divide dim.

    Paper: Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        mlp_dim: int,
        ranks: tuple[int, int, int, int] = (64, 64, 32, 128),
        index: int = 0,
        depth: int = 1,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        require_at_least(1, dim=dim, head_dim=head_dim, mlp_dim=mlp_dim, chunk_size=chunk_size, depth=depth)
        require_at_least(0, index=index)
        if dim % head_dim:
            raise ValueError(f"head_dim must divide dim, got dim {dim}, head_dim {head_dim}")
        self.dim, self.num_heads, self.head_dim = dim, dim // head_dim, head_dim
        self.pre_norm = LayerNorm(dim, norm_eps) if index == 0 else None
        self.attn_norm, self.ffn_norm = LayerNorm(dim, norm_eps), LayerNorm(dim, norm_eps)
        self.attn = TimeMix(dim, head_dim, ranks, index, depth, chunk_size, norm_eps)
        self.ffn = ChannelMix(dim, mlp_dim, index, depth)

    @skips_padding
    def forward(self, x: Tensor, state: RWKV7State | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, 2 dim) -> (B, T, 2 dim)."""
        x, values = x.chunk(2, dim=-1)
        time = channel = memory = None
        if state is not None:
            rows = state.advance_sequence(seq_idx)
            time, channel, memory = (keep_rows(t, rows) for t in (state.time, state.channel, state.memory))
        x = x if self.pre_norm is None else self.pre_norm(x).to(x.dtype)
        normal = self.attn_norm(x)
        mixed, values, memory = self.attn(normal, shifted(normal, time, seq_idx), values, memory, seq_idx)
        x = x + mixed
        inner = self.ffn_norm(x)
        y = x + self.ffn(inner, shifted(inner, channel, seq_idx))
        if state is not None:
            state.time, state.channel, state.memory = normal[:, -1].contiguous(), inner[:, -1].contiguous(), memory
        return torch.cat([y, values.to(y.dtype)], dim=-1)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> RWKV7State:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        time, channel = (torch.zeros(batch_size, self.dim, device=device, dtype=dtype) for _ in range(2))
        shape = batch_size, self.num_heads, self.head_dim, self.head_dim
        memory = torch.zeros(shape, device=device, dtype=torch.promote_types(dtype, torch.float32))
        return RWKV7State(time, channel, memory)

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return 2 * self.dim + self.dim * self.head_dim


class TimeMix(nn.Module):
    r"""The generalised delta rule of RWKV-7.

    .. math::
        r, w, k, v, a, g: \; W (x + \mu (x_{-} - x)) \text{ each with its own } \mu; \quad
        \hat k = \mathrm{normalise}(\xi k), \; \tilde k = k (1 + \alpha (a - 1)) \\
        S_t = (\mathrm{diag}(e^{-e^{-1/2} \sigma(w)}) - (a \hat k) \hat k^\top) S_{t-1} + \tilde k v^\top, \quad
        y = W_o \big(g \odot (\mathrm{HeadNorm}(S^\top r) + (r \cdot \rho \tilde k) v)\big)

    The arguments are those of ``RWKV7Block``. The names of the parameters are those of flash-linear-attention's files.
    """

    def __init__(self, dim, head_dim, ranks, index, depth, chunk_size, norm_eps):
        super().__init__()
        self.head_dim, self.chunk_size = head_dim, chunk_size
        decay_rank, rate_rank, value_rank, gate_rank = ranks
        channel, late = torch.arange(dim), 1 - index / depth
        for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            share = 1 - (channel / dim) ** (power * late)
            self.register_parameter(f"x_{name}", nn.Parameter(share.view(1, 1, dim)))
        line = channel / max(1, dim - 1) - 0.5
        wave = (channel % head_dim) / max(1, head_dim - 1) * 2 - 1
        wave = wave * wave.abs()
        self.k_k, self.k_a = nn.Parameter(0.71 - 0.1 * line), nn.Parameter(torch.full((dim,), 1.02))
        self.r_k = nn.Parameter(torch.full((dim // head_dim, head_dim), -0.04))
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for projection, bound in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5), (self.o_proj, 0.0)):
            nn.init.uniform_(projection.weight, -bound / math.sqrt(dim), bound / math.sqrt(dim))
        depth_share = index / max(1, depth - 1)
        speeds = -6 + 6 * (line + 0.5) ** (1 + depth_share**0.3)
        self.w_lora = LowRank(dim, decay_rank, nn.Tanh(), speeds + 0.5 + 2.5 * wave)
        self.a_lora = LowRank(dim, rate_rank, nn.Identity(), -0.19 + 0.3 * wave + 0.4 * line)
        self.v_lora = LowRank(dim, value_rank, nn.Identity(), 0.73 - 0.4 * line) if index else None
        self.g_lora = LowRank(dim, gate_rank, nn.Sigmoid(), None)
        self.g_norm = HeadNorm(dim // head_dim, dim, eps=head_dim * norm_eps)
        nn.init.constant_(self.g_norm.weight, ((index + 1) / depth) ** 0.7)

    def forward(
        self, x: Tensor, before: Tensor, first: Tensor, memory: Tensor | None, seq_idx: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x and the tokens before (B, T, dim), the first block's values -> output, the values to hand on, memory."""
        change = before - x
        to_r, to_w, to_k, to_v, to_a, to_g = (x + change * getattr(self, f"x_{name}") for name in "rwkvag")
        r, k, v, gate = self.r_proj(to_r), self.k_proj(to_k), self.v_proj(to_v), self.g_lora(to_g)
        rate, log_decay = wide(self.a_lora(to_a)).sigmoid(), -math.exp(-0.5) * wide(self.w_lora(to_w)).sigmoid()
        if self.v_lora is None:
            first = v
        else:
            v = v + (first.to(v.dtype) - v) * self.v_lora(to_v).sigmoid()
        key = F.normalize(self.heads(wide(k * self.k_k)), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a).to(k.dtype)
        r, k, v, rate, log_decay = map(self.heads, (r, k, v, rate, log_decay))
        o, memory = generalized_delta_rule(
            r, k, v, -key, key * rate, log_decay=log_decay, scale=1.0, initial_state=memory, seq_idx=seq_idx,
            chunk_size=self.chunk_size,
        )  # fmt: skip
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.o_proj((self.g_norm(o.flatten(-2)) + bonus.flatten(-2)) * gate), first, memory

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, H, K)."""
        return x.unflatten(-1, (-1, self.head_dim))


class ChannelMix(nn.Module):
    """W_v relu(W_k (x + mu (before - x)))^2, without biases."""

    def __init__(self, dim: int, mlp_dim: int, index: int, depth: int):
        super().__init__()
        self.x_k = nn.Parameter(1 - (torch.arange(dim) / dim) ** ((1 - index / depth) ** 4))
        self.key, self.value = nn.Linear(dim, mlp_dim, bias=False), nn.Linear(mlp_dim, dim, bias=False)
        nn.init.uniform_(self.key.weight, -0.5 / math.sqrt(dim), 0.5 / math.sqrt(dim))
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x and the tokens before it (B, T, dim) -> (B, T, dim)."""
        return self.value(F.relu(self.key(x + (before - x) * self.x_k)).square())


class LowRank(nn.Module):
    """W_2 act(W_1 x) + bias; starts as the bias alone."""

    def __init__(self, dim: int, rank: int, act: nn.Module, bias: Tensor | None):
        super().__init__()
        narrow, widen = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=bias is not None)
        self.lora = nn.Sequential(narrow, act, widen)
        nn.init.zeros_(narrow.weight)
        nn.init.normal_(widen.weight, std=0.1 / math.sqrt(dim))
        if bias is not None:
            widen.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        return self.lora(x)


def shifted(x: Tensor, last: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """The token before each of x (B, T, D): ``last`` (B, D), or zeros, before the first, zeros before a sequence."""
    last = torch.zeros_like(x[:, :1]) if last is None else last[:, None].to(x.dtype)
    before = torch.cat([last, x[:, :-1]], dim=1)
    if seq_idx is None:
        return before
    starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    return before.masked_fill(starts[..., None], 0.0)
