"""What learning from a policy's own answers shares: the reference, the draws, and rewards of held-out prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.train.data.rng import derive_seed
from zoo.train.optim import unwrapped
from zoo.train.policy import answered, log_probs
from zoo.train.tasks.base import Task
from zoo.train.tasks.distillation import LanguageTeacher
from zoo.train.tasks.metrics import Mean


class PolicyTask(Task):
    """A language model whose answers to prompts are learnt from; the data's ``task`` says what they are worth.

    What is drawn in a step depends on the seed, the step and the process alone, so that runs resume.

    Args:
        model: see `Task`, which also has the other arguments.
        reference: the model before, which the policy is to stay near: a name with weights or "local-dir:FOLDER".
        draw_seed: of the answers.
    """

    unit = "tokens"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        reference: str | None = None,
        draw_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        self.reference = None if reference is None else LanguageTeacher(reference, "soft", 0.0, 1.0)
        self.draw_seed = draw_seed
        self.means = nn.ModuleDict()

    def count(self, batch: Any) -> int:
        return batch[0].numel()

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is not None and self.reference.model is None:
            self.reference.build()
            self.reference.check(unwrapped(self.trained))

    @property
    def reward(self) -> Callable[[Tensor, Any], Tensor]:
        """Of answers (B, A) and targets: what each is worth, (B,).

        Raises:
            ValueError: the data do not say.
        """
        task = getattr(getattr(self.trainer, "datamodule", None), "task", None)
        if not hasattr(task, "reward"):
            raise ValueError(f"answers are rewarded by the data's task, and {type(task).__name__} has no reward")
        return cast(Any, task).reward

    def draw(self, model: nn.Module, prompts: Tensor, length: int, number: int, **options: Any) -> Tensor:
        """Prompts with answers, see `answered`; ``number`` tells a batch from others."""
        seed = derive_seed(self.draw_seed, number, self.global_rank)
        return answered(unwrapped(model), prompts, length, seed=seed, **options)

    @torch.no_grad()
    def base_log_probs(self, tokens: Tensor, start: int) -> Tensor:
        """Of the reference, see `log_probs`."""
        assert self.reference is not None
        return log_probs(self.reference.on(tokens.device), tokens, start)

    def log_means(self, split: str, **values: Tensor) -> None:
        """Log the means over a split."""
        for name, value in values.items():
            if name not in self.means:
                self.means[name] = Mean().to(self.device)
            mean = cast(Mean, self.means[name])
            mean.update(value.detach())
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True, metric_attribute=f"means.{name}")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "test")

    @abstractmethod
    def evaluate(self, batch: Any, number: int, split: str) -> None:
        """Log what a batch of held-out prompts tells."""
