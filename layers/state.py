"""What a mixer remembers between calls, and what a user may do with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor


@dataclasses.dataclass
class State:
    """Tensors of one mixer with the batch in dim 0, replaced by the mixer as it advances.

    ``seq_idx`` (B,) is the packed-sequence id of the newest token, or None while no ids were given.
    """

    seq_idx: Tensor | None = dataclasses.field(default=None, kw_only=True)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the fields that hold one."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(tensor.nbytes for _, tensor in self.tensors())

    def reset(self) -> None:
        """Back to the state before the first token."""
        for name, tensor in self.tensors():
            setattr(self, name, torch.zeros_like(tensor))
        self.seq_idx = None

    def reorder(self, index: Tensor) -> None:
        """Row i becomes the old row ``index[i]`` (beam search, repeated prompts); index (new batch,) int64."""
        for name, tensor in self.tensors():
            setattr(self, name, tensor.index_select(0, index))

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` tokens.

        Raises:
            ValueError: for a recurrent state, which has no memory of its past.
        """
        raise ValueError(
            f"{type(self).__name__} is recurrent and cannot be cropped to {length} tokens: "
            "start from init_state and run the tokens again"
        )

    def advance_sequence(self, seq_idx: Tensor | None) -> Tensor | None:
        """Note the ids of new tokens (B, T); returns a (B,) mask of the rows whose past belongs to the first of them.

        None stands for all rows; without ids the tokens continue the present sequence.
        """
        if seq_idx is None:
            return None
        before, self.seq_idx = self.seq_idx, seq_idx[:, -1]
        return None if before is None else before == seq_idx[:, 0]


@dataclasses.dataclass
class JointState(State):
    """The states of several mixers that work side by side on the same tokens."""

    parts: tuple[State, ...]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors of all parts, "index.name"."""
        for index, part in enumerate(self.parts):
            for name, tensor in part.tensors():
                yield f"{index}.{name}", tensor

    def reset(self) -> None:
        """Every part back to before the first token."""
        for part in self.parts:
            part.reset()

    def reorder(self, index: Tensor) -> None:
        """Reorder the batch of every part."""
        for part in self.parts:
            part.reorder(index)


class ModelState(list[State]):
    """The states of a model's mixers, in order."""

    @property
    def nbytes(self) -> int:
        """Memory of all states, in bytes."""
        return sum(state.nbytes for state in self)

    def reset(self) -> None:
        """Every state back to before the first token."""
        for state in self:
            state.reset()

    def reorder(self, index: Tensor) -> None:
        """Reorder the batch of every state."""
        for state in self:
            state.reorder(index)

    def crop(self, length: int) -> None:
        """Crop every state; raises ValueError, changing nothing, where one of them is recurrent."""
        for state in sorted(self, key=lambda state: type(state).crop is not State.crop):
            state.crop(length)


def keep_rows(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """``tensor`` with zeros in the rows of the batch where the (B,) mask is False; None keeps all."""
    return tensor if rows is None else tensor * rows.view(-1, *[1] * (tensor.dim() - 1))
