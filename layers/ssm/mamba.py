"""The Mamba-1 mixer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import selective_scan
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.conv import CausalConv1d
from zoo.layers.linear import WideBias
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.options import require_at_least
from zoo.layers.ssm.init import dt_bias_init, s4d_real_init
from zoo.layers.ssm.steps import StepRule
from zoo.layers.state import State, keep_rows


@dataclass
class MambaState(State):
    """conv (B, d_conv - 1, d_inner): the newest inputs of the convolution; ssm (B, d_inner, d_state), float32."""

    wide: ClassVar[tuple[str, ...]] = ("ssm",)

    conv: Tensor
    ssm: Tensor


class Mamba(Mixer):
    r"""Selective state space: in_proj -> causal convolution -> selective scan, gated -> out_proj.

    .. math::
        [x, z] = W_{in} u, \; x = \mathrm{silu}(\mathrm{conv}(x)), \; [r, B, C] = W_x x, \;
        \Delta = \mathrm{softplus}(W_\Delta r + b_\Delta), \;
        y = W_{out}(\mathrm{scan}(x, \Delta, A, B, C) \odot \mathrm{silu}(z))

    With ``norm``, r, B and C are normalised before they are used (Jamba, FalconMamba).

    Args:
        dim: model width.
        d_state: state size N of a channel.
        d_conv: convolution taps.
        expand: d_inner / dim.
        dt_rank: rank of the step-size projection, ceil(dim / 16) when None.
        conv_bias, bias: biases of the convolution and of in_proj and out_proj.
        norm: makes the norm of so many channels for r, B and C; None: they have none.

    Papers: Gu and Dao, "Mamba", arXiv 2312.00752, whose published checkpoints name the parameters; the norms: Lieber et
    al., "Jamba", arXiv 2403.19887, section 3.
    """

    float32_parameters = ("A_log", "D")

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        conv_bias: bool = True,
        bias: bool = False,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        require_at_least(1, dim=dim, d_state=d_state, expand=expand, dt_rank=dt_rank)
        d_inner = expand * dim
        self.d_inner, self.d_state, self.d_conv = d_inner, d_state, d_conv
        self.dt_rank = dt_rank or math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * d_inner, bias=bias)
        self.conv1d = CausalConv1d(d_inner, d_conv, bias=conv_bias, activation="silu")
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        widths = (self.dt_rank, d_state, d_state)
        self.dt_norm, self.b_norm, self.c_norm = (norm(width) if norm else nn.Identity() for width in widths)
        self.dt_proj = WideBias(self.dt_rank, d_inner)
        self.step_rule: StepRule | None = None
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out_proj = nn.Linear(d_inner, dim, bias=bias)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published initial values of the step size, A and D."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias.copy_(dt_bias_init(self.d_inner))
        self.A_log.copy_(s4d_real_init(self.d_inner, self.d_state))
        nn.init.ones_(self.D)
        for projection in (self.in_proj, self.out_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    @skips_padding
    def forward(self, x: Tensor, state: MambaState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        rows = None if state is None else state.advance_sequence(seq_idx)
        x, conv = self.conv1d(x, None if state is None else keep_rows(state.conv, rows), seq_idx)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt, softplus = self.dt_proj(self.dt_norm(dt)), True
        if self.step_rule is not None and self.step_rule.applies(x.shape[1]):
            dt, softplus = self.step_rule(F.softplus(dt)), False
        y, ssm = selective_scan(
            x,
            dt,
            -self.A_log.to(compute_dtype(self.A_log)).exp(),
            self.b_norm(B).unsqueeze(2),
            self.c_norm(C).unsqueeze(2),
            D=self.D,
            z=z,
            dt_softplus=softplus,
            initial_state=None if state is None else keep_rows(state.ssm, rows),
            seq_idx=seq_idx,
        )
        if state is not None:
            state.conv, state.ssm = conv, ssm
        return self.out_proj(y)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> MambaState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        conv = torch.zeros(batch_size, self.d_conv - 1, self.d_inner, device=device, dtype=dtype)
        wide = compute_dtype(dtype)
        return MambaState(conv, torch.zeros(batch_size, self.d_inner, self.d_state, device=device, dtype=wide))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.d_inner * (self.d_conv - 1 + self.d_state)
