"""A recipe's stream of classification tasks, by ConPET."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.train.adapt.continual import ContinualClassifier, DynamicConPET, StaticConPET
from zoo.train.optim import unwrapped
from zoo.train.parallel import expect_unused
from zoo.train.tasks.classification import Batch, ImageClassification


class ContinualClassification(ImageClassification):
    """ConPET over a model with adapters: epoch e learns task e, of which its data module draws the batches, such as
    `zoo.train.data.DigitStreamDataModule`. Metrics are over the classes so far.

    There is room for all tasks from the start, so that DDP knows every parameter; what a task has not come to learns
    nothing. At the end the experts are written, without the model beneath: `ContinualClassifier.load` reads them.

    Args:
        model, model_args: with an adapter, of which each expert has its own.
        dynamic: an expert a task and a selector, see `DynamicConPET`; else one expert for all, `StaticConPET`.
        sizes: classes of each task.
        top_k: experts asked of an item, with `dynamic`.
        pad: see `ContinualClassifier`.
        kwargs: see `ImageClassification`.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        sizes: list[int],
        dynamic: bool = False,
        top_k: int = 1,
        pad: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if self.memory:
            kinds = ", ".join(method.kind for method in self.memory)
            raise ValueError(f"experts of a stream learn by plain passes: leave out the memory method {kinds}")
        kind = partial(DynamicConPET, top_k=top_k) if dynamic else StaticConPET
        self.wrap = partial(_experts, partial(kind, pad=pad), tuple(sizes))
        self.sketch()  # a model without adapters fails here

    def sketch(self) -> nn.Module:
        with torch.device("meta"):
            return self.wrap(super().sketch)

    def configure_model(self) -> None:
        if self.model is None:
            self.build = partial(self.wrap, self.build)
        super().configure_model()

    @property
    def experts(self) -> ContinualClassifier:
        """What learns."""
        return cast(ContinualClassifier, unwrapped(self.trained))

    def setup(self, stage: str) -> None:
        """No step has a gradient for all experts."""
        expect_unused(self.trainer.strategy)

    def on_train_start(self) -> None:
        """A run that was broken off in the middle of a task goes on with what learns in it."""
        super().on_train_start()
        self.experts.meet(min(self.current_epoch + 1, len(self.experts.sizes)))

    def on_train_epoch_start(self) -> None:
        """The next task.

        Raises:
            ValueError: there is none.
        """
        if self.current_epoch >= len(self.experts.sizes):
            raise ValueError(f"the stream has {len(self.experts.sizes)} tasks, one an epoch: let max_epochs be as many")
        self.experts.meet(self.current_epoch + 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.log_training(self.experts.losses(*batch))

    def _evaluate(self, batch: Batch, split: str) -> None:
        known = batch[1] < self.experts.classes
        super()._evaluate((batch[0][known], batch[1][known]), split)

    def save(self, model: nn.Module, folder: Path) -> Path:
        """The experts alone."""
        return cast(ContinualClassifier, unwrapped(model)).save(folder)


def _experts(kind: Callable[..., ContinualClassifier], sizes: tuple[int, ...], build: Callable[[], nn.Module]) -> Any:
    made = kind(build(), None)
    for classes in sizes:
        made.begin(classes)
    made.seen.fill_(1)  # nothing is frozen yet: the optimiser takes all
    return made
