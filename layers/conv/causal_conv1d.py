"""The short causal convolution as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.kernels import ConvOutput, causal_conv1d
from zoo.layers.options import require_at_least


class CausalConv1d(nn.Conv1d):
    """Depthwise causal convolution over time; parameters (and names) of a depthwise ``nn.Conv1d``.

    Args:
        dim: channels.
        kernel_size: taps, the present input included.
        bias: add a bias.
        activation: None or "silu".

    Raises:
        ValueError: for a kernel_size below 2.
    """

    def __init__(self, dim: int, kernel_size: int = 4, bias: bool = True, activation: str | None = None):
        require_at_least(1, dim=dim)
        require_at_least(2, kernel_size=kernel_size)
        super().__init__(dim, dim, kernel_size, groups=dim, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor, state: Tensor | None = None, seq_idx: Tensor | None = None) -> ConvOutput:
        """x (B, T, D), state (B, kernel_size - 1, D) -> output (B, T, D) and the next state."""
        return causal_conv1d(
            x, self.weight[:, 0], self.bias, activation=self.activation, initial_state=state, seq_idx=seq_idx
        )
