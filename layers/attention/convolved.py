"""Attention whose queries, keys and values pass a short convolution: the attention layers of Mamba-2 hybrids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from zoo.kernels import causal_conv1d
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import Place
from zoo.layers.attention.rotary import Rotary
from zoo.layers.attention.state import KeyValueState
from zoo.layers.conv import CausalConv1d
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.state import State, keep_rows
from zoo.layers.states import JointState


@dataclass
class ShortConvState(State):
    """conv (B, kernel_size - 1, dim): newest inputs of the convolution."""

    conv: Tensor


class ShortConv(Mixer):
    """A depthwise causal convolution over time, with a bias, as a mixer; parameters as of ``nn.Conv1d``.

    Args:
        dim: channels.
        kernel_size: taps, the present input included.
    """

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        initial = CausalConv1d(dim, kernel_size)
        self.dim, self.kernel_size, self.weight, self.bias = dim, kernel_size, initial.weight, initial.bias

    @skips_padding
    def forward(self, x: Tensor, state: ShortConvState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        past = None if state is None else keep_rows(state.conv, state.advance_sequence(seq_idx))
        y, conv = causal_conv1d(x, self.weight[:, 0], self.bias, initial_state=past, seq_idx=seq_idx)
        if state is not None:
            state.conv = conv
        return y

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> ShortConvState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        return ShortConvState(torch.zeros(batch_size, self.kernel_size - 1, self.dim, device=device, dtype=dtype))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return (self.kernel_size - 1) * self.dim


class ConvolvedAttention(CausalAttention):
    r"""Causal attention on :math:`[q, k, v] = \mathrm{conv}(W_{in} x)`, of which the first ``rotary_dim`` channels of
    each query and key are turned by their position.

    Args:
        dim: model width.
        num_heads: query heads.
        num_kv_heads: key and value heads, num_heads when None.
        head_dim: d, dim / num_heads when None.
        rotary_dim: even, at most d; d when None.
        kernel_size: taps of the convolution, the present step included.
        rope_base: wavelength base of the rotary embedding.

    Raises:
        ValueError: for a rotary_dim that is odd or above d, and see ``CausalAttention``.

    Paper: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 9.2.3 (hybrid models). Parameter names are
    those of the published checkpoint.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_dim: int | None = None,
        kernel_size: int = 4,
        rope_base: float = 10000.0,
    ):
        super().__init__(dim, num_heads, num_kv_heads, None, head_dim)
        turned = self.head_dim if rotary_dim is None else rotary_dim
        if turned % 2 or not 0 < turned <= self.head_dim:
            raise ValueError(f"rotary_dim must be even and at most head_dim {self.head_dim}, got {rotary_dim}")
        self.rotary = Rotary(turned, rope_base)
        self.conv1d = ShortConv(self.in_proj.out_features, kernel_size)

    def build_projections(self, dim: int, bias: bool) -> None:
        """One for queries, keys and values."""
        self.in_proj = nn.Linear(dim, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, bias)

    def forward(self, x: Tensor, state: JointState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, T, dim) -> (B, T, dim)."""
        cache, newest = cast("tuple[KeyValueState, State]", state.parts) if state is not None else (None, None)
        place = Place.of(x, cache, seq_idx)
        heads = self.conv1d(self.in_proj(x), newest, seq_idx=seq_idx).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=2)  # (B, T, H, d)
        q, k = self.rotated(place.position, q, k)
        y = self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), place, cache)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> JointState:  # pyright: ignore[reportIncompatibleMethodOverride]
        """An empty cache, of capacity ``max_length`` or growing, and the convolution's newest inputs."""
        arguments = (batch_size, max_length, device, dtype)
        return JointState((super().init_state(*arguments), self.conv1d.init_state(*arguments)))

    def state_size(self, length: int) -> int:
        """Grows with ``length``: one key and one value a step and key-value head; and the convolution's inputs."""
        return super().state_size(length) + self.conv1d.state_size(length)
