"""MEMO: of a block's activations some tokens are moved to the host, and the others computed again, attention never."""

from __future__ import annotations

import dataclasses
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from zoo.kernels.dispatch import available_implementations, implementation, is_automatic
from zoo.language.base import LanguageModel
from zoo.layers import CausalAttention, SlidingWindowAttention
from zoo.layers.attention.keys import Place
from zoo.layers.recompute import recomputed_by
from zoo.layers.replay import autocast_mode
from zoo.layers.report import Reports
from zoo.train.memory.checkpointing import Checkpointing
from zoo.train.memory.spool import Host, Spool

BY_SIZE = ("rms_norm", "rope")  # operations that compute few numbers in another way than many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memo(Checkpointing, kind="memo"):
    """Of each block the input and the output of attention are moved to the host whole, of everything else that its
    backward pass needs the first ``alpha`` of the tokens; the rest is computed again from these two, token by token,
    so that attention is never computed twice.

    The gradients are those of plain training: to the bit with alpha 1, else to the rounding of products of fewer rows.
    On a GPU the host is its memory; on the CPU it is a file in its place (``Spool``), which shows what stays and costs
    what a disk does. The last blocks are needed at once and stay. For the best alpha see ``swap_share``.

    Paper: Zhao et al., "MEMO: Fine-grained Tensor Management For Ultra-long Context LLM Training", arXiv 2407.12117.
    """

    sharded = False

    alpha: float = 0.5
    """Share of the tokens that is moved."""
    keep: int = 2
    """Last blocks that stay as they are."""
    folder: str | None = None
    """Of the file, see ``ssdtrain``."""

    def check(self, model: nn.Module) -> None:
        """A stack of attention and what works on tokens one by one."""
        if not 0 <= self.alpha <= 1 or self.keep < 0:
            raise ValueError(f"memo: alpha must be in [0, 1] and keep at least 0, got {self.alpha} and {self.keep}")
        name, way_out = type(model).__name__, "take ssdtrain or checkpointing"
        if not isinstance(model, LanguageModel) or not model.straight or model.exits is not None:
            raise ValueError(f"memo knows blocks of causal attention, one after the other, not {name}: {way_out}")
        for index, block in enumerate(model.blocks):
            mixer: Any = type(block.mixer)
            known = issubclass(mixer, CausalAttention) and mixer.forward is CausalAttention.forward
            if not known or mixer.mix not in (CausalAttention.mix, SlidingWindowAttention.mix):
                raise ValueError(f"memo: blocks.{index} of {name} mixes tokens by {mixer.__name__}: {way_out}")
            for part in block.modules():
                if isinstance(part, Reports) or (isinstance(part, nn.Dropout) and part.p > 0):
                    raise ValueError(
                        f"memo: {type(part).__name__} in blocks.{index} is not of single tokens: {way_out}"
                    )

    def forward(self, model: nn.Module) -> AbstractContextManager[Any]:
        """All blocks but the last go through ``_run``."""
        blocks = list(model.blocks)  # type: ignore[arg-type]
        device = next(model.parameters()).device
        store = Spool(self.folder) if device.type == "cpu" else Host()
        return recomputed_by(partial(self._run, store, blocks[max(0, len(blocks) - self.keep) :]))

    def _run(self, store: Spool | Host, kept: list[nn.Module], block: Any, x: Tensor, *args: Any) -> Tensor:
        if any(block is one for one in kept):
            return block(x, *args)
        passing = _Pass(block, x, args[-1], math.ceil(self.alpha * x.shape[1]), store)
        with passing.as_always(), saved_tensors_hooks(passing.pack, passing.unpack):
            return block(x, _Noting(passing), args[-1])


def swap_share(
    *, seconds: float, bandwidth: float, whole: float, other: float, host: float = math.inf, blocks: int = 3
) -> float:
    """The largest alpha whose transfers hide behind computation and fit into the host's memory, at least 0.

    .. math:: S + \\alpha S_o \\le B t, \\quad (n - 2)(S + \\alpha S_o) \\le M

    Args:
        seconds: t of a block's forward pass.
        bandwidth: B to the host, in bytes a second.
        whole: S, bytes of a block's input and output of attention.
        other: S_o, bytes of everything else that it keeps.
        host: M, bytes.
        blocks: n, the last two of which stay.
    """
    rooms = [bandwidth * seconds, host / (blocks - 2) if blocks > 2 else math.inf]
    return min(1.0, max(0.0, (min(rooms) - whole) / other))


class _Slot(NamedTuple):
    """What is kept of a saved tensor: all of it, or the first tokens of a dimension."""

    held: Any
    dim: int | None = None
    number: int | str = 0  # among the tensors that are computed again
    by_rows: bool = False  # the dimension was one with those beside it: batch, tokens and heads


class _Pass:
    """One pass of a block: what it saves, and how that is made whole again.

    Attention is called through a state (``_Noting``, then ``_Recalled``), which knows its queries, keys and values.
    """

    def __init__(self, block: Any, x: Tensor, seq_idx: Tensor | None, first: int, store: Any):
        self.block, self.seq_idx, self.store, self.first = block, seq_idx, store, first
        self.batch, self.length = x.shape[:2]
        self.apart = {_place(tensor) for tensor in (*block.parameters(), *block.buffers())}
        self.autocast, self.learns = autocast_mode(x.device), x.requires_grad
        self.place, self.x = _place(x), store.put(x.detach())
        self.attending: dict[tuple[Any, ...], str] | None = None  # within attention: which tensors are q, k, v
        self.output: Any = None
        self.slots: dict[tuple[Any, ...], tuple[StorageWeakRef, _Slot]] = {}
        self.count = 0
        self.again: dict[int | str, Tensor] = {}
        chosen = first < self.length and is_automatic()
        self.fixed = {name: available_implementations(name, x.device)[0] for name in BY_SIZE if chosen}
        self.one = {number: tensor.shape for number, tensor in self._saved_of(x[:, :1], 0).items()}  # of one token

    def as_always(self) -> AbstractContextManager[Any]:
        """Within it operations are computed in one way, few tokens or many, so that they save the same."""
        return implementation(**self.fixed) if self.fixed else nullcontext()

    def pack(self, tensor: Tensor) -> Tensor | _Slot:
        """Move a saved tensor, or the first of its tokens."""
        place = _place(tensor)
        if place in self.apart or not tensor.is_floating_point():
            return tensor
        if place == self.place:
            return _Slot(self.store.put(tensor))
        if self.attending is not None:
            name = self.attending.get(_key(tensor))
            return _Slot(self.store.put(tensor)) if name is None else self._part(tensor, 2, name)
        number, self.count = self.count, self.count + 1
        one = self.one.get(number, ())
        if len(one) != tensor.dim():
            raise RuntimeError(f"memo: {type(self.block).__name__} computes a single token in another way than many")
        dim = next(
            (dim for dim, (size, least) in enumerate(zip(tensor.shape, one, strict=True)) if size != least), None
        )
        if dim is None or one[dim] == 1:
            return self._part(tensor, dim, number)
        return self._part(tensor.unflatten(dim, (self.batch, self.length, -1)), dim + 1, number, by_rows=True)

    def _part(self, tensor: Tensor, dim: int | None, number: int | str, by_rows: bool = False) -> _Slot:
        if dim is None or self.first == self.length:
            return _Slot(self.store.put(tensor.flatten(dim - 1, dim + 1) if dim is not None and by_rows else tensor))
        key = (*_key(tensor), tensor._version)
        storage, slot = self.slots.get(key, (None, None))
        if slot is None or storage is None or storage.expired():  # else it is saved once more
            held = self.store.put(tensor.narrow(dim, 0, self.first).clone()) if self.first else None
            slot = _Slot(held, dim, number, by_rows)
            self.slots[key] = StorageWeakRef(tensor.untyped_storage()), slot
        return slot

    def unpack(self, packed: Tensor | _Slot) -> Tensor:
        """The tensor that was packed."""
        if isinstance(packed, Tensor):
            return packed
        if packed.dim is None:
            return packed.held.get()
        if not self.again:
            self._compute_again()
        rest = self.again[packed.number]
        if packed.by_rows:
            rest = rest.unflatten(packed.dim - 1, (self.batch, self.length - self.first, -1))
        whole = rest if packed.held is None else torch.cat([packed.held.get(), rest], packed.dim)
        if whole.shape[packed.dim] != self.length:
            raise RuntimeError(f"memo: {type(self.block).__name__} computed the rest of its tokens in another way")
        return whole.flatten(packed.dim - 1, packed.dim + 1) if packed.by_rows else whole

    def _compute_again(self) -> None:
        """What the block saves of the other tokens, from its input and the output of attention."""
        output = self.output.get()[:, :, self.first :]
        self.again = self._saved_of(self.x.get()[:, self.first :], self.first, output)
        if len(self.again) != self.count + 3:
            raise RuntimeError(f"memo: {type(self.block).__name__} computes some tokens in another way than all")

    def _saved_of(self, x: Tensor, first: int, output: Tensor | None = None) -> dict[int | str, Tensor]:
        """What it saves of tokens x (B, n, dim) from ``first`` on, by number, and their q, k and v; attention gives
        ``output`` (B, H, n, d), zeros for None."""
        x = x.detach().contiguous().requires_grad_(self.learns)  # rows of it are views, as of the whole
        apart, found = {*self.apart, _place(x)}, []

        def pack(tensor: Tensor) -> None:
            if _place(tensor) not in apart and tensor.is_floating_point():
                found.append(tensor.detach())  # not its graph, which has this function and so would have itself

        ids = None if self.seq_idx is None else self.seq_idx[:, first : first + x.shape[1]]
        state = _Recalled(first, x.device, output)
        with torch.enable_grad(), self.autocast(), self.as_always(), saved_tensors_hooks(pack, _unread):
            self.block(x, state, ids)
        return {**dict(enumerate(found)), **state.given}


class _Noting:
    """Attends as without a state, and notes what of and what came out."""

    def __init__(self, passing: _Pass):
        self.passing = passing

    def place(self, length: int, seq_idx: Tensor | None = None) -> Place:
        """Where all the tokens stand."""
        return Place(torch.arange(length, device=self.passing.block.mixer.compute.device), seq_idx, seq_idx is not None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, place: Place, attention: Any) -> Tensor:
        """q, k, v (B, H, T, d) -> (B, H, T, d)."""
        self.passing.attending = {_key(tensor): name for name, tensor in (("q", q), ("k", k), ("v", v))}
        try:
            y = attention.mix(q, k, v, place, None)
        finally:
            self.passing.attending = None
        self.passing.output = self.passing.store.put(y.detach())
        return y


class _Recalled:
    """Attends by recalling what came out, for some tokens."""

    def __init__(self, first: int, device: torch.device, output: Tensor | None):
        self.first, self.device, self.output = first, device, output
        self.given: dict[int | str, Tensor] = {}

    def place(self, length: int, seq_idx: Tensor | None = None) -> Place:
        """Where the tokens stand."""
        position = torch.arange(self.first, self.first + length, device=self.device)
        return Place(position, seq_idx, seq_idx is not None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, place: Place, attention: Any) -> Tensor:
        """q, k, v (B, H, n, d) -> (B, H, n, d)."""
        self.given.update(q=q.detach(), k=k.detach(), v=v.detach())
        output = q.new_zeros(*q.shape[:3], v.shape[3]) if self.output is None else self.output
        return output.detach().requires_grad_(q.requires_grad)


def _unread(_: None) -> Tensor:
    raise AssertionError("nothing goes backwards through what was computed again")


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _key(tensor: Tensor) -> tuple[Any, ...]:
    return _place(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg()
