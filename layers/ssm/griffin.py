"""The recurrent block of Griffin and Hawk: a gated linear recurrence behind a short convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import RecurrenceOutput, linear_recurrence
from zoo.kernels.dispatch import sequence_starts
from zoo.layers.conv import CausalConv1d
from zoo.layers.linear import BlockLinear
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.options import require_at_least
from zoo.layers.precision import KeepsFloat32
from zoo.layers.ssm.state_space import wide
from zoo.layers.state import State, keep_rows

SHARPNESS = 8.0  # c of the paper
STEEPEST = 1000.0  # slope of the square root that gradients see at most


@dataclass
class GriffinState(State):
    """conv (B, d_conv - 1, width): newest inputs of the convolution; memory (B, width), float32; begun (B, 1), int64: 1
    where the present sequence has had its first token."""

    wide: ClassVar[tuple[str, ...]] = ("memory",)

    conv: Tensor
    memory: Tensor
    begun: Tensor


class RGLRU(KeepsFloat32):
    r"""Real-gated linear recurrent unit: a leaky sum a channel, whose leak and input are gated by the input.

    .. math::
        r_t, i_t = \sigma(W_r x_t + b_r), \sigma(W_i x_t + b_i), \quad
        a_t = \exp(-8 \, \mathrm{softplus}(\Lambda) \, r_t), \quad
        h_t = a_t h_{t-1} + \sqrt{1 - a_t^2} \; i_t x_t

    with block-diagonal W, and the input of a sequence's first step not multiplied by the square root.

    Args:
        width: channels.
        num_blocks: blocks of W_r and W_i.

    Paper: De et al., "Griffin", arXiv 2402.19427, section 2.4; the first step and the initial values (exp(-softplus
    Lambda)^2 uniform in [0.9^2, 0.999^2]) are those of the published code.
    """

    float32_parameters = ("Lambda",)

    def __init__(self, width: int, num_blocks: int):
        super().__init__()
        self.r_gate, self.i_gate = BlockLinear(width, num_blocks), BlockLinear(width, num_blocks)
        squared = torch.empty(width).uniform_(0.9**2, 0.999**2)
        self.Lambda = nn.Parameter((squared**-0.5 - 1).log())

    def forward(self, x: Tensor, first: Tensor, memory: Tensor | None, seq_idx: Tensor | None) -> RecurrenceOutput:
        """x (B, T, width), the mask ``first`` (B, T) of steps that begin a sequence, and memory (B, width) -> h and
        the next memory."""
        r, i = wide(self.r_gate(x)).sigmoid(), wide(self.i_gate(x)).sigmoid()
        log_a = -SHARPNESS * F.softplus(wide(self.Lambda)) * r
        scale = bounded_sqrt(-torch.expm1(2 * log_a)).masked_fill(first[..., None], 1.0)
        return linear_recurrence(scale * i * x, log_a, initial_state=memory, seq_idx=seq_idx)


class GriffinRecurrence(Mixer):
    r"""A gated recurrence behind a short convolution, multiplied by a second branch.

    .. math:: y = W_o \big( \mathrm{RGLRU}(\mathrm{conv}(W_x u)) \odot \mathrm{gelu}(W_g u) \big)

    Args:
        dim: model width.
        num_blocks: blocks of the recurrence's gates.
        width: channels of the recurrence, dim when None.
        d_conv: taps of the convolution.

    Raises:
        ValueError: for num_blocks that do not divide the width.

    Paper: De et al., "Griffin", arXiv 2402.19427, section 2.3.
    """

    def __init__(self, dim: int, num_blocks: int, width: int | None = None, d_conv: int = 4):
        super().__init__()
        require_at_least(1, dim=dim, width=width)
        self.width, self.d_conv = width or dim, d_conv
        self.x_proj, self.gate_proj = nn.Linear(dim, self.width), nn.Linear(dim, self.width)
        self.conv1d = CausalConv1d(self.width, d_conv)
        self.rg_lru = RGLRU(self.width, num_blocks)
        self.out_proj = nn.Linear(self.width, dim)
        nn.init.normal_(self.conv1d.weight, std=0.1 / math.sqrt(d_conv))

    @skips_padding
    def forward(self, x: Tensor, state: GriffinState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        gate, u = F.gelu(self.gate_proj(x), approximate="tanh"), self.x_proj(x)
        conv = memory = None
        first = sequence_starts(seq_idx)
        if first is None:
            first = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        begun = first[:, :1]
        if state is not None:
            rows = state.advance_sequence(seq_idx)
            conv, memory, begun = (keep_rows(t, rows) for t in (state.conv, state.memory, state.begun))
        u, conv = self.conv1d(u, conv, seq_idx)
        y, memory = self.rg_lru(u, torch.cat([begun == 0, first[:, 1:]], dim=1), memory, seq_idx)
        if state is not None:
            state.conv, state.memory, state.begun = conv, memory, torch.ones_like(state.begun)
        return self.out_proj(y.to(gate.dtype) * gate)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> GriffinState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        conv = torch.zeros(batch_size, self.d_conv - 1, self.width, device=device, dtype=dtype)
        memory = wide(torch.zeros(batch_size, self.width, device=device, dtype=dtype))
        return GriffinState(conv, memory, torch.zeros(batch_size, 1, device=device, dtype=torch.int64))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.width * self.d_conv + 1


def bounded_sqrt(x: Tensor) -> Tensor:
    """The square root of x >= 0, whose slope counts as ``STEEPEST`` at most: it has none at 0."""
    steep = x < 1 / (2 * STEEPEST) ** 2
    value = x.masked_fill(steep, 1.0).sqrt()
    return torch.where(steep, x.detach().sqrt() + STEEPEST * (x - x.detach()), value)
