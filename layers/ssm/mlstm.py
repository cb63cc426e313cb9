"""The mLSTM: a matrix memory under exponential gates, whose output is gated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import MLSTMOutput, mlstm
from zoo.kernels.dispatch import compute_dtype
from zoo.layers.linear import WideBias, capped
from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.norm import HeadNorm
from zoo.layers.options import require_above, require_at_least
from zoo.layers.ssm.state_space import wide
from zoo.layers.state import State, keep_rows


@dataclass
class MLSTMState(State):
    """memory (B, H, K, V), normalizer (B, H, K) and stabilizer (B, H), float32."""

    wide: ClassVar[tuple[str, ...]] = ("memory", "normalizer", "stabilizer")

    memory: Tensor
    normalizer: Tensor
    stabilizer: Tensor

    @classmethod
    def empty(cls, batch: int, heads: int, key_dim: int, value_dim: int, **placement: Any) -> dict[str, Any]:
        """The three tensors before the first token; ``placement`` of ``torch.zeros``."""
        shape = batch, heads, key_dim, value_dim
        sizes = zip(MLSTMState.wide, (shape, shape[:3], shape[:2]), strict=True)
        return {name: torch.zeros(size, **placement) for name, size in sizes}

    def past(self, rows: Tensor | None) -> dict[str, Tensor]:
        """The three tensors, in the rows that go on."""
        return {name: keep_rows(getattr(self, name), rows) for name in MLSTMState.wide}

    def remember(self, found: MLSTMOutput) -> None:
        """The three tensors become those behind the last step."""
        self.memory, self.normalizer, self.stabilizer = found[1:]


class MLSTMCell(nn.Module):
    r"""The gates of a matrix memory, its recurrence and the norm of what is read from it.

    .. math:: i, f = \mathrm{cap}(W_i u + b_i), \mathrm{cap}(W_f u + b_f), \quad
        h = \mathrm{LayerNorm}(\mathrm{mlstm}(q, k, v, i, \log \sigma(f)))

    with cap(z) = c tanh(z / c), and a norm over each head that has a weight and no bias.

    Args:
        num_heads: heads H.
        gate_dim: channels of u.
        value_dim: V, channels of a value.
        gate_softcap: c, bound of the gates' logits; None for none.
        input_offset: b_i starts at -input_offset; b_f rises from 3 to 6 over the heads, and W_i and W_f are zero.
        eps: added to what the recurrence divides by.
        chunk_size: steps a chunk of the parallel form; it changes the speed, not the result.
        norm_eps: of the norm.
    """

    def __init__(
        self,
        num_heads: int,
        gate_dim: int,
        value_dim: int,
        gate_softcap: float | None = 15.0,
        input_offset: float = 10.0,
        eps: float = 1e-6,
        chunk_size: int = 64,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        require_at_least(1, num_heads=num_heads, gate_dim=gate_dim, value_dim=value_dim, chunk_size=chunk_size)
        require_above(0, gate_softcap=gate_softcap)
        require_at_least(0, eps=eps, input_offset=input_offset)
        self.num_heads, self.gate_softcap, self.eps, self.chunk_size = num_heads, gate_softcap, eps, chunk_size
        self.i_proj, self.f_proj = WideBias(gate_dim, num_heads), WideBias(gate_dim, num_heads)
        self.norm = HeadNorm(num_heads, num_heads * value_dim, norm_eps, bias=False)
        nn.init.zeros_(self.i_proj.weight)
        nn.init.zeros_(self.f_proj.weight)
        nn.init.constant_(self.i_proj.bias, -input_offset)
        with torch.no_grad():
            self.f_proj.bias.copy_(torch.linspace(3.0, 6.0, num_heads))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, u: Tensor, past: dict[str, Tensor], seq_idx: Tensor | None
    ) -> MLSTMOutput:
        """q, k (B, T, H K), v (B, T, H V), u (B, T, gate_dim) and the past of a state -> output (B, T, H V), state."""
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        i, f = (capped(wide(proj(u)), self.gate_softcap) for proj in (self.i_proj, self.f_proj))  # (B, T, H)
        options: dict[str, Any] = {"eps": self.eps, "seq_idx": seq_idx, "chunk_size": self.chunk_size}
        found = mlstm(q, k, v, i, F.logsigmoid(f), **past, **options)
        return found._replace(output=self.norm(found.output.flatten(-2)))


class MLSTM(Mixer):
    r"""A matrix memory that an exponential gate fills and a sigmoid gate empties, behind an output gate.

    .. math:: y = W_o \big( \sigma(W_g x) \odot \mathrm{MLSTMCell}(W_q x, W_k x, W_v x, x) \big)

    Args:
        dim: model width.
        num_heads: heads H.
        key_dim: K, channels of a query and key.
        value_dim: V, channels of a value.
        gate_softcap, input_offset, eps, chunk_size, norm_eps: of ``MLSTMCell``.

    Papers: Beck et al., "xLSTM", arXiv 2405.04517; "xLSTM 7B", arXiv 2503.13427, sections 2 and 3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        gate_softcap: float | None = 15.0,
        input_offset: float = 10.0,
        eps: float = 1e-6,
        chunk_size: int = 64,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        require_at_least(1, dim=dim, key_dim=key_dim)
        self.num_heads, self.key_dim, self.value_dim = num_heads, key_dim, value_dim
        self.cell = MLSTMCell(num_heads, dim, value_dim, gate_softcap, input_offset, eps, chunk_size, norm_eps)
        keys, values = num_heads * key_dim, num_heads * value_dim
        self.q_proj, self.k_proj = nn.Linear(dim, keys, bias=False), nn.Linear(dim, keys, bias=False)
        self.v_proj, self.g_proj = nn.Linear(dim, values, bias=False), nn.Linear(dim, values, bias=False)
        self.out_proj = nn.Linear(values, dim, bias=False)

    @skips_padding
    def forward(self, x: Tensor, state: MLSTMState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        past = {} if state is None else state.past(state.advance_sequence(seq_idx))
        found = self.cell(self.q_proj(x), self.k_proj(x), self.v_proj(x), x, past, seq_idx)
        if state is not None:
            state.remember(found)
        return self.out_proj(self.g_proj(x).sigmoid() * found.output)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> MLSTMState:
        """Zeros; the size does not depend on ``max_length``."""
        device, dtype = self.placement(device, dtype)
        shape = batch_size, self.num_heads, self.key_dim, self.value_dim
        return MLSTMState(**MLSTMState.empty(*shape, device=device, dtype=compute_dtype(dtype)))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.num_heads * (self.key_dim * self.value_dim + self.key_dim + 1)
