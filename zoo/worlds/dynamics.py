"""What comes next: a recurrent memory of codes and actions."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers import Mixer, RMSNorm, recompute
from zoo.layers.state import State
from zoo.layers.states import ModelState


def stack(in_dim: int, dim: int, depth: int) -> list[nn.Module]:
    """``depth`` times a linear layer, RMS norm and SiLU."""
    widths = [in_dim] + [dim] * depth
    return [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Linear(before, after), RMSNorm(after, eps=1e-6), nn.SiLU())
    ]


class MemoryBlock(nn.Module):
    """x + mixer(norm(x)): there is no MLP."""

    def __init__(self, dim: int, mixer: Mixer):
        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = mixer

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        return x + self.mixer(self.norm(x), state, seq_idx=seq_idx)


class Dynamics(nn.Module):
    """Codes and the actions taken at them to a vector a step, which knows of all steps up to it.

    Args:
        code_dim: numbers of a code.
        num_actions: actions to choose from.
        dim: width.
        mixers: of the blocks.

    Attributes:
        grad_checkpointing: whether blocks are recomputed in the backward pass.
    """

    def __init__(self, code_dim: int, num_actions: int, dim: int, mixers: list[Mixer]):
        super().__init__()
        self.num_actions, self.grad_checkpointing = num_actions, False
        self.stem = nn.Sequential(*stack(code_dim + num_actions, dim, 1))
        self.blocks = nn.ModuleList(MemoryBlock(dim, mixer) for mixer in mixers)
        self.norm = RMSNorm(dim)

    def forward(
        self, codes: Tensor, actions: Tensor | None, state: ModelState | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """codes (B, T, code_dim), actions (B, T) or None where nobody knows them -> (B, T, dim).

        With a state, from it, which is advanced. Steps of other ``seq_idx`` (B, T) do not see each other.
        """
        if actions is None:
            taken = codes.new_zeros(*codes.shape[:2], self.num_actions)
        else:
            taken = F.one_hot(actions, self.num_actions).to(codes.dtype)
        x = self.stem(torch.cat([codes, taken], -1))
        for index, block in enumerate(self.blocks):
            own = None if state is None else state[index]
            if self.grad_checkpointing and self.training and own is None:
                x = recompute(block, x, None, seq_idx)
            else:
                x = block(x, own, seq_idx)
        return self.norm(x)

    def init_state(self, batch_size: int) -> ModelState:
        """The memory before the first step."""
        mixers: list[Mixer] = [block.mixer for block in self.blocks]  # type: ignore[misc]
        return ModelState(mixer.init_state(batch_size) for mixer in mixers)
