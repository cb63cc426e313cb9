"""ConPET: a stream of classification tasks learnt one after the other by adapters of a frozen model."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.adapt import Adapter, adapters_of
from zoo.checkpoints import read_config, read_state_dict, write_folder
from zoo.layers.options import require_at_least
from zoo.train.adapt.experts import Expert, Features

HIDDEN = -100.0  # the logit of a class whose expert was not asked


class ContinualClassifier(nn.Module, ABC):
    """Classes come a task at a time, numbered as they come; ``learn`` takes a task's data, ``forward`` asks for any
    class so far. A recipe trains one by ``ContinualClassification``.

    Each task costs ``steps`` optimiser steps whatever came before: a batch is half of the task's items and half of
    earlier ones (the whole of them for the first task), each of which is drawn as often as there is room. Of a task
    ``keep`` items are remembered.

    Args:
        model: of ``create_model``; it is copied, adapted and frozen.
        adapter: of each expert; None for a model that has adapters.
        steps, batch_size, lr: of a task's training, by AdamW without weight decay.
        keep: items of a task.
        seed: of what is drawn.
        pad: id that fills shorter texts behind their ends; None: all are of one length, or filled before.

    Attributes:
        sizes: classes of each task that there is room for.
        seen: how many tasks there were, the newest included.

    Raises:
        ValueError: for numbers out of range, or a model without adapters.

    Paper: Song et al., "ConPET: Continual Parameter-Efficient Tuning for Large Language Models", arXiv 2309.14763.
    """

    seen: Tensor

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
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
        model = copy.deepcopy(model)
        if not adapters_of(model if adapter is None else zoo.adapt(model, adapter)):
            raise ValueError("ConPET's experts are adapters: give it one, such as --adapter lora")
        self.features = Features(model.requires_grad_(False), pad)
        self.steps, self.batch_size, self.lr, self.keep = steps, batch_size, lr, keep
        self.draws = torch.Generator().manual_seed(seed)
        self.remembered: list[tuple[Tensor, Tensor]] = []
        self.sizes: list[int] = []
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def begin(self, classes: int) -> None:
        """Make room for a task of so many classes."""

    @abstractmethod
    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """What is minimised, of items (B, ...) and their classes (B,): a mean over the items."""

    def meet(self, tasks: int) -> None:
        """Go on to the last of so many tasks, for which there is room."""
        self.seen.fill_(tasks)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """A task: items (N, ...) and their classes (N,), which begin where those of the tasks before ended.

        Raises:
            ValueError: for other classes.
        """
        first, last = self.classes, int(y.max())
        if int(y.min()) < first:
            raise ValueError(f"the classes of this task begin at {first}, got {int(y.min())}")
        self.begin(last + 1 - first)
        self.meet(len(self.sizes))
        learns = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learns, lr=self.lr, weight_decay=0.0)
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.losses(*self._batch(x, y)).backward()
            optimizer.step()
        chosen = torch.randperm(len(x), generator=self.draws)[: self.keep]
        self.remembered.append((x[chosen], y[chosen]))

    @property
    def classes(self) -> int:
        """Of the tasks so far."""
        return sum(self.sizes[: int(self.seen)])

    def task_of(self, classes: Tensor) -> Tensor:
        """The number of the task that each class is of."""
        return torch.bucketize(classes, torch.tensor(self.sizes, device=classes.device).cumsum(0), right=True)

    def save(self, folder: str | Path) -> Path:
        """Write what was learnt, the model beneath left out; ``load`` reads it."""
        known: Any = self.features.model
        described = [{"kind": adapter.kind, **dataclasses.asdict(adapter)} for adapter in adapters_of(known)]
        content = {"model_type": "zoo-conpet", "architecture": known.config_name, "sizes": self.sizes}
        tensors = {key: t for key, t in self.state_dict().items() if not key.startswith("features.")}
        card = f"# {type(self).__name__} over {known.config_name}\n\n{len(self.sizes)} tasks.\n"
        return write_folder(folder, tensors, content | {"changes": described, "kind": type(self).__name__}, card)

    def load(self, folder: str | Path) -> None:
        """Read what ``save`` has written of one of the same kind, model and adapters, which has no tasks yet.

        Raises:
            ValueError: for another folder.
        """
        content, tensors = read_config(folder), read_state_dict(folder)
        ours = type(self).__name__, self.features.model.config_name
        if (content.get("kind"), content.get("architecture")) != ours or self.sizes:
            raise ValueError(f"{folder} holds no {ours[0]} over {ours[1]} for a fresh one, but {content.get('kind')}")
        for classes in content["sizes"]:
            self.begin(classes)
        self.load_state_dict({**self.state_dict(), **tensors})
        self.meet(int(self.seen))

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


class StaticConPET(ContinualClassifier):
    """One expert for all tasks, whose head grows."""

    def __init__(self, model: nn.Module, adapter: Adapter | None, **options: Any):
        super().__init__(model, adapter, **options)
        self.expert: Expert | None = None

    def begin(self, classes: int) -> None:
        """More rows of the head."""
        self.sizes.append(classes)
        if self.expert is None:
            self.expert = Expert(self.features, classes)
        else:
            self.expert.grow(classes)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy over all classes so far."""
        return F.cross_entropy(self(x), y)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> logits (B, classes so far)."""
        assert self.expert is not None, "learn a task first"
        return self.expert.read(self.features, x)[:, : self.classes]


class DynamicConPET(ContinualClassifier):
    """An expert a task, and a selector, an expert as well, that says which of them are asked.

    The ``top_k`` likeliest experts answer, and the logits of the other classes are -100. In training the task's own
    expert is always among them. What a task has learnt stays as it is, to the bit, when others follow; the selector
    alone goes on, with earlier items.

    Args:
        top_k: experts asked of an item.
        options: see ``ContinualClassifier``.
    """

    def __init__(self, model: nn.Module, adapter: Adapter | None, *, top_k: int = 1, **options: Any):
        super().__init__(model, adapter, **options)
        require_at_least(1, top_k=top_k)
        self.top_k, self.experts = top_k, nn.ModuleList()
        self.selector: Expert | None = None

    def begin(self, classes: int) -> None:
        """A new expert, and a row more of the selector."""
        self.sizes.append(classes)
        self.experts.append(Expert(self.features, classes))
        if self.selector is None:
            self.selector = Expert(self.features, 1)
        else:
            self.selector.grow(1)

    def meet(self, tasks: int) -> None:
        """The newest expert and the selector learn."""
        super().meet(tasks)
        for index, expert in enumerate(self.experts):
            expert.requires_grad_(index == tasks - 1)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the selector, and of the newest expert on its own items, among those that are asked of them."""
        scores, task = self.select(x), self.task_of(y)
        own = task == int(self.seen) - 1
        answers = self.answer(x[own], self.asked(scores[own], task[own]))
        return F.cross_entropy(scores, task) + F.cross_entropy(answers, y[own], reduction="sum") / len(x)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> logits (B, classes so far)."""
        return self.answer(x, self.asked(self.select(x)))

    def select(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, tasks so far) of the tasks."""
        assert self.selector is not None, "learn a task first"
        return self.selector.read(self.features, x)[:, : int(self.seen)].log_softmax(-1)

    def asked(self, scores: Tensor, own: Tensor | None = None) -> Tensor:
        """Which experts are asked, (B, tasks) booleans; the task's own is the first of them where it is given."""
        if own is not None:
            scores = scores.scatter(1, own[:, None], torch.inf)
        chosen = scores.topk(min(self.top_k, scores.shape[1])).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)

    def answer(self, x: Tensor, asked: Tensor) -> Tensor:
        """The logits of the experts that are asked, each of all its items at once."""
        parts = []
        for index, expert in enumerate(self.experts[: asked.shape[1]]):  # type: ignore[arg-type]
            rows = asked[:, index].nonzero()[:, 0]
            made = x.new_full((len(x), expert.head.out_features), HIDDEN, dtype=expert.head.weight.dtype)  # type: ignore[union-attr]
            parts.append(made.index_copy(0, rows, expert.read(self.features, x[rows])) if len(rows) else made)  # type: ignore[operator]
        return torch.cat(parts, 1)
