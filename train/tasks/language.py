"""Language modelling."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.train.optim import unwrapped
from zoo.train.tasks.base import Task
from zoo.train.tasks.distillation import Kind, LanguageTeacher
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]
IGNORED = -100


class LanguageModeling(Task):
    """Next-token cross-entropy; batches are `(tokens (B, T), labels (B, T))`, int64.

    Labels have transformers' meaning: same length, shifted inside (`labels[:, t + 1]` is predicted from
    `tokens[:, : t + 1]`), -100 ignored. Training minimises the mean over a batch's scored tokens. Evaluation logs, over
    all scored tokens of the split, each counted once:

        {val,test}/loss             mean cross-entropy in nats
        {val,test}/bits_per_byte    summed cross-entropy in bits over the text's bytes, where the data module has
                                    `bits_per_byte(nats_per_token, split)`; for bytes it is loss / ln 2
        {val,test}/accuracy         share of scored tokens that are the likeliest, where `accuracy` is set

    Args:
        model: see `Task`, which also has the other arguments.
        accuracy: compute the accuracy in evaluation, which needs all logits at once (B T vocab_size floats).
        teacher: learn from this model's predictions too, "local-dir:FOLDER" or a name with weights; all logits are
            needed at once then.
        distillation, distillation_weight, temperature, top_k: how, see `Teacher`.
    """

    unit = "tokens"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        accuracy: bool = False,
        teacher: str | None = None,
        distillation: Kind = "soft",
        distillation_weight: float = 0.5,
        temperature: float = 1.0,
        top_k: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        self.accuracy = accuracy
        kept = (distillation, distillation_weight, temperature, top_k)
        self.distillation = None if teacher is None else LanguageTeacher(teacher, *kept)
        self.mean_loss, self.mean_accuracy = (Mean() for _ in range(2))

    def count(self, batch: Batch) -> int:
        return batch[0].numel()

    def configure_model(self) -> None:
        super().configure_model()
        if self.distillation and self.distillation.model is None:
            self.distillation.build()
            self.distillation.check(unwrapped(self.trained))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        tokens, labels = batch
        if self.distillation is None:
            return self.log_training(self.trained(tokens, labels=labels))
        scored = labels[:, 1:] != IGNORED  # (B, T - 1)
        taught = self.distillation.logits(tokens, unwrapped(self.trained))[:, :-1][scored]
        logits = self.trained(tokens)[:, :-1][scored].float()
        loss = F.cross_entropy(logits, labels[:, 1:][scored])
        return self.log_training(self.distillation.mixed(loss, logits, taught), cross_entropy=loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(*batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(*batch)

    def on_validation_epoch_end(self) -> None:
        self._log_split("val")

    def on_test_epoch_end(self) -> None:
        self._log_split("test")

    def _evaluate(self, tokens: Tensor, labels: Tensor) -> None:
        scored = labels[:, 1:] != IGNORED  # (B, T - 1)
        if self.accuracy:
            logits, answers = self.evaluated(tokens)[:, :-1][scored].float(), labels[:, 1:][scored]
            self.mean_loss.update(F.cross_entropy(logits, answers, reduction="none"))
            self.mean_accuracy.update(logits.argmax(1) == answers)
            return
        loss = self.evaluated(tokens, labels=labels)  # every process calls it, as sharded models demand
        if scored.any():
            self.mean_loss.update(loss, count=scored.sum())

    def _log_split(self, split: str) -> None:
        values = {"loss": float(self.mean_loss.compute())}
        bits_per_byte = getattr(getattr(self.trainer, "datamodule", None), "bits_per_byte", None)
        if bits_per_byte is not None:
            values["bits_per_byte"] = bits_per_byte(values["loss"], split)
        if self.accuracy:
            values["accuracy"] = float(self.mean_accuracy.compute())
        # compute() has reduced over processes already: averaging equal values keeps Lightning from warning.
        self.log_dict({f"{split}/{k}": v for k, v in values.items()}, prog_bar=True, sync_dist=True)
        self.mean_loss.reset()
        self.mean_accuracy.reset()
