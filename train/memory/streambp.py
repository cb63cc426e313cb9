"""StreamBP: the sequence goes through each block chunk after chunk, forwards and backwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.kernels.dispatch import compute_dtype
from zoo.language.base import LanguageModel
from zoo.layers import CausalAttention, SlidingWindowAttention, State
from zoo.layers.attention.keys import Keys
from zoo.layers.attention.state import KeyValueState
from zoo.layers.options import require_at_least
from zoo.layers.recompute import recomputed_by
from zoo.layers.replay import autocast_mode, if_drawn, random_state, replayed
from zoo.layers.report import Reports
from zoo.layers.states import Several
from zoo.train.memory.checkpointing import Checkpointing

Result = TypeVar("Result")
MIXES = (CausalAttention.mix, SlidingWindowAttention.mix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamBP(Checkpointing, kind="streambp"):
    """Of each block only the input is kept, and at no time the activations of more than ``chunk_size`` tokens.

    What a causal block makes of a chunk depends on the chunk and on its state before it: for attention the keys and
    values of the past, for recurrences their state. The backward pass of a block computes these states, then goes
    through the chunks from the last to the first; each hands the one before it the gradients of the state between
    them. The gradients are those of the whole sequence, to rounding. The authors' code computes the keys and values of
    a chunk's past again with it, and is for attention alone. The logits exist by chunks in any case
    (``linear_cross_entropy``).

    Paper: Luo et al., "StreamBP", arXiv 2506.03077.
    """

    sharded = False

    chunk_size: int = 512
    """Tokens of each sequence that a block computes at once."""

    def check(self, model: nn.Module) -> None:
        """A stack of causal blocks whose states carry gradients."""
        require_at_least(1, chunk_size=self.chunk_size)
        if reason := not_in_parts(model):
            raise ValueError(f"streambp: {reason}: take checkpointing")

    def forward(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Its blocks go through ``run``."""
        return recomputed_by(self.run)

    def run(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """x (B, T, dim) through a block, by chunks."""
        _, seq_idx = args
        parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
        return _Streamed.apply(x, block, seq_idx, self.chunk_size, *parameters)  # type: ignore[return-value]


def not_in_parts(model: nn.Module) -> str | None:
    """Why a model's blocks cannot be trained on parts of a sequence one after the other; None where they can."""
    name = type(model).__name__
    if not isinstance(model, LanguageModel) or not model.straight:
        return f"tokens stream through causal blocks one after the other, which {name} is not made of"
    if model.exits is not None:
        return f"the exits of {name} choose among the tokens of a sequence"
    for part_name, part in model.blocks.named_modules():
        place = f"blocks.{part_name} ({type(part).__name__})"
        if isinstance(part, Reports):
            return f"{place} has side losses or choices over all tokens of a sequence, which chunks are not"
        if getattr(part, "whole_in_training", False):
            return f"{place} computes a whole sequence in training as no chunks of it are"
        if isinstance(part, CausalAttention) and part.mix.__func__ not in MIXES:  # type: ignore[attr-defined]
            return f"{place} attends otherwise in training"
    return None


class _Streamed(torch.autograd.Function):
    """A block; parameters are inputs, so that their gradients go the way of all others."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: Any, seq_idx: Tensor | None, chunk_size: int, *parameters: nn.Parameter
    ) -> Tensor:
        ctx.block, ctx.chunk_size, ctx.autocast, ctx.drawn = block, chunk_size, autocast_mode(x.device), []
        ctx.parameters = parameters
        state, y = fresh(block, x), torch.empty_like(x)
        for chunk, read, ids in zip(*_chunks(chunk_size, y, x.detach(), seq_idx), strict=True):
            before = random_state(x.device)
            with ctx.autocast():
                chunk.copy_(block(read, state, ids))
            ctx.drawn.append(if_drawn(before, x.device))
        ctx.save_for_backward(x, seq_idx, *parameters)  # parameters: a change before the backward pass is noticed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, seq_idx = ctx.saved_tensors[:2]
        x = x.detach()  # views of x itself would claim to require gradients
        again = Again(ctx.block, ctx.chunk_size, ctx.parameters, ctx.autocast, ctx.drawn)
        dx, found = whole(again.backward(x, dy, seq_idx))
        return dx, None, None, None, *found


@dataclasses.dataclass
class Again:
    """What the backward pass of a block by chunks computes once more.

    Attributes:
        block, chunk_size, parameters: of the forward pass.
        autocast: its mode.
        drawn: its random states, one or None a chunk.
    """

    block: Any
    chunk_size: int
    parameters: Sequence[nn.Parameter]
    autocast: Callable[[], AbstractContextManager[Any]]
    drawn: Sequence[Any]

    def backward(
        self, x: Tensor, dy: Tensor, seq_idx: Tensor | None = None
    ) -> Generator[int, None, tuple[Tensor, list[Tensor]]]:
        """The gradients of x (B, T, dim) and of the parameters; after each chunk its tokens are yielded, and after the
        pass that makes the states before them all tokens."""
        dx = torch.empty_like(x)
        sums = [torch.zeros_like(parameter, dtype=compute_dtype(parameter)) for parameter in self.parameters]
        chunks = list(zip(*_chunks(self.chunk_size, x, dx, dy, seq_idx), self.drawn, strict=True))
        after: list[Tensor] = []  # gradients of the state behind a chunk
        states = self._states(x, chunks)
        if len(chunks) > 1:
            yield x.shape[1]
        for (part, dpart, dout, ids, drawn), state in zip(reversed(chunks), reversed(states), strict=True):
            state = _opened(state)
            before = [tensor for tensor in _tensors(state) if tensor.requires_grad]
            part = part.detach().requires_grad_()
            with torch.enable_grad(), self.autocast(), replayed(drawn, x.device):
                y = self.block(part.view_as(part), state, ids)  # FLOP counters put hooks on inputs, but not on leaves
            outputs = [y, *(tensor for tensor in _tensors(state) if tensor.is_floating_point())] if after else [y]
            pairs = [pair for pair in zip(outputs, [dout, *after], strict=True) if pair[0].requires_grad]
            found = torch.autograd.grad(
                [output for output, _ in pairs], [part, *before, *self.parameters],
                [gradient.to(output.dtype) for output, gradient in pairs], materialize_grads=True,
            )  # fmt: skip
            dpart.copy_(found[0])
            after = list(found[1 : 1 + len(before)])
            for total, gradient in zip(sums, found[1 + len(before) :], strict=True):
                total.add_(gradient)
            yield part.shape[1]
        return dx, [total.to(parameter.dtype) for total, parameter in zip(sums, self.parameters, strict=True)]

    def _states(self, x: Tensor, chunks: Sequence[Any]) -> list[State]:
        """The state before each chunk."""
        state = fresh(self.block, x)
        found = [_kept(state)]
        for part, _, _, ids, drawn in chunks[:-1]:
            with torch.no_grad(), self.autocast(), replayed(drawn, x.device):
                self.block.remember(part, state, ids)
            found.append(_kept(state))
        return found


def whole(pieces: Generator[Any, None, Result]) -> Result:
    """What a generator returns, once it has run to its end."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


class _Past(KeyValueState):
    """Keys and values of the tokens before a chunk, to which its own are added once."""

    def make_room(self, count: int) -> None:
        """Nothing to do: what is added is put behind."""

    def write(self, new: Keys, **more: Tensor) -> Keys:
        """Put those of the chunk behind the others; returns all of them."""
        start, self.filled = self.filled, self.filled + new.key.shape[2]
        if new.position.dim() == 2:
            self.with_positions()
        for name, dim in self.slots.items():
            if (held := getattr(self, name)) is not None:
                added = new.position.expand(len(held), -1) if name == "position" else getattr(new, name)
                setattr(self, name, torch.cat([held, added], dim))
        return new if start == 0 else self.keys()


def fresh(block: Any, x: Tensor) -> State:
    """The state of a block before x (B, T, dim)."""
    return block.mixer.init_state(x.shape[0], x.shape[1])


def _chunks(size: int, *tensors: Tensor | None) -> Sequence[Sequence[Tensor | None]]:
    """Chunks (B, size, ...) of tensors (B, T, ...), and as many None for None."""
    some = next(tensor for tensor in tensors if tensor is not None)
    count = -(-some.shape[1] // size)
    return [[None] * count if tensor is None else tensor.split(size, 1) for tensor in tensors]


def _kept(state: State) -> State:
    """The state as it is now, whatever is added to it."""
    if isinstance(state, Several):
        return state.of(_kept(part) for part in state.states)  # type: ignore[return-value]
    return state._copy()


def _opened(state: State) -> State:
    """A state whose tensors are leaves."""
    if isinstance(state, Several):
        return state.of(_opened(part) for part in state.states)  # type: ignore[return-value]
    if type(state) is KeyValueState:
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        for name, dim in state.slots.items():
            if fields[name] is not None:
                fields[name] = fields[name].narrow(dim, 0, state.filled)
        state = _Past(**fields)
    return state.mapped(lambda _, t: t.detach().requires_grad_() if t.is_floating_point() else t)


def _tensors(state: State) -> list[Tensor]:
    return [tensor for _, tensor in state.tensors()]
