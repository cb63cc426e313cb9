"""A language model whose attention is made linear learns to be the one that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.layers import LizardAttention
from zoo.train.lora import inject, merge
from zoo.train.optim import unwrapped, warmup_cosine
from zoo.train.tasks.language import Batch, LanguageModeling

ADAPTED = ("q_proj", "k_proj", "v_proj")


class Linearization(LanguageModeling):
    """Attention made linear (`zoo.linearize`) is trained in two stages, from the weights of the model that it was.

    1. Transfer: each linear attention alone learns what the teacher's makes of the same input, by the mean squared
       error, averaged over the layers. Its new parameters learn: feature maps, gates, meta tokens, the window's factor.
    2. Fine-tuning: next-token cross-entropy of the whole model. The new parameters learn, and LoRA by peft on the
       projections to queries, keys and values, which is merged into them at the end.

    Each stage has `warmup_steps` of warm-up and a cosine of its own. `train/loss` is what is minimised; evaluation is
    that of `LanguageModeling` in both.

    Args:
        model: see `Task`, which also has the other arguments; its configuration has `linearized`. Where it is given as
            a name without weights, it starts from the teacher's.
        teacher: the model with softmax attention: "local-dir:FOLDER", or a name with published or bundled weights.
        transfer: share of the optimiser steps in the first stage.
        finetune_lr: peak learning rate of the second, that of the first (`lr`) when None.
        rank, alpha: of LoRA, whose product has the factor alpha / rank.

    Raises:
        ValueError: a share outside [0, 1], a rank below 1, a model that is not linear, or a teacher of other weights.
        ImportError: without peft.

    Paper: Nguyen et al., "Lizard", arXiv 2507.09025, section 3.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        teacher: str,
        transfer: float = 0.5,
        finetune_lr: float | None = None,
        rank: int = 8,
        alpha: float = 16.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if not 0 <= transfer <= 1 or rank < 1:
            raise ValueError(f"transfer must be in [0, 1] and rank at least 1, got {transfer} and {rank}")
        self.transfer, self.finetune_lr, self.rank, self.alpha = transfer, finetune_lr or self.lr, rank, alpha
        self.teacher = Teacher(teacher)

    def sketch(self) -> nn.Module:
        return adapted(super().sketch(), self.rank, self.alpha)

    def configure_model(self) -> None:
        if self.model is None:
            self.build = partial(self._prepared, self.build())
        super().configure_model()

    def _prepared(self, model: nn.Module) -> nn.Module:
        """The model with the teacher's weights, of which those that both have are frozen; with LoRA."""
        if not any(layers(model)):
            raise ValueError("the model has no linear attention to train: give it linearized, such as {window: 128}")
        self.teacher.build()
        taught = self.teacher.model.state_dict()  # pyright: ignore[reportOptionalMemberAccess]
        own = dict(model.state_dict())
        if unfit := [name for name, tensor in taught.items() if name not in own or own[name].shape != tensor.shape]:
            raise ValueError(f"{self.teacher.name} is no model that this one was: {unfit[0]} does not fit")
        name, options = self.given
        if isinstance(name, str) and ":" not in name and not {"pretrained", "checkpoint_path"} & options.keys():
            model.load_state_dict(taught, strict=False)
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key not in taught)
        return adapted(model, self.rank, self.alpha)

    @property
    def transfer_steps(self) -> int:
        """Optimiser steps of the first stage."""
        return round(self.transfer * self._total())

    def _total(self) -> float:
        return self.schedule_steps or self.trainer.estimated_stepping_batches

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        for name, parameter in self.trained.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(not self.transferring)

    @property
    def transferring(self) -> bool:
        """Whether this is the first stage."""
        return self.trainer.global_step < self.transfer_steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if not self.transferring:
            return super().training_step(batch, batch_idx)
        return self.log_training(self.transfer_loss(batch[0]))

    def transfer_loss(self, tokens: Tensor) -> Tensor:
        """Mean over the layers of the squared error of each on what the teacher's reads, tokens (B, T)."""
        known = self.teacher.attention(tokens, [name for name, _ in layers(self.trained)])
        return torch.stack(
            [F.mse_loss(layer(known[name][0]), known[name][1]) for name, layer in layers(self.trained)]
        ).mean()

    def _lr_factor(self, step: int) -> float:
        first, ratio = self.transfer_steps, self.min_lr / self.lr
        if step < first:
            return warmup_cosine(step, self.warmup_steps, first, ratio)
        scale, rest = self.finetune_lr / self.lr, self._total() - first
        return scale * warmup_cosine(step - first, self.warmup_steps, rest, ratio)

    def on_train_end(self) -> None:
        """LoRA becomes a part of the weights."""
        for model in filter(None, (self.trained, self.average)):
            merge(model)


class Teacher:
    """A frozen model, in no checkpoint, that shows what its attention reads and writes.

    Args:
        name: see `Linearization`.
    """

    def __init__(self, name: str) -> None:
        self.name, self.model = name, None
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        zoo.create_model(name, device="meta")

    def build(self) -> None:
        """Load it, with its weights."""
        pretrained = not self.name.startswith(("local-dir:", "hf-hub:"))
        self.model: Any = zoo.create_model(self.name, pretrained).eval().requires_grad_(False)

    @torch.no_grad()
    def attention(self, tokens: Tensor, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Of the modules with these names: input and output for tokens (B, T)."""
        found: dict[str, tuple[Tensor, Tensor]] = {}

        def note(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            found[name] = inputs[0], output

        model: Any = self.model.to(tokens.device)
        hooks = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
        model(tokens, logits_to_keep=1)
        for hook in hooks:
            hook.remove()
        return found


def layers(model: nn.Module) -> Iterator[tuple[str, LizardAttention]]:
    """Names and modules of the linear attention."""
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, LizardAttention):
            yield name, module


def adapted(model: nn.Module, rank: int, alpha: float) -> nn.Module:
    """The model with LoRA on what linear attention makes its queries, keys and values by, in place."""
    return inject(model, [f"{name}.{projection}" for name, _ in layers(model) for projection in ADAPTED], rank, alpha)
