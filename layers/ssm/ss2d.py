"""The two-dimensional selective scan of VMamba."""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import selective_scan
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.conv.inference import SiLUConv2d
from zoo.layers.linear import WideBias
from zoo.layers.options import require_at_least
from zoo.layers.precision import KeepsFloat32
from zoo.layers.ssm.init import dt_bias_init, s4d_real_init

DIRECTIONS = 4  # along rows, along columns, and both from the end


def to_sequence(x: Tensor, direction: int) -> Tensor:
    """Map (B, H, W, C) to its positions in the order of a direction, (B, H W, C); the first order is a view."""
    x = (x.transpose(1, 2) if direction % 2 else x).flatten(1, 2)
    return x.flip(1) if direction >= 2 else x


def to_map(y: Tensor, direction: int, height: int, width: int) -> Tensor:
    """The inverse of ``to_sequence``; only the orders from the end are copied."""
    y = y.flip(1) if direction >= 2 else y
    return y.unflatten(1, (width, height)).transpose(1, 2) if direction % 2 else y.unflatten(1, (height, width))


class SS2D(KeepsFloat32):
    r"""Selective scans of a map in four directions, each with parameters of its own, whose outputs are added.

    .. math::
        [x, z] = W_{in} u, \; x = \mathrm{silu}(\mathrm{conv}(x)), \;
        y = W_{out} \big( \mathrm{norm}(\textstyle\sum_k \mathrm{scan}_k(x)) \; [\odot \; \mathrm{silu}(z)] \big)

    with :math:`[r, B, C] = W_k x` and :math:`\Delta = \mathrm{softplus}(W_{\Delta k} r + b_k)` for the directions k:
    along rows, along columns, and both from the end. Projections act on single positions, so they are taken once, in
    the order of the map; what a direction reorders is x and the few numbers r, B and C.

    Args:
        dim: model width.
        d_state: state size N of a channel.
        expand: d_inner / dim.
        gated: with z.
        conv_bias: of the depthwise 3 x 3 convolution.
        dt_rank: rank of the step-size projections, ceil(dim / 16) when None.

    Paper: Liu et al., "VMamba: Visual State Space Model", arXiv 2401.10166. Parameter names are those of the published
    checkpoints, but for the projections, which are linear layers here (``checkpoints/convert/vmamba.py``).
    """

    float32_parameters = ("A_logs", "Ds")

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        expand: int = 2,
        *,
        gated: bool = False,
        conv_bias: bool = False,
        dt_rank: int | None = None,
    ):
        super().__init__()
        require_at_least(1, dim=dim, d_state=d_state, expand=expand, dt_rank=dt_rank)
        d_inner = expand * dim
        self.d_inner, self.gated = d_inner, gated
        rank = dt_rank or math.ceil(dim / 16)
        self.sizes = [rank, d_state, d_state]
        self.in_proj = nn.Linear(dim, (1 + gated) * d_inner, bias=False)
        self.conv2d = SiLUConv2d(d_inner, d_inner, 3, padding=1, groups=d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(d_inner, DIRECTIONS * sum(self.sizes), bias=False)
        self.dt_projs = nn.ModuleList(WideBias(rank, d_inner) for _ in range(DIRECTIONS))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * d_inner, d_state))
        self.Ds = nn.Parameter(torch.empty(DIRECTIONS * d_inner))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, dim, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published initial values."""
        for projection in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(projection.weight, std=0.02)
        for projection in self.dt_projs:
            nn.init.uniform_(projection.weight, -(self.sizes[0] ** -0.5), self.sizes[0] ** -0.5)  # type: ignore[arg-type]
            projection.bias.copy_(dt_bias_init(self.d_inner))  # type: ignore[operator]
        self.A_logs.copy_(s4d_real_init(*self.A_logs.shape))
        nn.init.ones_(self.Ds)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim) -> (B, H, W, dim)."""
        x, *gate = self.in_proj(x).split(self.d_inner, dim=-1)
        x = self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.out_norm(self.scan(x))
        return self.out_proj(y * F.silu(gate[0]) if self.gated else y)

    def scan(self, x: Tensor) -> Tensor:
        """x (B, H, W, d_inner) -> the sum of the four directions' outputs, of the same shape."""
        height, width = x.shape[1:3]
        decay = -self.A_logs.to(compute_dtype(self.A_logs)).exp()
        projections = self.x_proj(x).chunk(DIRECTIONS, dim=-1)
        own = zip(projections, self.dt_projs, decay.chunk(DIRECTIONS), self.Ds.chunk(DIRECTIONS), strict=True)
        outputs = []
        for direction, (projected, dt_proj, A, D) in enumerate(own):
            r, B, C = to_sequence(projected, direction).split(self.sizes, dim=-1)
            y = selective_scan(
                to_sequence(x, direction), dt_proj(r), A, B.unsqueeze(2), C.unsqueeze(2), D=D, dt_softplus=True
            ).output
            outputs.append(to_map(y, direction, height, width))
        return reduce(torch.add, outputs)
