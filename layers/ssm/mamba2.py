"""The Mamba-2 mixer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import ssd
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.conv import CausalConv1d
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.norm import GatedRMSNorm
from zoo.layers.options import require_at_least, require_limits
from zoo.layers.ssm.init import dt_bias_init
from zoo.layers.ssm.steps import StepRule
from zoo.layers.state import State, keep_rows


@dataclass
class Mamba2State(State):
    """conv (B, d_conv - 1, d_inner + 2 G N): newest inputs of the convolution; ssm (B, H, P, N), float32."""

    wide: ClassVar[tuple[str, ...]] = ("ssm",)

    conv: Tensor
    ssm: Tensor


class SiluGate(nn.Module):
    """x * silu(z)."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x and gate z (..., dim) -> (..., dim)."""
        return x * nn.functional.silu(z)


class Mamba2(Mixer):
    r"""State-space duality: in_proj -> causal convolution of [x, B, C] -> ssd -> gated norm -> out_proj.

    .. math::
        [z, x, B, C, \delta] = W_{in} u, \; [x, B, C] = \mathrm{silu}(\mathrm{conv}([x, B, C])), \;
        y = W_{out} \, \mathrm{RMSNorm}(\mathrm{ssd}(x, \mathrm{softplus}(\delta + b), A, B, C) \odot \mathrm{silu}(z))

    Args:
        dim: model width.
        d_state: state size N.
        d_conv: convolution taps.
        expand: d_inner / dim.
        head_dim: P.
        num_groups: groups G that share B and C.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.
        dt_limit: smallest and largest step size.
        norm_eps: of the gated norm.
        conv_bias, bias: biases of the convolution and of in_proj and out_proj.
        d_inner: inner width, in place of expand * dim.
        gated_norm: False gates by silu(z) alone, without the norm.
        multipliers: constants for the five parts z, x, B, C and dt of in_proj's output (maximal update parametrisation,
            Falcon-H1).

    Raises:
        ValueError: when head_dim does not divide d_inner, or the groups do not divide the heads; for sizes below 1 and
            a swapped dt_limit.

    Paper: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060. Parameter names are those of the checkpoints.
    """

    float32_parameters = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        dim: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        num_groups: int = 1,
        chunk_size: int = 64,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        norm_eps: float = 1e-5,
        conv_bias: bool = True,
        bias: bool = False,
        d_inner: int | None = None,
        gated_norm: bool = True,
        multipliers: tuple[float, float, float, float, float] | None = None,
    ):
        super().__init__()
        require_at_least(1, dim=dim, d_state=d_state, expand=expand, head_dim=head_dim, num_groups=num_groups)
        require_at_least(1, chunk_size=chunk_size, d_inner=d_inner)
        require_limits("dt_limit", dt_limit)
        d_inner = d_inner or expand * dim
        if d_inner % head_dim or (d_inner // head_dim) % num_groups:
            raise ValueError(
                f"head_dim must divide the inner width (expand * dim) and num_groups the heads: got width {d_inner}, "
                f"head_dim {head_dim}, num_groups {num_groups}"
            )
        self.d_inner, self.d_state, self.head_dim, self.num_groups = d_inner, d_state, head_dim, num_groups
        self.num_heads, self.chunk_size = d_inner // head_dim, chunk_size
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        self.d_conv, self.conv_dim = d_conv, d_inner + 2 * num_groups * d_state
        self.in_proj = nn.Linear(dim, d_inner + self.conv_dim + self.num_heads, bias=bias)
        self.conv1d = CausalConv1d(self.conv_dim, d_conv, bias=conv_bias, activation="silu")
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = GatedRMSNorm(d_inner, num_groups, norm_eps) if gated_norm else SiluGate()
        self.out_proj = nn.Linear(d_inner, dim, bias=bias)
        widths = (d_inner, d_inner, num_groups * d_state, num_groups * d_state, self.num_heads)
        self.step_rule: StepRule | None = None
        self.multipliers = tuple(zip(widths, multipliers, strict=True)) if multipliers else ()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published initial values: A uniform in [-16, -1], step sizes log-uniform in [0.001, 0.1], D = 1."""
        self.dt_bias.copy_(dt_bias_init(self.num_heads))
        self.A_log.copy_(torch.empty(self.num_heads).uniform_(1, 16).log())
        nn.init.ones_(self.D)
        for projection in (self.in_proj, self.out_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    @skips_padding
    def forward(self, x: Tensor, state: Mamba2State | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        grouped = self.num_groups * self.d_state
        x = self.in_proj(x)
        if self.multipliers:
            x = x * torch.cat([x.new_full((width,), scale) for width, scale in self.multipliers])
        z, x, dt = x.split([self.d_inner, self.d_inner + 2 * grouped, self.num_heads], dim=-1)
        rows = None if state is None else state.advance_sequence(seq_idx)
        x, conv = self.conv1d(x, None if state is None else keep_rows(state.conv, rows), seq_idx)
        x, B, C = x.split([self.d_inner, grouped, grouped], dim=-1)
        steps: dict[str, Any] = {"dt_bias": self.dt_bias, "dt_softplus": True, "dt_limit": self.dt_limit}
        if self.step_rule is not None and self.step_rule.applies(x.shape[1]):
            dt, steps = self.step_rule(F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias).clamp(*self.dt_limit)), {}
        y, ssm = ssd(
            x.unflatten(-1, (self.num_heads, self.head_dim)),
            dt,
            -self.A_log.to(compute_dtype(self.A_log)).exp(),
            B.unflatten(-1, (self.num_groups, self.d_state)),
            C.unflatten(-1, (self.num_groups, self.d_state)),
            D=self.D,
            initial_state=None if state is None else keep_rows(state.ssm, rows),
            seq_idx=seq_idx,
            chunk_size=self.chunk_size,
            **steps,
        )
        if state is not None:
            state.conv, state.ssm = conv, ssm
        return self.out_proj(self.norm(y.flatten(-2), z))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> Mamba2State:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        conv = torch.zeros(batch_size, self.d_conv - 1, self.conv_dim, device=device, dtype=dtype)
        shape = (batch_size, self.num_heads, self.head_dim, self.d_state)
        return Mamba2State(conv, torch.zeros(shape, device=device, dtype=compute_dtype(dtype)))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.conv_dim * (self.d_conv - 1) + self.d_inner * self.d_state
