"""What linear attention remembers: one matrix a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.kernels import linear_attention
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.mixer import Mixer
from zoo.layers.state import State, keep_rows


@dataclass
class MemoryState(State):
    """memory (B, H, K, V), float32: the decayed sum of k v^T over the past."""

    wide: ClassVar[tuple[str, ...]] = ("memory",)

    memory: Tensor


class MemoryMixer(Mixer):
    """A mixer by ``linear_attention``.

    Attributes:
        num_heads, key_dim, value_dim: H, K and V.
        chunk_size: steps a chunk of the parallel form.
        scale: factor of the output; K^-0.5 when None.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    chunk_size: int
    scale: float | None = None

    def recall(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        state: MemoryState | None,
        seq_idx: Tensor | None,
    ) -> Tensor:
        """What queries (B, T, H, K) find of keys (B, T, H, K) and values (B, T, H, V), which the state remembers."""
        past = None if state is None else keep_rows(state.memory, state.advance_sequence(seq_idx))
        options = {"log_decay": log_decay, "scale": self.scale, "chunk_size": self.chunk_size}
        found, memory = linear_attention(q, k, v, initial_state=past, seq_idx=seq_idx, **options)
        if state is not None:
            state.memory = memory
        return found

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> MemoryState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        shape = batch_size, self.num_heads, self.key_dim, self.value_dim
        return MemoryState(torch.zeros(shape, device=device, dtype=compute_dtype(dtype)))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.num_heads * self.key_dim * self.value_dim
