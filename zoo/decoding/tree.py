"""Trees of drafted tokens, of which the model reads all branches in one pass."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.decoding.accept import accept_one_of
from zoo.decoding.draft import Draft
from zoo.decoding.drafting import Rounds, wide
from zoo.decoding.reader import Reader
from zoo.generate.decode import Saying, Step
from zoo.generate.logits import Shaper
from zoo.generate.options import Options
from zoo.language.base import LanguageModel
from zoo.layers import ModelState
from zoo.layers.attention.tree import branching
from zoo.layers.depth.active_attention import ActiveAttention
from zoo.layers.states import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeDraft(Draft):
    """A draft that may go several ways.

    Each level of the tree holds the likeliest continuations of all nodes of the level before: the best by the draft's
    probability of the whole branch at temperature 0, and otherwise a sample of them without replacement (stochastic
    beam search, Kool et al., arXiv 1903.06059), which the model's law is kept with.
    """

    widths: tuple[int, ...] = ()
    """Nodes of each level of a tree, in place of ``length``, such as (4, 8, 8); () for a chain."""
    or_chain: bool = False
    """Draft a chain as long as the tree is deep where the model, or the draft, cannot read a tree."""

    def __post_init__(self):
        super().__post_init__()
        if not all(isinstance(width, int) and width > 0 for width in self.widths):
            raise ValueError(f"widths, the nodes of a tree's levels, must be integers above 0, got {self.widths}")

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError for a tree that cannot be read beside what is remembered, unless a chain will do."""
        if self.branches and not self.or_chain:
            for reader in self.readers(model):
                require_branching(reader, options if reader is model else None)

    def readers(self, model: LanguageModel) -> tuple[LanguageModel, ...]:
        """The models that read the tree."""
        return (model,)

    @property
    def branches(self) -> bool:
        """Whether it is more than a chain."""
        return max(self.widths, default=1) > 1

    def levels(self, model: LanguageModel, options: Options) -> tuple[int, ...]:
        """Nodes of each level, for a model: those asked for, or as many of a chain."""
        if not self.branches:
            return (1,) * (len(self.widths) or self.length)
        if self.or_chain:
            try:
                for reader in self.readers(model):
                    require_branching(reader, options if reader is model else None)
            except ValueError:
                return (1,) * len(self.widths)
        return self.widths


def require_branching(model: LanguageModel, options: Options | None) -> None:
    """Raise a ValueError for a model that cannot read a tree.

    Raises:
        ValueError: for one that keeps more than plain caches of keys and recurrent states, or a cache policy.
    """
    if options is not None and options.cache is not None:
        raise ValueError("a tree of drafts is read beside plain caches: leave out cache=, or draft a chain")
    if not model.straight:
        raise ValueError(f"the blocks of {type(model).__name__} are not run one after the other: draft a chain")
    if any(isinstance(mixer, ActiveAttention) for mixer in model.mixers):
        raise ValueError(f"some tokens pass by the attention of {type(model).__name__}: draft a chain")
    branching(model.init_state(1))


class Guesses(NamedTuple):
    """A tree of drafted tokens, the root of which has been said.

    Attributes:
        tokens: (B, 1 + N).
        parent: (B, 1 + N), numbers of nodes; -1 of the root, and of what stands in for a node that there is not.
        laws: (B, M, vocab_size), of the M nodes before the last level, which their children were drawn from one after
            another; None where those are the draft's likeliest.
    """

    tokens: Tensor
    parent: Tensor
    laws: Tensor | None

    def children(self, node: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers (B,) of the children of a node (B,), the first of all rows, the second, ..., -1 where there is none;
        and which there are, (B,)."""
        mine = (self.parent == node[:, None]) & (node >= 0)[:, None]
        order = mine.cumsum(1)
        for number in range(1, int(order[:, -1].max()) + 1):
            this = mine & (order == number)
            there = this.any(1)
            yield this.to(torch.uint8).argmax(1).masked_fill(~there, -1), there


TreeType = TypeVar("TreeType", bound=TreeDraft)


class TreeDrafting(Rounds[TreeType], Generic[TreeType]):
    """Drafts of trees, or of chains that are read as such; a subclass says who drafts.

    Args:
        draft, model, options: see ``Rounds``.
    """

    verifier: TreeReader | ChainReader

    def __init__(self, draft: TreeType, model: LanguageModel, options: Options):
        super().__init__(draft, model, options)
        self.widths = draft.levels(model, options)

    @abstractmethod
    def first(self, token: Tensor) -> Tensor:
        """The draft reads the newest token (B, 1) that was said: its logits (B, 1, vocab_size)."""

    @abstractmethod
    def guess(self, tokens: Tensor, parent: Tensor) -> Tensor:
        """The draft reads nodes (B, m) with parents (B, m), numbers of nodes without the root, which is -1: its logits
        (B, m, vocab_size)."""

    @abstractmethod
    def keep(self, tokens: Tensor, path: Tensor) -> None:
        """The draft keeps the said tokens (B, n) after the one that ``first`` read, which are the nodes (B, n)."""

    def remembering(self, state: ModelState) -> TreeReader | ChainReader:
        """Who reads trees, or chains, from a state of the model."""
        return (TreeReader if max(self.widths) > 1 else ChainReader)(self.model, state)

    def round(self, token: Tensor, most: int, saying: Saying) -> tuple[list[Step], int]:
        """See ``Rounds``."""
        guesses = self.grown(token, self.widths[:most], saying.shaper)
        logits = self.verifier(guesses.tokens, guesses.parent)
        said, path = self._walked(logits, guesses, saying)
        self.verifier.keep(path)
        self.keep(guesses.tokens.gather(1, path)[:, 1:], path[:, 1:] - 1)
        return said, guesses.tokens.shape[1] - 1

    def grown(self, token: Tensor, widths: tuple[int, ...], shaper: Shaper) -> Guesses:
        """The draft's tree after ``token`` (B,), level by level."""
        batch, sampled = len(token), self.options.temperature > 0
        tokens, parents, laws = [token[:, None]], [torch.full_like(token[:, None], -1)], []
        shaper, before = shaper.copy(), 0  # a row a node of the newest level; and nodes before that
        chance = perturbed = wide_zeros(token)
        rows = torch.arange(batch, device=token.device)[:, None]
        for level, width in enumerate(widths):
            count = tokens[-1].shape[1]
            logits = wide(self.guess(tokens[-1], parents[-1] - 1) if level else self.first(tokens[0]))
            law = shaper.probabilities(logits.flatten(0, 1)) if sampled else drawn(shaper, logits.flatten(0, 1))
            law = law.unflatten(0, (batch, count))  # (B, count, V)
            likely = torch.where(perturbed > -torch.inf, law.amax(-1), 0)
            if bool((likely.amax(1) < self.draft.confidence).all()):
                break
            chance = chance[..., None] + law.double().log()  # of whole branches
            perturbed = noised(chance, perturbed, self.options.generator) if sampled else chance
            size = chance.shape[-1]
            perturbed, index = perturbed.flatten(1).topk(min(width, count * size))
            chance = chance.flatten(1).gather(1, index)
            parent = index // size
            laws.append(law)
            tokens.append(index % size)
            parents.append((before + parent).masked_fill(perturbed == -torch.inf, -1))
            shaper.reorder((rows * count + parent).flatten())
            shaper.note(tokens[-1].flatten())
            before += count
        return Guesses(torch.cat(tokens, 1), torch.cat(parents, 1), torch.cat(laws, 1) if sampled and laws else None)

    def _walked(self, logits: Tensor, guesses: Guesses, saying: Saying) -> tuple[list[Step], Tensor]:
        """What is said of logits (B, 1 + N, vocab_size), and the nodes (B, n) that it was said after."""
        rows = torch.arange(len(logits), device=logits.device)
        said, path = [], [torch.zeros_like(rows)]
        while True:
            row, before = wide(logits[rows, path[-1]]), saying.ended
            law = saying.shaper.probabilities(row)
            children = list(guesses.children(path[-1]))
            token, chosen = accept_one_of(
                law, list(candidates(guesses, path[-1], children, law)), self.options.generator
            )
            said.append(saying.step(token, row))
            self.draft.counts.accepted += int(((chosen >= 0) & ~before).sum())
            if saying.over or not children or not bool(((chosen >= 0) | before).all()):
                return said, torch.stack(path, 1)
            node = path[-1]
            for number, (child, _) in enumerate(children):
                node = torch.where(chosen == number, child, node)
            path.append(node)


def candidates(
    guesses: Guesses, node: Tensor, children: list[tuple[Tensor, Tensor]], like: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (B,) of the children of a node, and the laws (B, vocab_size) that they were drawn from: without those
    before; or of the token alone. Of no probability where there is no child."""
    rows = torch.arange(len(node), device=node.device)
    law = None if guesses.laws is None else guesses.laws[rows, node.clamp(max=guesses.laws.shape[1] - 1)]
    for child, there in children:
        token = guesses.tokens[rows, child.clamp(min=0)]
        mine = F.one_hot(token, like.shape[1]).to(like.dtype) if law is None else law / law.sum(-1, keepdim=True)
        yield token, torch.where(there[:, None], mine, 0)
        if law is not None:
            law = law.scatter(1, token[:, None], 0)


def noised(chance: Tensor, above: Tensor, generator: torch.Generator | None) -> Tensor:
    """Log-probabilities (B, count, V) of branches with Gumbel noise of which the largest of each node is ``above`` it,
    (B, count): those of a sample without replacement are the largest of all (Kool et al., appendix B.3)."""
    uniform = torch.rand(chance.shape, dtype=chance.dtype, device=chance.device, generator=generator)
    noisy = chance - (-uniform.clamp(min=torch.finfo(chance.dtype).tiny).log()).log()
    largest, above = noisy.amax(-1, keepdim=True), above[..., None]
    beyond = above - noisy + torch.log1p(-(noisy - largest).exp())
    found = above - beyond.clamp(min=0) - torch.log1p((-beyond.abs()).exp())
    return found.masked_fill((chance == -torch.inf) | (above == -torch.inf), -torch.inf)


def drawn(shaper: Shaper, logits: Tensor) -> Tensor:
    """What the draft thinks likely (B, vocab_size), by which a tree grows at temperature 0."""
    return shaper.penalised(logits).softmax(-1)


def wide_zeros(token: Tensor) -> Tensor:
    """(B, 1), of the root."""
    return torch.zeros(len(token), 1, dtype=torch.float64, device=token.device)


class TreeReader:
    """Reads trees of tokens after a state, of which one branch may stay.

    Args:
        model: reads.
        state: past the prompts; plain caches, or recurrent.
    """

    def __init__(self, model: LanguageModel, state: ModelState):
        self.model, self.state = model, state
        self.forget()

    def forget(self) -> None:
        """The tree is empty again."""
        self.branches, self.tree = branching(self.state)

    @property
    def count(self) -> int:
        """Nodes."""
        return self.tree.depth.shape[1]

    def __call__(self, tokens: Tensor, parent: Tensor) -> Tensor:
        """Logits (B, m, vocab_size) of further nodes (B, m), with parents (B, m), -1 for the text."""
        self.tree.grow(parent)
        return self.model(tokens, self.branches)

    def keep(self, path: Tensor) -> None:
        """The nodes (B, n) are final, one after the other, the rest forgotten."""
        if path.shape[1]:
            for one in self.branches:
                for part in parts(one):
                    part.accept(path)  # type: ignore[attr-defined]
        self.forget()


class ChainReader:
    """The same of a single branch, from any state."""

    def __init__(self, model: LanguageModel, state: ModelState):
        self.reader = Reader(model, state)

    def __call__(self, tokens: Tensor, parent: Tensor) -> Tensor:
        """Logits (B, m, vocab_size) of tokens (B, m)."""
        return self.reader(tokens)

    def keep(self, path: Tensor) -> None:
        """As many tokens as ``path`` (B, n) has are final, the rest forgotten."""
        self.reader.keep(path.shape[1])
