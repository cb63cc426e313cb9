"""The sLSTM: scalar memories under exponential gates, which see the outputs of the step before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.kernels import slstm
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.conv import CausalConv1d
from zoo.layers.linear import BlockLinear
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.norm import HeadNorm
from zoo.layers.options import require_at_least
from zoo.layers.state import State, keep_rows


@dataclass
class SLSTMState(State):
    """conv (B, d_conv - 1, dim): newest inputs of the convolution; cell (B, 4, H, D), float32: h, c, n and m."""

    wide: ClassVar[tuple[str, ...]] = ("cell",)

    conv: Tensor
    cell: Tensor


class SLSTM(Mixer):
    r"""An LSTM with an exponential input gate and one head's outputs in that head's gates, normalised over each head.

    .. math::
        a = \mathrm{silu}(\mathrm{conv}(x)), \quad
        y = \mathrm{LayerNorm}(\mathrm{slstm}([W_i a + b_i, W_f a + b_f, W_z x + b_z, W_o x + b_o], R))

    with W block-diagonal and R, which begins at zero, within the heads. It cannot run in parallel over time.

    Args:
        dim: model width.
        num_heads: heads H.
        d_conv: taps of the convolution.
        forget_power: b_f falls from 5 to -7 over a head's channels, as this power of their place in [0, 1].
        norm_eps: of the norm over the outputs.

    Raises:
        ValueError: for heads that do not divide dim.

    Paper: Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv 2405.04517, figure 10; as in the authors' code.
    """

    def __init__(
        self, dim: int, num_heads: int, d_conv: int = 4, forget_power: float = 0.3, norm_eps: float = 1e-5
    ):  # fmt: skip
        super().__init__()
        require_at_least(1, dim=dim, num_heads=num_heads)
        self.dim, self.num_heads, self.d_conv = dim, num_heads, d_conv
        self.conv1d = CausalConv1d(dim, d_conv, activation="silu")
        self.i_gate, self.f_gate, self.z_gate, self.o_gate = (BlockLinear(dim, num_heads) for _ in range(4))
        head_dim = dim // num_heads
        self.R = nn.Parameter(torch.zeros(num_heads, head_dim, 4, head_dim))
        self.norm = HeadNorm(num_heads, dim, norm_eps, bias=False)
        for gate in (self.i_gate, self.f_gate, self.z_gate, self.o_gate):
            nn.init.normal_(gate.weight, std=math.sqrt(2 / (5 * dim)))
        self.f_gate.bias = nn.Parameter((5 - 12 * torch.linspace(0, 1, head_dim) ** forget_power).repeat(num_heads, 1))

    @skips_padding
    def forward(self, x: Tensor, state: SLSTMState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        conv = cell = None
        if state is not None:
            rows = state.advance_sequence(seq_idx)
            conv, cell = keep_rows(state.conv, rows), keep_rows(state.cell, rows)
        a, conv = self.conv1d(x, conv, seq_idx)
        logits = torch.stack([self.i_gate(a), self.f_gate(a), self.z_gate(x), self.o_gate(x)], dim=2)
        h, cell = slstm(logits.unflatten(-1, (self.num_heads, -1)), self.R, initial_state=cell, seq_idx=seq_idx)
        if state is not None:
            state.conv, state.cell = conv, cell
        return self.norm(h.flatten(-2))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> SLSTMState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        conv = torch.zeros(batch_size, self.d_conv - 1, self.dim, device=device, dtype=dtype)
        shape = batch_size, 4, self.num_heads, self.dim // self.num_heads
        return SLSTMState(conv, torch.zeros(shape, device=device, dtype=compute_dtype(dtype)))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.dim * (self.d_conv + 3)
