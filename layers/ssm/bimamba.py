"""The bidirectional Mamba mixer of Vision Mamba."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.kernels import selective_scan
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.conv import CausalConv1d
from zoo.layers.linear import WideBias
from zoo.layers.precision import KeepsFloat32
from zoo.layers.ssm.init import dt_bias_init, s4d_real_init


class BiMamba(KeepsFloat32):
    r"""Two selective scans, forward and backward in time, between shared projections ("bimamba v2").

    .. math::
        [x, z] = W_{in} u, \quad y = W_{out} \, \tfrac{1}{2} \big(
        (S_f(x) + \mathrm{flip}(S_b(\mathrm{flip}(x)))) \odot \mathrm{silu}(z)\big)

    where S_f and S_b are a causal convolution and a selective scan with parameters of their own. Not causal: it has no
    state.

    Args:
        dim: model width.
        d_state: state size of a channel.
        d_conv: convolution taps.
        expand: d_inner / dim.
        dt_rank: rank of the step-size projections, ceil(dim / 16) when None.

    Paper: Zhu et al., "Vision Mamba", arXiv 2401.09417. Parameter names are those of the published checkpoints.
    """

    float32_parameters = ("A_log", "D", "A_b_log", "D_b")
    conv1d: CausalConv1d
    conv1d_b: CausalConv1d
    x_proj: nn.Linear
    x_proj_b: nn.Linear
    dt_proj: WideBias
    dt_proj_b: WideBias
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    D: nn.Parameter
    D_b: nn.Parameter

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None):
        super().__init__()
        d_inner = expand * dim
        self.d_inner, self.d_state, self.dt_rank = d_inner, d_state, dt_rank or math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * d_inner, bias=False)
        for suffix in ("", "_b"):
            self.register_module(f"conv1d{suffix}", CausalConv1d(d_inner, d_conv, activation="silu"))
            self.register_module(f"x_proj{suffix}", nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False))
            self.register_module(f"dt_proj{suffix}", WideBias(self.dt_rank, d_inner))
            self.register_parameter(f"A{suffix}_log", nn.Parameter(torch.empty(d_inner, d_state)))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.empty(d_inner)))
        self.out_proj = nn.Linear(d_inner, dim, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published initial values; the step size of the backward branch starts at softplus(0), as published."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias.copy_(dt_bias_init(self.d_inner))
        nn.init.zeros_(self.dt_proj_b.bias)
        for A_log, D in ((self.A_log, self.D), (self.A_b_log, self.D_b)):
            A_log.copy_(s4d_real_init(self.d_inner, self.d_state))
            nn.init.ones_(D)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        forward = self._branch(x, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        backward = self._branch(x.flip(1), self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        return self.out_proj((forward + backward.flip(1)) * nn.functional.silu(z) / 2)

    def _branch(self, x: Tensor, conv1d, x_proj, dt_proj, A_log: Tensor, D: Tensor) -> Tensor:
        x = conv1d(x).output
        dt, B, C = x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return selective_scan(
            x,
            dt_proj(dt),
            -A_log.to(compute_dtype(A_log)).exp(),
            B.unsqueeze(2),
            C.unsqueeze(2),
            D=D,
            dt_softplus=True,
        ).output
