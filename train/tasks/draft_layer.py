"""A draft layer learns to say what follows in a text that its frozen model has read."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.decoding.draft_layer import draft_logits, draft_loss
from zoo.train.tasks.language import IGNORED, Batch, LanguageModeling


class DraftLayerTraining(LanguageModeling):
    """LongSpec's draft layer (`zoo.decoding.add_draft_layer`) learns by next-token cross-entropy, nothing else does.

    In every batch the model's cache ends a number of tokens, drawn from 1 to `max_delay`, before each place, as it does
    within a draft. Anchor-offset positions: up to four of the first tokens, a number drawn from 0 to 4, stand where
    they are, and all others later by a number drawn from 0 to `max_offset` less the length.

    Evaluation is at a delay of 1 and no offset: `loss` and `bits_per_byte` of the layer's guesses, and as `accuracy`
    how often its likeliest token is the model's.

    Args:
        model: see `Task`, which also has the other arguments; with `changes: [{kind: draft_layer, ...}]`, and weights.
        max_delay: longest draft.
        max_offset: largest position shown; 0 for those of the text.

    Raises:
        ValueError: for a delay below 1, a negative offset, or a model without a draft layer.

    Paper: Yang et al., "LongSpec", arXiv 2502.17421, section 3.2.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        max_delay: int = 4,
        max_offset: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, accuracy=True, **kwargs)
        if max_delay < 1 or max_offset < 0:
            raise ValueError(
                f"max_delay must be at least 1 and max_offset not negative, got {max_delay} and {max_offset}"
            )
        self.max_delay, self.max_offset = max_delay, max_offset

    def configure_model(self) -> None:
        super().configure_model()
        model: Any = self.trained
        if getattr(model, "draft_layer", None) is None:
            raise ValueError("the model has no draft layer to train: give it changes: [{kind: draft_layer}]")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("draft_layer."))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        tokens, labels = batch
        delay, anchors, offset = (
            int(torch.randint(low, high + 1, ()))
            for low, high in ((1, self.max_delay), (0, 4), (0, max(0, self.max_offset - tokens.shape[1])))
        )
        return self.log_training(draft_loss(self.trained, tokens, labels, delay, anchors, offset))

    def _evaluate(self, tokens: Tensor, labels: Tensor) -> None:
        scored = labels[:, 1:] != IGNORED
        model: Any = self.evaluated
        logits, own = (part[:, :-1][scored].float() for part in (draft_logits(model, tokens, 1), model(tokens)))
        self.mean_loss.update(F.cross_entropy(logits, labels[:, 1:][scored], reduction="none"))
        self.mean_accuracy.update(logits.argmax(1) == own.argmax(1))
