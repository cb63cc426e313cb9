"""ConPET: a stream of classification tasks learnt one after the other by adapters of a frozen model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import zoo
from zoo.adapt import Adapter, own_names
from zoo.language import LanguageModel
from zoo.layers.options import require_at_least

HIDDEN = -100.0  # the logit of a class whose expert was not asked


class Features(nn.Module):
    """What a model makes of an input before it is read out, (B, D): of a language model at the last token that is not
    ``pad``, behind the others."""

    def __init__(self, model: Any, pad: int | None = None):
        super().__init__()
        self.model, self.pad = model, pad

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T) or images -> (B, D)."""
        model: Any = self.model
        if isinstance(model, LanguageModel):
            y = model.forward_norm(model.forward_residual(x))
            if self.pad is None:
                return y[:, -1]
            place = torch.arange(x.shape[1], device=x.device)
            last = (place * (x != self.pad)).amax(1)
            return y[torch.arange(len(y), device=y.device), last]
        return model.forward_head(model.forward_features(x), pre_logits=True)


class Expert(nn.Module):
    """Adapters and a linear head of their own, over a frozen model that many share.

    Args:
        features: of the adapted model.
        classes: rows of the head.
        dim: D.
    """

    def __init__(self, features: Features, classes: int, dim: int):
        super().__init__()
        names = set(own_names(features.model))
        held = {f"model.{name}": p for name, p in features.model.named_parameters() if name in names}
        self.names = list(held)
        self.tensors = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in held.values())
        like = next(features.parameters())
        self.head = nn.Linear(dim, classes, device=like.device, dtype=like.dtype)

    def read(self, features: Features, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(functional_call(features, dict(zip(self.names, self.tensors, strict=True)), (x,)))

    def grow(self, classes: int) -> None:
        """So many rows more; those that there are stay."""
        old, like = self.head, self.head.weight
        self.head = nn.Linear(old.in_features, old.out_features + classes, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            self.head.weight[: old.out_features], self.head.bias[: old.out_features] = old.weight, old.bias


class ContinualClassifier(nn.Module, ABC):
    """Classes come a task at a time, numbered as they come; ``learn`` takes a task's data, ``forward`` asks for any
    class so far.

    Each task costs ``steps`` optimiser steps whatever came before: a batch is half of the task's items and half of
    earlier ones (the whole of them for the first task), each of which is drawn as often as there is room. Of a task
    ``keep`` items are remembered.

    Args:
        model: of ``create_model``; it is copied, adapted and frozen.
        adapter: of each expert.
        steps, batch_size, lr: of a task's training, by AdamW without weight decay.
        keep: items of a task.
        seed: of what is drawn.
        pad: id that fills shorter texts behind their ends; None: all are of one length, or filled before.

    Paper: Song et al., "ConPET: Continual Parameter-Efficient Tuning for Large Language Models", arXiv 2309.14763.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        *,
        steps: int = 50,
        batch_size: int = 16,
        lr: float = 5e-3,
        keep: int = 64,
        seed: int = 0,
        pad: int | None = None,
    ):
        super().__init__()
        require_at_least(1, steps=steps, keep=keep)
        require_at_least(2, batch_size=batch_size)
        self.features = Features(zoo.adapt(copy.deepcopy(model), adapter).requires_grad_(False).eval(), pad)
        self.steps, self.batch_size, self.lr, self.keep = steps, batch_size, lr, keep
        self.draws = torch.Generator().manual_seed(seed)
        self.remembered: list[tuple[Tensor, Tensor]] = []
        self.sizes: list[int] = []  # classes of each task

    @abstractmethod
    def begin(self, classes: int) -> None:
        """Room for a task of so many classes."""

    @abstractmethod
    def losses(self, x: Tensor, y: Tensor, task: Tensor) -> Tensor:
        """What is minimised, of items (B, ...), their classes (B,) and the numbers (B,) of their tasks."""

    @abstractmethod
    def learning(self) -> Iterator[nn.Parameter]:
        """The parameters that learn the newest task."""

    def learn(self, x: Tensor, y: Tensor) -> None:
        """A task: items (N, ...) and their classes (N,), which begin where those of the tasks before ended.

        Raises:
            ValueError: for other classes.
        """
        first, last = sum(self.sizes), int(y.max())
        if int(y.min()) < first:
            raise ValueError(f"the classes of this task begin at {first}, got {int(y.min())}")
        self.sizes.append(last + 1 - first)
        self.begin(self.sizes[-1])
        optimizer = torch.optim.AdamW(self.learning(), lr=self.lr, weight_decay=0.0)
        for _ in range(self.steps):
            items, classes = self._batch(x, y)
            optimizer.zero_grad()
            self.losses(items, classes, self.task_of(classes)).backward()
            optimizer.step()
        chosen = torch.randperm(len(x), generator=self.draws)[: self.keep]
        self.remembered.append((x[chosen], y[chosen]))

    def task_of(self, classes: Tensor) -> Tensor:
        """The number of the task that each class is of."""
        return torch.bucketize(classes, torch.tensor(self.sizes, device=classes.device).cumsum(0), right=True)

    def _batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        new = self.batch_size // 2 if self.remembered else self.batch_size
        parts = [self._drawn(x, y, new)]
        if self.remembered:
            old = [torch.cat(part) for part in zip(*self.remembered, strict=True)]
            parts.append(self._drawn(old[0], old[1], self.batch_size - new))
        items, classes = (torch.cat(part) for part in zip(*parts, strict=True))
        return items, classes

    def _drawn(self, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(x), (count,), generator=self.draws)
        return x[index], y[index]

    def _expert(self, classes: int) -> Expert:
        return Expert(self.features, classes, self.dim)

    @property
    def dim(self) -> int:
        """D."""
        known: Any = self.features.model
        return known.config.dim if isinstance(known, LanguageModel) else known.num_features


class StaticConPET(ContinualClassifier):
    """One expert for all tasks, whose head grows."""

    def __init__(self, model: nn.Module, adapter: Adapter, **options: Any):
        super().__init__(model, adapter, **options)
        self.expert: Expert | None = None

    def begin(self, classes: int) -> None:
        """More rows of the head."""
        if self.expert is None:
            self.expert = self._expert(classes)
        else:
            self.expert.grow(classes)

    def losses(self, x: Tensor, y: Tensor, task: Tensor) -> Tensor:
        """Cross-entropy over all classes so far."""
        return F.cross_entropy(self(x), y)

    def learning(self) -> Iterator[nn.Parameter]:
        """All of the expert."""
        assert self.expert is not None
        return self.expert.parameters()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> logits (B, classes so far)."""
        assert self.expert is not None, "learn a task first"
        return self.expert.read(self.features, x)


class DynamicConPET(ContinualClassifier):
    """An expert a task, and a selector, an expert as well, that says which of them are asked.

    The ``top_k`` likeliest experts answer, and the logits of the other classes are -100. In training the task's own
    expert is always among them. What a task has learnt stays as it is, to the bit, when others follow; the selector
    alone goes on, with earlier items.

    Args:
        top_k: experts asked of an item.
        options: see ``ContinualClassifier``.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, *, top_k: int = 1, **options: Any):
        super().__init__(model, adapter, **options)
        require_at_least(1, top_k=top_k)
        self.top_k, self.experts = top_k, nn.ModuleList()
        self.selector: Expert | None = None

    def begin(self, classes: int) -> None:
        """A new expert, and a row more of the selector."""
        for expert in self.experts:
            expert.requires_grad_(False)
        self.experts.append(self._expert(classes))
        if self.selector is None:
            self.selector = self._expert(1)
        else:
            self.selector.grow(1)

    def losses(self, x: Tensor, y: Tensor, task: Tensor) -> Tensor:
        """Of the selector, and of the newest expert on its own items, among those that are asked of them."""
        scores = self.select(x)
        loss, own = F.cross_entropy(scores, task), task == len(self.experts) - 1
        return loss + F.cross_entropy(self.answer(x[own], self.asked(scores[own], task[own])), y[own])

    def learning(self) -> Iterator[nn.Parameter]:
        """The newest expert and the selector."""
        assert self.selector is not None
        yield from self.selector.parameters()
        yield from self.experts[-1].parameters()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> logits (B, classes so far)."""
        return self.answer(x, self.asked(self.select(x)))

    def select(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, tasks) of the tasks."""
        assert self.selector is not None, "learn a task first"
        return self.selector.read(self.features, x).log_softmax(-1)

    def asked(self, scores: Tensor, own: Tensor | None = None) -> Tensor:
        """Which experts are asked, (B, tasks) booleans; the task's own is the first of them where it is given."""
        if own is not None:
            scores = scores.scatter(1, own[:, None], torch.inf)
        chosen = scores.topk(min(self.top_k, scores.shape[1])).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)

    def answer(self, x: Tensor, asked: Tensor) -> Tensor:
        """The logits of the experts that are asked, each of all its items at once."""
        parts = []
        for index, expert in enumerate(self.experts):
            rows = asked[:, index].nonzero()[:, 0]
            made = x.new_full((len(x), expert.head.out_features), HIDDEN, dtype=expert.head.weight.dtype)  # type: ignore[union-attr]
            parts.append(made.index_copy(0, rows, expert.read(self.features, x[rows])) if len(rows) else made)  # type: ignore[operator]
        return torch.cat(parts, 1)
