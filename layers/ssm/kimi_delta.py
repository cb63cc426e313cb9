"""Kimi Delta Attention: the mixer of the delta rule whose memory decays by key channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.ssm.delta_net import DeltaNet, Projected
from zoo.layers.ssm.init import dt_bias_init
from zoo.layers.ssm.state_space import wide


class KimiDeltaAttention(DeltaNet):
    r"""Gated DeltaNet with a decay of its own for every key channel, and gates of low rank.

    .. math::
        g = -e^{A} \, \mathrm{softplus}(W_f^\uparrow W_f^\downarrow x + b), \quad
        y = W_o \big( \mathrm{RMSNorm}(\mathrm{delta\_rule}(q / |q|, k / |k|, v, \beta, g)) \odot
        \sigma(W_g^\uparrow W_g^\downarrow x) \big)

    with g of K channels a head, A one number a head, and both ranks that of a head's width.

    Args and errors: those of ``DeltaNet``.

    Paper: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", arXiv 2510.26692. Parameter names
    are the published ones, but for ``out_proj``; initial values are those of flash-linear-attention: e^A uniform in
    (1, 16), steps log-uniform in [0.001, 0.1].
    """

    float32_parameters = ("A_log", "dt_bias")

    def __init__(self, dim: int, num_heads: int, head_dim: int | None = None, **options):
        super().__init__(dim, num_heads, head_dim, **options)
        rank, keys, values = self.head_dim, num_heads * self.head_dim, num_heads * self.value_dim
        self.f_a_proj, self.f_b_proj = nn.Linear(dim, rank, bias=False), nn.Linear(rank, keys, bias=False)
        self.g_a_proj, self.g_b_proj = nn.Linear(dim, rank, bias=False), nn.Linear(rank, values, bias=False)
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(dt_bias_init(keys))

    def project(self, x: Tensor) -> Projected:
        """All projections of x (B, T, dim)."""
        return super().project(x)._replace(steps=self.f_b_proj(self.f_a_proj(x)), gate=self.g_b_proj(self.g_a_proj(x)))

    def log_decay(self, steps: Tensor) -> Tensor:  # type: ignore[override]
        """g (B, T, H, K)."""
        steps = F.softplus(wide(steps) + self.dt_bias).unflatten(-1, (self.num_heads, self.head_dim))
        return -wide(self.A_log).exp()[:, None] * steps

    def normalised(self, o: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """The outputs (B, T, H, V) as out_proj reads them."""
        opened = wide(gate).sigmoid().unflatten(-1, (self.num_heads, self.value_dim))
        return self.o_norm(o) * opened.to(o.dtype)
