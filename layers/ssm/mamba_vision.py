"""The mixer of MambaVision."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import selective_scan
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.conv import CausalConv1d
from zoo.layers.linear import WideBias
from zoo.layers.options import require_at_least
from zoo.layers.precision import KeepsFloat32
from zoo.layers.ssm.init import s4d_real_init


class MambaVisionMixer(KeepsFloat32):
    r"""A selective scan over one half of the channels beside a convolution of the other half.

    .. math::
        [x, z] = \mathrm{silu}(\mathrm{conv}(W_{in} u)), \; [r, B, C] = W_x x, \;
        \Delta = \mathrm{softplus}(W_\Delta r + b_\Delta), \; y = W_{out} [\mathrm{scan}(x, \Delta, A, B, C), z]

    The depthwise convolution is centred: it sees as many steps before as behind. Not causal: there is no state.

    Args:
        dim: model width.
        d_state: state size N of a channel.
        d_conv: convolution taps, an odd number.
        expand: d_inner / dim.
        dt_rank: rank of the step-size projection, ceil(dim / 16) when None.

    Raises:
        ValueError: for an even d_conv or an odd d_inner.

    Paper: Hatamizadeh and Kautz, "MambaVision: A Hybrid Mamba-Transformer Vision Backbone", arXiv 2407.08083. The
    authors' code adds the bias of the step size twice and has a convolution for each half: see
    ``checkpoints/convert/mambavision.py``.
    """

    float32_parameters = ("A_log", "D")

    def __init__(self, dim: int, d_state: int = 8, d_conv: int = 3, expand: int = 1, dt_rank: int | None = None):
        super().__init__()
        require_at_least(1, dim=dim, d_state=d_state, expand=expand, dt_rank=dt_rank)
        half, rest = divmod(expand * dim, 2)
        if rest or d_conv % 2 == 0:
            raise ValueError(f"expand * dim must be even and d_conv odd, got {expand * dim} and d_conv {d_conv}")
        self.d_state, self.dt_rank, self.reach = d_state, dt_rank or math.ceil(dim / 16), d_conv // 2
        self.in_proj = nn.Linear(dim, 2 * half, bias=False)
        self.conv1d = CausalConv1d(2 * half, d_conv, bias=False, activation="silu")
        self.x_proj = nn.Linear(half, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = WideBias(self.dt_rank, half)
        self.A_log = nn.Parameter(torch.empty(half, d_state))
        self.D = nn.Parameter(torch.empty(half))
        self.out_proj = nn.Linear(2 * half, dim, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The initial values that the authors' models begin with: steps of softplus(0)."""
        for projection in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj):
            nn.init.trunc_normal_(projection.weight, std=0.02)
        nn.init.zeros_(self.dt_proj.bias)
        self.A_log.copy_(s4d_real_init(*self.A_log.shape))
        nn.init.ones_(self.D)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        behind = F.pad(self.in_proj(x), (0, 0, 0, self.reach))  # zeros make the causal convolution a centred one
        x, z = self.conv1d(behind).output[:, self.reach :].chunk(2, dim=-1)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            x,
            self.dt_proj(dt),
            -self.A_log.to(compute_dtype(self.A_log)).exp(),
            B.unsqueeze(2),
            C.unsqueeze(2),
            D=self.D,
            dt_softplus=True,
        ).output
        return self.out_proj(torch.cat([y, z], dim=-1))
