"""The contract of a sequence mixer: anything that moves information along time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from zoo.layers.precision import KeepsFloat32
from zoo.layers.state import State


class Mixer(KeepsFloat32, ABC):
    """(B, T, dim) -> (B, T, dim), in parallel over T or from a state; both give the same output."""

    compute: Tensor  # empty, and follows the module: the device and dtype it computes in, whatever its projections are

    def __init__(self):
        super().__init__()
        self.register_buffer("compute", torch.empty(0), persistent=False)

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """Mix along time. With a state, start from it and advance it; ``seq_idx`` (B, T) marks packed sequences."""

    @abstractmethod
    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before the first token, on the device and in the dtype that the mixer computes in unless given."""

    def placement(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of a state: as given, else those of the mixer, also where its projections are compressed."""
        return torch.device(self.compute.device if device is None else device), dtype or self.compute.dtype

    @abstractmethod
    def state_size(self, length: int) -> int:
        """Numbers the state holds for one sequence after ``length`` tokens."""
