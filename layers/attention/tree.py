"""Attention of a tree of drafted tokens: each sees what came before the tree, its ancestors and itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoo.layers.attention.keys import Keys, Place, Placed, masked
from zoo.layers.attention.parts import attend_part, constant_parts, joined
from zoo.layers.attention.sliding_window import SlidingWindowState
from zoo.layers.attention.state import KeyValueState
from zoo.layers.branches import BranchedState, Tree
from zoo.layers.cache.buffer import gathered
from zoo.layers.cache.call import Attention
from zoo.layers.state import State
from zoo.layers.states import JointState, ModelState


@dataclass
class TreeState(State):
    """Keys and values (B, H, n, d) of the tree's nodes beside a cache, to which nothing is added before ``accept``.

    The nodes attend to the cache and to the tree apart, and the two are put together by their log-sum-exps: the cache
    is read in place and needs no mask of the tree's.

    Paper: Yang et al., "LongSpec", arXiv 2502.17421, section 3.3.
    """

    key: Tensor
    value: Tensor
    cache: KeyValueState = field(kw_only=True)
    tree: Tree = field(kw_only=True)

    @classmethod
    def beside(cls, cache: KeyValueState, tree: Tree) -> TreeState:
        """Without nodes."""
        return cls(cache.key[:, :, :0], cache.value[:, :, :0], cache=cache, tree=tree)

    def place(self, length: int, seq_idx: Tensor | None = None) -> Place:
        """Where the newest nodes stand, as far behind the cache's tokens as they are deep."""
        next = self.cache.place(1)
        position = next.position + self.tree.depth[:, -length:]
        return Place(position, None if next.ids is None else next.ids.expand(-1, length))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, place: Placed, attention: Attention, *, noted: bool = False
    ) -> Tensor:
        """Remember the newest nodes, and attend from them; see ``CacheState.attend``."""
        self.key, self.value = torch.cat([self.key, k], 2), torch.cat([self.value, v], 2)
        self.seen += q.shape[2]
        window, length = getattr(attention, "window", None), q.shape[2]
        near = self.tree.seen[:, -length:]
        if window is not None:
            depth = self.tree.depth
            near = near & (depth[:, -length:, None] - depth[:, None] < window)
        held = self.cache.keys()
        if held.position.dim() == 1:  # steps, of which all rows have seen as many
            place = Place(self.cache.seen + self.tree.depth[:, -length:], place.ids)
        parts = [
            attend_part(attention, masked(attention.logits(q, key, value), mask[:, None]), value)
            for key, value, mask in (
                (held.key, held.value, visible(held, place, window)),
                (self.key, self.value, near),
            )
        ]
        return joined([*parts, *constant_parts(q, parts[0], attention)])

    def accept(self, path: Tensor) -> None:
        """The cache remembers the nodes (B, n), one after the other."""
        place = self.cache.place(path.shape[1])
        key, value = (gathered(tensor, path, 2) for tensor in (self.key, self.value))
        self.cache.remember(Keys(key, value, place.position, place.ids), place)


def visible(held: Keys, place: Placed, window: int | None = None) -> Tensor:
    """Which of the keys held (S) each of the tokens that follow them sees: (B, T, S)."""
    key, query = held.position[..., None, :], place.position[..., :, None]
    mask = key <= query
    if window is not None:
        mask = mask & (query - key < window)
    if held.ids is not None and place.ids is not None:
        mask = mask & (held.ids[:, None] == place.ids[:, :, None])
    return mask.expand(len(held.key), -1, -1)


def branching(state: ModelState) -> tuple[ModelState, Tree]:
    """A state for the nodes of a tree that follows what a model has read, and that tree.

    Raises:
        ValueError: where some of the state is neither a plain cache of keys nor recurrent.
    """
    like = next(tensor for _, tensor in state[0].tensors())
    tree = Tree(len(like), like.device)
    return state.of(_beside(one, tree) for one in state), tree


def _beside(state: State, tree: Tree) -> State:
    if type(state) is JointState:
        return state.of(_beside(part, tree) for part in state.parts)
    if type(state) in (KeyValueState, SlidingWindowState):
        return TreeState.beside(state, tree)  # type: ignore[arg-type]
    if type(state).crop is not State.crop or isinstance(state, KeyValueState):
        raise ValueError(
            f"a tree of drafts is read beside plain caches of keys, which all its branches share, and recurrent "
            f"states; this model keeps a {type(state).__name__}: draft a chain"
        )
    return BranchedState.beside(state, tree)
