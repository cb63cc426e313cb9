"""A language model whose residual stream has a part of the tokens in each process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from zoo.language.base import LanguageModel, only_scored
from zoo.layers.linear import capped, head_loss
from zoo.parallel.collectives import Group, joined, own_part, summed

PACKED = ("context", "token_ring")  # plans that take seq_idx


@dataclasses.dataclass(frozen=True)
class Parts:
    """Which tokens a process has.

    Attributes:
        group: of the processes.
        pieces: into which a sequence is cut.
        order: the pieces of process 0, then those of process 1, and so on.
    """

    group: Group
    pieces: int
    order: tuple[int, ...]

    def __deepcopy__(self, memo: Any) -> Parts:
        return self  # a copy of a model is among the same processes

    def own(self, x: Tensor) -> Tensor:
        """The process's tokens of x (B, T, ...), which all processes have."""
        return own_part(self.arranged(x, self.order), self.group, 1)

    def whole(self, x: Tensor) -> Tensor:
        """All tokens, of the parts x (B, T / P, ...)."""
        back = sorted(range(self.pieces), key=self.order.__getitem__)
        return self.arranged(joined(x, self.group, 1), back)

    def arranged(self, x: Tensor, order: Any) -> Tensor:
        """The pieces of x (B, T, ...) in another order."""
        return x.unflatten(1, (self.pieces, -1))[:, list(order)].flatten(1, 2)

    def check(self, length: int) -> None:
        """Raise a ValueError unless there are pieces of the same length."""
        if length % self.pieces:
            raise ValueError(
                f"{self.group.size()} processes share sequences of a length that {self.pieces} divides, got {length}: "
                "cut or fill them"
            )


def in_parts(mesh: DeviceMesh) -> Parts:
    """One piece after the other."""
    return Parts(mesh.get_group(), mesh.size(), tuple(range(mesh.size())))


def in_turns(mesh: DeviceMesh) -> Parts:
    """Process r has the pieces r and 2 P - 1 - r of 2 P."""
    size = mesh.size()
    return Parts(mesh.get_group(), 2 * size, tuple(p for r in range(size) for p in (r, 2 * size - 1 - r)))


def share_tokens(model: LanguageModel, parts: Parts) -> None:
    """From now on the residual stream of the model has the process's tokens; it is called as before."""
    model.__class__ = _sharing(type(model))
    model.parts = parts  # type: ignore[assignment]


@lru_cache(None)
def _sharing(kind: type[LanguageModel]) -> type[LanguageModel]:
    return type(kind.__name__, (kind,), {"forward": _forward, "enter": _enter(kind.enter)})


def _enter(enter: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def own(self: Any, tokens: Tensor) -> Tensor:
        """The residual stream (B, T / P, dim) of the process's part of tokens (B, T)."""
        return self.parts.own(enter(self, tokens))  # all are embedded, as positions may count

    return own


def _forward(
    self: Any,
    tokens: Tensor,
    state: Any = None,
    *,
    labels: Tensor | None = None,
    logits_to_keep: int = 0,
    seq_idx: Tensor | None = None,
    num_scored: int | Tensor | None = None,
) -> Tensor:
    """As ``LanguageModel``'s; all processes are given all tokens, and find all logits, or the loss of all tokens."""
    parts: Parts = self.parts
    if state is not None:
        raise ValueError(
            f"plan={self.parallel.plan!r} shares out the tokens of whole sequences: it takes no state; generate with "
            "plan='tensor'"
        )
    if seq_idx is not None and self.parallel.plan not in PACKED:
        raise ValueError(
            f"plan={self.parallel.plan!r} takes no seq_idx: packed sequences are shared out by plan='context' and "
            "'token_ring', and by 'tensor'"
        )
    self._check(tokens, None, labels, seq_idx, logits_to_keep, num_scored)
    parts.check(tokens.shape[1])
    order = None
    if seq_idx is not None:  # padding to the beginning of each row
        order = (seq_idx >= 0).to(torch.uint8).argsort(dim=1, stable=True)
        tokens, seq_idx = tokens.gather(1, order), seq_idx.gather(1, order)
        labels = None if labels is None else only_scored(labels.gather(1, order), seq_idx)
    x = self.forward_norm(self.forward_blocks(self.enter(tokens), None, seq_idx))
    if labels is None:
        logits = parts.whole(capped(self.head(x), self.softcap))
        if order is not None:
            logits = logits.take_along_dim(order.argsort(dim=1)[..., None], 1)
        return logits[:, -logits_to_keep:]
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    own = parts.own(shifted)
    mean = head_loss(self.head, x.flatten(0, 1), own.flatten(), softcap=self.softcap)
    total = summed(mean * (own != -100).sum(), parts.group)
    return total / ((shifted != -100).sum().clamp(min=1) if num_scored is None else num_scored)
