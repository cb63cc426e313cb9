"""What a mixer remembers between calls, and what a user may do with it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.stand_in import on_cpu

StateType = TypeVar("StateType", bound="State")


@dataclasses.dataclass
class State:
    """Tensors of one mixer with the batch in dim 0, replaced by the mixer as it advances.

    Attributes:
        seq_idx: (B,) packed-sequence id of each row's newest token, negative where none was named yet; None while no
            ids were given at all.
        seen: steps given so far, padding included.
        committed: the state that ``rollback`` returns to; None for the one before the first step.
        wide: names of the tensors that ``to`` keeps in float32 or wider.
    """

    wide: ClassVar[tuple[str, ...]] = ()

    seq_idx: Tensor | None = dataclasses.field(default=None, kw_only=True)
    seen: int = dataclasses.field(default=0, kw_only=True)
    committed: State | None = dataclasses.field(default=None, kw_only=True, repr=False)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the fields that hold one."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes; what ``commit`` keeps is not counted."""
        return sum(tensor.nbytes for _, tensor in self.tensors())

    def reset(self) -> None:
        """Back to the state before the first token."""
        self.map(lambda _, tensor: torch.zeros_like(tensor))
        self.seq_idx, self.seen, self.committed = None, 0, None

    def reorder(self, index: Tensor) -> None:
        """Row i becomes the old row ``index[i]`` (beam search, repeated prompts); index (new batch,) int64."""
        self.map(lambda _, tensor: tensor.index_select(0, index))

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` steps (negative: forget that many).

        Raises:
            ValueError: for a recurrent state, which has no memory of its past.
        """
        raise ValueError(
            f"{type(self).__name__} is recurrent and cannot be cropped to {length} tokens: start from init_state and "
            "run the tokens again, or commit before what may be forgotten and roll all of it back"
        )

    def commit(self, count: int | None = None) -> None:
        """The first ``count`` steps since the last commit, or all, are final; the others are forgotten.

        Raises:
            ValueError: see ``rollback``.
        """
        if count is not None:
            self.rollback(self.uncommitted - count)
        self.committed = None
        self.committed = self._copy()

    def rollback(self, count: int | None = None) -> None:
        """Forget the newest ``count`` steps, or all since the last ``commit`` (or the first step).

        Raises:
            ValueError: for more steps than there are since then; of a recurrent state for fewer, as it remembers the
                committed one alone: roll all back, and run those again that stay.
        """
        count = self.uncommitted if count is None else count
        if not 0 <= count <= self.uncommitted:
            raise ValueError(
                f"{count} steps cannot be forgotten: {self.uncommitted} of {self.seen} are newer than the last commit"
            )
        if 0 < count < self.uncommitted:
            self.crop(self.seen - count)
        elif count and self.committed is None:
            self.reset()
        elif count and self.committed is not None:
            self.__dict__.update(self.committed._copy().__dict__, committed=self.committed)

    @property
    def room(self) -> int | None:
        """Steps that it can still be given; None for any number."""
        return None

    @property
    def uncommitted(self) -> int:
        """Steps since the last ``commit``."""
        return self.seen - (0 if self.committed is None else self.committed.seen)

    def to(self: StateType, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> StateType:
        """A state on another device or of another floating-point dtype; sums kept in float32 stay as wide."""

        def moved(name: str, tensor: Tensor) -> Tensor:
            wanted = dtype if tensor.is_floating_point() else None
            if wanted is not None and name in self.wide:
                wanted = compute_dtype(wanted)
            return tensor.to(device=device, dtype=wanted or tensor.dtype)

        return self.mapped(moved)

    def clone(self: StateType) -> StateType:
        """A state with the same values that goes its own way."""
        return self.mapped(lambda _, tensor: tensor.clone())

    def detach(self: StateType) -> StateType:
        """The same values without their history: what comes after sends no gradient into what came before (truncated
        backpropagation). The memory is shared, so go on with one of the two."""
        return self.mapped(lambda _, tensor: tensor.detach())

    def select(self: StateType, rows: Tensor) -> StateType:
        """A state of the rows (n,) of the batch alone."""
        return self.mapped(lambda _, tensor: tensor.index_select(0, rows))

    def put(self: StateType, rows: Tensor, part: StateType) -> None:
        """The rows (n,) of the batch become those of ``part``, which ``select`` made and a mixer advanced."""
        theirs = dict(part.tensors())
        if self.seq_idx is None and part.seq_idx is not None:
            batch = next(tensor.shape[0] for _, tensor in self.tensors())
            self.seq_idx = part.seq_idx.new_full((batch,), -1)
        self.map(lambda name, tensor: tensor.index_copy(0, rows, theirs[name].to(tensor.dtype)))

    def map(self, function: Callable[[str, Tensor], Tensor]) -> None:
        """Every tensor becomes ``function(name, tensor)``, those of the committed state too."""
        for name, tensor in list(self.tensors()):
            setattr(self, name, function(name, tensor))
        if self.committed is not None:
            self.committed = self.committed.mapped(function)

    def mapped(self: StateType, function: Callable[[str, Tensor], Tensor]) -> StateType:
        """A copy whose tensors became ``function(name, tensor)``."""
        copied = self._copy()
        copied.map(function)
        return copied

    def _copy(self: StateType) -> StateType:
        """Another state with the same tensors."""
        return copy.copy(self)

    def advance_sequence(self, seq_idx: Tensor | None) -> Tensor | None:
        """Note the ids of new tokens (B, T); returns a (B,) mask of the rows whose past belongs to the first of them.

        None stands for all rows. Without ids the tokens continue the present sequence; so do those of the first
        sequence that is ever named in a row. Negative ids are padding and name none.
        """
        if seq_idx is None:
            return None
        before, (first, last) = self.seq_idx, edges(seq_idx)
        self.seq_idx = last if before is None else last.where(last >= 0, before)
        return None if before is None else (before < 0) | (first < 0) | (before == first)


def edges(seq_idx: Tensor) -> tuple[Tensor, Tensor]:
    """First and last id (B,) of each row of (B, T) that is not padding; a negative one where all is padding."""
    real = (seq_idx >= 0).to(torch.uint8)
    first, last = real.argmax(1, keepdim=True), seq_idx.shape[1] - 1 - real.flip(1).argmax(1, keepdim=True)
    return seq_idx.gather(1, first)[:, 0], seq_idx.gather(1, last)[:, 0]


def is_traced(tensor: Tensor) -> bool:
    """Whether the values of ``tensor`` cannot be known now: a program is being traced, or it has none ("meta")."""
    return torch.compiler.is_compiling() or tensor.is_meta


def is_sized(tensor: Tensor) -> bool:
    """Whether work may be divided by the sizes of ``tensor``: not where a program is being traced, and without memory
    only where it stands for a CPU's."""
    return not torch.compiler.is_compiling() and (not tensor.is_meta or on_cpu(tensor.device))


def keep_rows(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """``tensor`` with zeros in the rows of the batch where the (B,) mask is False; None keeps all."""
    return tensor if rows is None else tensor * rows.view(-1, *[1] * (tensor.dim() - 1))
