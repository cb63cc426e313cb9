"""A narrow network beside a frozen one: what a rung of the ladder between them computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.state import State
from zoo.layers.states import JointState

TEMPERATURE = 0.1


class Rung(nn.Module):
    r"""A frozen block, and one of a narrow network that reads its output.

    .. math:: h' = \mathrm{block}(h), \qquad
        s' = \mathrm{side}(g s + (1 - g) D h'), \qquad g = \sigma(\theta / 0.1), \qquad s_0 = D_0 h_0

    The stream between blocks is [h, s], and after the last one h + U norm(s), with U = 0 at first. No gradient and
    nothing of the frozen block is kept for the backward pass.

    Args:
        block: of width dim.
        side: of width ``width``; None where the ladder has no rung.
        dim, width: of the streams.
        first: the stream that comes in is h_0.
        norm: of s, where this is the last one.
        dtype: of what is new.

    Paper: Sung et al., "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", arXiv
    2206.06522. There a gate mixes the last h with U norm(s), where it is not left out.
    """

    compute: Tensor

    def __init__(
        self,
        block: Any,
        side: Any,
        dim: int,
        width: int,
        *,
        first: bool = False,
        norm: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.block, self.side, self.width = block, side, width
        self.enter = nn.Linear(dim, width, dtype=dtype) if first else None
        self.down = nn.Linear(dim, width, dtype=dtype) if side is not None else None
        self.gate = nn.Parameter(torch.zeros((), dtype=dtype)) if side is not None else None
        self.close, self.up = norm, None if norm is None else nn.Linear(width, dim, dtype=dtype)
        self.register_buffer("compute", torch.empty(0, dtype=dtype), persistent=False)
        if self.up is not None:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, state: JointState | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim + width), of the first one (B, T, dim), -> the same, of the last one (B, T, dim)."""
        main, beside = (None, None) if state is None else (state.parts[0], state.parts[-1])
        h, s = (x, self._narrow(self.enter, x)) if self.enter is not None else x.tensor_split([-self.width], -1)
        with torch.no_grad():
            h = self.block(h, main, seq_idx)
        if self.side is not None and self.gate is not None:
            g = torch.sigmoid(self.gate / TEMPERATURE)
            s = self.side(g * s + (1 - g) * self._narrow(self.down, h), beside, seq_idx)
        return torch.cat([h, s], -1) if self.up is None else h + self.up(self.close(s).to(self.compute.dtype))

    def _narrow(self, layer: Any, h: Tensor) -> Tensor:
        """D h in the dtype of the stream."""
        return layer(h.to(self.compute.dtype)).to(h.dtype)

    @property
    def mixer(self) -> Rung:
        """What has its states."""
        return self

    def remember(self, x: Tensor, state: JointState, seq_idx: Tensor | None = None) -> None:
        """Advance the states by x."""
        self(x, state, seq_idx)

    def init_state(self, *args: Any, **options: Any) -> JointState:
        """Of the block's mixer, and of the one beside it."""
        made: list[State] = [block.mixer.init_state(*args, **options) for block in self._blocks]
        return JointState(tuple(made))

    def state_size(self, length: int) -> int:
        """The sum of the two."""
        return sum(block.mixer.state_size(length) for block in self._blocks)

    @property
    def _blocks(self) -> list[Any]:
        return [self.block] if self.side is None else [self.block, self.side]
