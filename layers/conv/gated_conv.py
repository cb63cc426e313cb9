"""Gated short convolutions as sequence mixers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.layers.conv.causal_conv1d import CausalConv1d
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.state import State, keep_rows


@dataclass
class GatedConvState(State):
    """conv (B, kernel_size - 1, expand * dim): newest inputs of the convolution."""

    conv: Tensor


class GatedConv(Mixer):
    r"""The "BaseConv" layer of BASED: a short depthwise convolution, gated by a second projection.

    .. math:: [u, g] = W_{in} x + b_{in}, \quad y = W_{out} (\mathrm{silu}(\mathrm{conv}(u)) \odot g) + b_{out}

    Args:
        dim: model width.
        kernel_size: taps of the causal convolution, the present step included.
        expand: width of u and g over dim.
        bias: biases of the projections; the convolution has none.

    Raises:
        ValueError: for a kernel_size below 2 or an expand below 1.

    Paper: Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff", arXiv
    2402.18668, with the sizes of the authors' code; the layer is from "Zoology", arXiv 2312.04927.
    """

    def __init__(self, dim: int, kernel_size: int = 3, expand: int = 2, bias: bool = True):
        super().__init__()
        if kernel_size < 2 or expand < 1:
            raise ValueError(
                f"kernel_size must be at least 2 and expand at least 1, got kernel_size {kernel_size}, expand {expand}"
            )
        self.kernel_size, self.width = kernel_size, expand * dim
        self.in_proj = nn.Linear(dim, 2 * expand * dim, bias=bias)
        self.conv = CausalConv1d(expand * dim, kernel_size, bias=False, activation="silu")
        self.out_proj = nn.Linear(expand * dim, dim, bias=bias)

    @skips_padding
    def forward(self, x: Tensor, state: GatedConvState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        u, gate = self.gated(x)
        past = None if state is None else keep_rows(state.conv, state.advance_sequence(seq_idx))
        u, conv = self.conv(u, past, seq_idx)
        if state is not None:
            state.conv = conv
        return self.out_proj(u * gate)

    def gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is convolved, and what the result is multiplied by, (B, T, expand * dim)."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        return u, gate

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> GatedConvState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        return GatedConvState(torch.zeros(batch_size, self.kernel_size - 1, self.width, device=device, dtype=dtype))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.width * (self.kernel_size - 1)


class DoubleGatedConv(GatedConv):
    r"""The convolution of LFM2: linear, with a gate before and one behind it.

    .. math:: [b, c, u] = W_{in} x, \quad y = W_{out} (c \odot \mathrm{conv}(b \odot u))

    Args:
        dim: model width.
        kernel_size: taps of the causal convolution, the present step included.
        bias: biases of the projections and of the convolution.

    Raises:
        ValueError: for a kernel_size below 2.

    Paper: Amini et al., "LFM2 Technical Report", arXiv 2511.23404.
    """

    def __init__(self, dim: int, kernel_size: int = 3, bias: bool = False):
        super().__init__(dim, kernel_size, expand=1, bias=bias)
        self.in_proj = nn.Linear(dim, 3 * dim, bias=bias)
        self.conv = CausalConv1d(dim, kernel_size, bias=bias)

    def gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is convolved, and what the result is multiplied by, (B, T, dim)."""
        before, behind, u = self.in_proj(x).chunk(3, dim=-1)
        return before * u, behind
