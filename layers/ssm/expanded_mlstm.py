"""The first mLSTM: between an expansion and its inverse, behind a convolution, with block-diagonal projections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.conv import CausalConv1d
from zoo.layers.linear import BlockLinear
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.options import require_at_least
from zoo.layers.ssm.mlstm import MLSTMCell, MLSTMState
from zoo.layers.state import keep_rows


@dataclass
class ExpandedMLSTMState(MLSTMState):
    """As in ``MLSTMState``; conv (B, d_conv - 1, inner_dim): newest inputs of the convolution."""

    conv: Tensor


class ExpandedMLSTM(Mixer):
    r"""An mLSTM at a larger width, whose queries and keys come from a convolution that is also added to its output.

    .. math::
        u, z = W_u x, \quad a = \mathrm{silu}(\mathrm{conv}(u)), \quad q, k, v = W_q a, W_k a, W_v u, \quad
        y = W_o \big( (\mathrm{MLSTMCell}(q, k, v, [q, k, v]) + s \odot a) \odot \mathrm{silu}(z) \big)

    with block-diagonal W_q, W_k and W_v.

    Args:
        dim: model width.
        num_heads: heads H.
        inner_dim: channels of u; 2 dim when None.
        block_size: channels that a channel of q, k or v comes from.
        d_conv: taps of the convolution.
        eps, chunk_size, norm_eps: of ``MLSTMCell``.

    Raises:
        ValueError: for heads or blocks that do not divide inner_dim.

    Paper: Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv 2405.04517, figure 11; as in the authors' code.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        inner_dim: int | None = None,
        block_size: int = 4,
        d_conv: int = 4,
        eps: float = 1e-6,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        require_at_least(1, dim=dim, num_heads=num_heads, inner_dim=inner_dim, block_size=block_size)
        self.inner_dim, self.num_heads, self.d_conv = inner_dim or 2 * dim, num_heads, d_conv
        if self.inner_dim % num_heads or self.inner_dim % block_size:
            raise ValueError(
                f"num_heads and block_size must divide inner_dim, got inner_dim {self.inner_dim}, "
                f"num_heads {num_heads}, block_size {block_size}"
            )
        self.head_dim, blocks = self.inner_dim // num_heads, self.inner_dim // block_size
        self.up_proj = nn.Linear(dim, 2 * self.inner_dim, bias=False)
        self.conv1d = CausalConv1d(self.inner_dim, d_conv, activation="silu")
        self.q_proj, self.k_proj, self.v_proj = (BlockLinear(self.inner_dim, blocks, bias=False) for _ in range(3))
        self.cell = MLSTMCell(num_heads, 3 * self.inner_dim, self.head_dim, None, 0.0, eps, chunk_size, norm_eps)
        self.skip = nn.Parameter(torch.ones(self.inner_dim))
        self.out_proj = nn.Linear(self.inner_dim, dim, bias=False)
        nn.init.normal_(self.cell.i_proj.bias, std=0.1)

    @skips_padding
    def forward(self, x: Tensor, state: ExpandedMLSTMState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        u, z = self.up_proj(x).chunk(2, dim=-1)
        rows = None if state is None else state.advance_sequence(seq_idx)
        conv, past = (None, {}) if state is None else (keep_rows(state.conv, rows), state.past(rows))
        a, conv = self.conv1d(u, conv, seq_idx)
        heads = self.q_proj(a), self.k_proj(a), self.v_proj(u)
        found = self.cell(*heads, torch.cat(heads, dim=-1), past, seq_idx)
        if state is not None:
            state.remember(found)
            state.conv = conv
        return self.out_proj((found.output + self.skip * a) * F.silu(z))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> ExpandedMLSTMState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        shape = batch_size, self.num_heads, self.head_dim, self.head_dim
        conv = torch.zeros(batch_size, self.d_conv - 1, self.inner_dim, device=device, dtype=dtype)
        return ExpandedMLSTMState(**MLSTMState.empty(*shape, device=device, dtype=compute_dtype(dtype)), conv=conv)

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.inner_dim * (self.head_dim + self.d_conv) + self.num_heads
